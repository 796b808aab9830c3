"""Valid things that the cases change, and the process that tries what became of them."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import ROOT, tiny_pipeline
from hostile.limited import Limited
from training.tiny_runs import TINY, tiny_trainer

from ddpm_hf.hub import export_pipeline
from ddpm_hf.stopping import StopSignal


@pytest.fixture(scope="session")
def limited(tmp_path_factory):
    limited = Limited(tmp_path_factory.mktemp("limited"), HF_HUB_DISABLE_XET="1")
    yield limited
    limited.stop()


@pytest.fixture(scope="session")
def valid(tmp_path_factory) -> dict[str, Path]:
    """Folders with a valid thing each, by the names that cases have for them."""
    folder = tmp_path_factory.mktemp("valid")
    pipeline = tiny_pipeline(scheduler=DDPMScheduler(20), num_class_embeds=2, id2label={"0": "a", "1": "b"})
    export_pipeline(folder / "model" / "model", pipeline)
    export_pipeline(folder / "stock" / "model", stock_pipeline())
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "fashion_mnist_tiny.parquet", folder / "data" / "data.parquet")
    begun_run(folder / "run")
    return {path.name: path for path in folder.iterdir()}


def begun_run(folder: Path):
    """A run of three steps that was stopped after two, and the settings that take it further."""
    folder.mkdir()
    settings = {**TINY, "max_train_steps": 3, "checkpointing_steps": 1, "mixed_precision": "no", "num_samples": 1}
    (folder / "tiny.yaml").write_text(json.dumps({**settings, "output_dir": "run"}))
    stop = StopSignal()
    trainer = tiny_trainer(folder / "run", stop, **settings)
    step = trainer.train_step

    def stop_at_two():
        step()
        stop.reason = "SIGTERM" if trainer.state.step == 2 else None

    trainer.train_step = stop_at_two
    trainer.train()


def stock_pipeline():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, layers_per_block=1, **blocks)
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20))
