"""What the README tells a newcomer, literally: from a folder of pictures to a pipeline that diffusers loads."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

SECTION = "## Train on your pictures"
SHORT = ["--max_train_steps", "3", "--num_samples", "2", "--block_out_channels", "[8, 16, 16, 16]"]


def commands() -> list[list[str]]:
    """The command lines of the section, split into words."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(SECTION)[1]
    block = re.search(r"^```\n(.*?)^```", section, re.M | re.S)[1]
    return [shlex.split(line) for line in block.splitlines()]


def fresh_clone(folder: Path):
    """A folder with what a clone has, as far as the commands name it, and pictures of several kinds and sizes."""
    for name in ("train.py", "configs", "ddpm_hf"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_pictures").mkdir()
    random = np.random.default_rng(0)
    for i, mode in enumerate(["RGB", "RGBA", "L", "P"] * 6):
        pixels = random.integers(0, 256, (*random.integers(30, 60, 2), 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / "my_pictures" / f"{i}.png")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_section_does_what_it_says(tmp_path):
    fresh_clone(tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    outputs = []
    for words in commands():
        more = SHORT if "train.py" in words else []
        result = subprocess.run(
            [*words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, f"{words}: {result.stderr}"
        outputs.append(result.stdout)
        assert (tmp_path / "runs" / "mine").exists() == ("--dry_run" not in words)
    planned, trained, sampled = outputs
    assert "23 images of 3x32x32 of train, no labels" in planned
    assert "time to finish" in planned
    assert "exported runs/mine/pipeline" in trained
    assert "wrote grid.png: 16 pictures" in sampled
    assert Image.open(tmp_path / "grid.png").mode == "RGB"
    script = (
        "import sys\n"
        "from diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained('runs/mine/pipeline', trust_remote_code=True)\n"
        "assert 'ddpm_hf' not in sys.modules\n"
        "print(pipeline(batch_size=1, num_inference_steps=2, seed=0).images[0].size)\n"
    )
    os.rename(tmp_path / "ddpm_hf", tmp_path / "gone")
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.strip() == "(32, 32)", result.stderr
