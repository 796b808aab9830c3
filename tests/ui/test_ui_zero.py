"""ZeroGPU, with a stand-in for its package: every kind of task goes through the decorated generator, pickled."""

import asyncio
import base64
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from gradio.context import LocalContext
from PIL import Image
from test_ui_forward import request_from
from test_ui_runs import drain, wait_for_end

from ddpm_hf.errors import UserError
from ddpm_hf.sampling import generate, with_sampler
from ddpm_hf.ui.comparison import stream_comparison
from ddpm_hf.ui.runs import Engine, generate_for_program, stream_to_stage

REQUEST = {"num_images": 2, "steps": 4, "seed": 3, "sampler": "dpm", "guidance_scale": 1.0}


@pytest.fixture
def spaces(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "zero_gpu"))
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    import spaces

    yield spaces
    sys.modules.pop("spaces", None)


@pytest.fixture
def lent(spaces, shapes, colors) -> Engine:
    """An engine whose GPU is lent."""
    engine = Engine(shapes, None, ["someone/colors"], lambda _: colors)
    yield engine
    engine.close()


def test_images_are_the_same_on_a_lent_gpu(lent, spaces):
    *_, answer = drain(generate_for_program(lent, REQUEST))
    expected = generate(with_sampler(lent.pipeline, "dpm"), 2, steps=4, seed=3).images
    for image, part in zip(expected, answer["images"], strict=True):
        assert np.array_equal(image, Image.open(io.BytesIO(base64.b64decode(part["png"]))))
    assert len(spaces.calls) == 1 and spaces.calls[0]["ended"] and 10 <= spaces.calls[0]["seconds"] <= 120


def test_every_kind_of_task_can_travel(lent, spaces, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.models.Model.timesteps", 20)
    lanes = [{"sampler": "dpm", "steps": 3}, {"sampler": "ddpm", "steps": 4}]
    assert drain(stream_comparison(lent, {"num_images": 1, "lanes": lanes}))[-1]["state"] == "done"
    assert drain(stream_to_stage(lent, request_from(t=15)))[-1]["state"] == "done"
    assert drain(stream_to_stage(lent, {**REQUEST, "model": "someone/colors"}))[-1]["state"] == "done"
    assert len(spaces.calls) == 4  # the comparison's reference is one of its own


def test_the_cache_borrows_nothing(lent, spaces):
    for _ in range(2):
        drain(stream_to_stage(lent, REQUEST))
    assert len(spaces.calls) == 1


def test_the_visitor_is_known_where_the_gpu_is_asked_for(lent, spaces):
    """It is the visitor's quota that is used."""

    async def as_a_visitor():
        LocalContext.request.set("the visitor's request")
        async for _ in stream_to_stage(lent, REQUEST):
            pass

    asyncio.run(as_a_visitor())
    assert spaces.calls[0]["visitor"] == "the visitor's request"


def test_leaving_gives_the_gpu_back(lent, spaces):
    async def leave():
        stream = stream_to_stage(lent, {"num_images": 4, "steps": 1000, "sampler": "ddpm"})
        async for value in stream:
            if value["frames"]:
                break
        await stream.aclose()

    asyncio.run(leave())
    wait_for_end(30)
    assert spaces.calls[0]["ended"] and spaces.calls[0]["made"] < 900


def test_a_quota_that_is_used_up_is_told(lent, spaces, monkeypatch):
    monkeypatch.setattr(spaces, "quota_used_up", True)
    with pytest.raises(UserError, match="exceeded your GPU quota"):
        drain(stream_to_stage(lent, REQUEST))


def test_elsewhere_the_package_is_not_even_imported(shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", None)  # an import would fail
    assert drain(stream_to_stage(Engine(shapes), REQUEST))[-1]["state"] == "done"


def test_a_model_that_cannot_be_loaded_there_is_told(spaces, shapes):
    def load(_):
        raise UserError("no weights.")

    with pytest.raises(UserError):
        drain(stream_to_stage(Engine(shapes, None, ["someone/x"], load), {**REQUEST, "model": "someone/x"}))


def test_the_real_package_leaves_our_generator_alone_off_a_space(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    spaces = pytest.importorskip("spaces", reason="only ZeroGPU Spaces need it")

    def compute():
        yield 1

    assert spaces.GPU(duration=lambda: 10)(compute) is compute
