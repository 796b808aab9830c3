"""Small real models, and where the checkout is, for the tests of every folder."""

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


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
