"""Small real models, and where the checkout is, for the tests of every folder."""

import contextlib
import io
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BOTH_STORAGES = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)  # for tests in which the files move


def tiny_unet(**settings):
    """A real MyUNet with few weights, none of them zero or symmetric."""
    from ddpm_hf.unet import MyUNet

    torch.manual_seed(0)
    defaults = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "num_train_timesteps": 20,
        "time_embed_dim": 16,
        "feed_forward_dim": 16,
    }
    return MyUNet(**{**defaults, **settings}).eval()


def tiny_pipeline(*, scheduler=None, id2label=None, output_size=(None, None), **settings):
    """A real pipeline around ``tiny_unet(**settings)``."""
    from ddpm_hf.pipeline import MyDDPMPipeline
    from ddpm_hf.scheduler import MyDDPMScheduler

    unet = tiny_unet(**settings)
    scheduler = scheduler or MyDDPMScheduler(unet.config.num_train_timesteps)
    height, width = output_size
    pipeline = MyDDPMPipeline(unet, scheduler, id2label=id2label, output_height=height, output_width=width)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Moments(torch.nn.Module):
    """Three features of an image: means of its thirds."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(1)[:, :27].reshape(images.shape[0], 3, -1).mean(2)


def moments_file(path: Path) -> str:
    """``Moments`` as a TorchScript file."""
    torch.jit.script(Moments()).save(str(path))
    return str(path)


def hasty(folder: Path) -> str:
    """A folder for PYTHONPATH: its interpreters cut pauses short, as those of retries, of up to half a minute."""
    folder.mkdir()
    code = "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.05))\n"
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


def wait_until(condition, seconds: float = 120.0):
    """Wait for ``condition()``, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def upload_here() -> type:
    """``Sending`` whose process is this one: it reads the request, uploads and writes the answer at once."""
    from huggingface_hub.utils import _http

    from ddpm_hf.hub.retries import RetryLimits
    from ddpm_hf.hub.upload import Sending, Upload, answer_to

    class UploadHere(Sending):
        def __init__(self, upload, token=None, **_):
            self.upload = upload
            request = json.loads(json.dumps(asdict(upload)))
            with pytest.MonkeyPatch.context() as environment, contextlib.redirect_stdout(sys.stderr):
                if token is not None:
                    environment.setenv("HF_TOKEN", token)
                answer = answer_to(Upload(**{**request, "limits": RetryLimits(**request["limits"])}))
            _http.set_client_factory(_http.default_client_factory)
            pipes = {"stdin": io.StringIO(), "stdout": io.StringIO(json.dumps(answer) + "\n")}
            self._process = SimpleNamespace(wait=lambda timeout=None: 0, poll=lambda: 0, returncode=0, **pipes)

    return UploadHere
