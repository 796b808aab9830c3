"""Prompts on the command line, in ``/generate`` and in links."""

import asyncio
import json

import numpy as np
import pytest
from helpers import tiny_pipeline
from PIL import Image
from tiny_encoder import words_pipeline

from ddpm_hf.__main__ import main
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline
from ddpm_hf.ui.api import Api
from ddpm_hf.ui.links import checked_settings, query_of, settings_of_query, snippet
from ddpm_hf.ui.runs import Engine, generate_for_program

pytest.importorskip("transformers")  # CI installs it after all others, which would wait for its import


@pytest.fixture(scope="module")
def model(encoder_folder, tmp_path_factory) -> str:
    return str(export_pipeline(tmp_path_factory.mktemp("words") / "model", words_pipeline(encoder_folder)))


@pytest.fixture
def engine(encoder_folder):
    engine = Engine(words_pipeline(encoder_folder))
    yield engine
    engine.close()


def sample(model, output, *arguments) -> int:
    return main(["sample", model, "--steps", "3", "--output", str(output), *arguments])


def images(model, output, *arguments) -> np.ndarray:
    assert sample(model, output, *arguments) == 0
    return np.load(output)["images"]


def test_prompts_are_taken_in_turn(model, tmp_path):
    several = images(model, tmp_path / "a.npz", "--prompt", "red", "--prompt", "blue", "--seed", "3")
    assert several.shape == (2, 8, 8)
    (tmp_path / "prompts.txt").write_text("red\n\n  blue \n")
    of_file = images(model, tmp_path / "b.npz", "--prompts-file", str(tmp_path / "prompts.txt"), "--seed", "3")
    assert np.array_equal(of_file, several)
    blue = images(model, tmp_path / "c.npz", "--prompt", "blue", "--seed", "4", "--num-images", "1")
    assert np.array_equal(blue[0], several[1])
    away = images(model, tmp_path / "d.npz", "--prompt", "blue", "--negative-prompt", "red", "--seed", "4")
    assert len(away) == 16 and not np.array_equal(away[0], blue[0])
    assert sample(model, tmp_path / "e.png", "--prompt", "a red square", "--num-images", "4") == 0
    assert json.loads(Image.open(tmp_path / "e.png").text["ddpm_hf"])["prompt"] == "a red square"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "a" * 10_000], "--prompt has 10,000 characters; at most 1,000 are read"),
        (["--prompt", "a\x07"], "--prompt has the control character '\\x07'"),
        (["--negative-prompt", "red"], "--negative-prompt goes with --prompt"),
        (["--prompts-file", "missing.txt"], "--prompts-file missing.txt cannot be read"),
    ],
    ids=["empty", "long", "control", "negative alone", "no file"],
)
def test_bad_prompts_are_one_line_and_write_nothing(model, tmp_path, capsys, arguments, message):
    assert sample(model, tmp_path / "x.png", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_words_takes_no_prompt(tmp_path, capsys):
    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    assert sample(str(folder), tmp_path / "x.png", "--prompt", "red") == 2
    assert "--prompt was given, but the model reads no words" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert sample(str(folder), tmp_path / "x.png", "--prompts-file", str(tmp_path / "empty.txt")) == 2
    assert "has no prompt: write one in each line" in capsys.readouterr().err


def answer_of(engine, **values) -> dict:
    async def last():
        return [answer async for answer in generate_for_program(engine, values)][-1]

    return asyncio.run(last())


def test_generate_draws_the_prompt(engine, model, tmp_path):
    settings = {"num_images": 2, "steps": 3, "seed": 7, "guidance_scale": 2.0}
    answer = answer_of(engine, prompt="a red square", **settings)
    assert answer["settings"]["prompt"] == "a red square"
    assert answer["images"][0]["png"] != answer_of(engine, prompt="blue", **settings)["images"][0]["png"]
    assert "prompt" not in answer_of(engine, num_images=1, steps=2)["settings"]
    for value, message in (
        ("", "prompt is empty"),
        ("a" * 10_000, "prompt has 10,000 characters"),
        ("\x00", "control character"),
        (3, "prompt must be a text, got int"),
        (["red"], "prompt must be a text, got list"),
    ):
        with pytest.raises(UserError, match=message):
            answer_of(engine, prompt=value)
    plain = Engine(tiny_pipeline())
    with pytest.raises(UserError, match="this model reads no words: leave out the prompt"):
        answer_of(plain, prompt="red")
    plain.close()


def test_runs_with_and_without_words_are_computed_together_and_right(engine):
    """Two visitors' prompts share calls of the network; a run without a prompt goes by itself."""

    async def together(requests):
        async def last(values):
            return [answer async for answer in generate_for_program(engine, values)][-1]

        return await asyncio.gather(*map(last, requests))

    requests = [{"prompt": prompt, "num_images": 2, "steps": 4, "seed": 1} for prompt in ("red", "blue", None)]
    found = asyncio.run(together(requests))
    fresh = Engine(engine.pipeline)
    alone = [answer_of(fresh, **request) for request in requests]
    fresh.close()
    assert [answer["images"][1]["png"] for answer in found] == [answer["images"][1]["png"] for answer in alone]


def test_a_link_and_code_carry_the_prompt(engine):
    settings = checked_settings(engine, {"prompt": "a red & <b>blue</b> 'square'", "num_images": 1})
    query = query_of(settings)
    assert "<" not in query and settings_of_query(engine, query) == settings
    for kind in ("diffusers", "gradio_client"):
        code = snippet(engine, settings, kind)
        assert "prompt=" in code and compile(code, "snippet", "exec")


def test_only_models_with_words_have_the_parameter(engine):
    def parameters(engine):
        added = {}

        class Server:
            def api(self, function, name, description, **_):
                added[name] = (function, description)

        Api(Server(), engine, None, None)
        import inspect

        function, description = added["generate"]
        assert ("prompt:" in description) == ("prompt" in function.__annotations__)
        return list(inspect.signature(function).parameters)

    plain = Engine(tiny_pipeline())
    assert "prompt" in parameters(engine) and "prompt" not in parameters(plain)
    assert "model" not in parameters(engine)
    plain.close()
