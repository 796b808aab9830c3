"""The README's way from pictures to a live Space, command by command, each in a process of its own."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from clean_room import bare_environment
from helpers import ROOT
from huggingface_hub import HfApi
from safetensors.numpy import load_file
from started_space import StartedSpace, generated

STARTS = (
    "accelerate launch train.py --config configs/my_pictures.yaml",
    "python -m ddpm_hf push",
    "python -m ddpm_hf deploy",
)
SETTINGS = {"num_images": 2, "steps": 4, "seed": 5}
# of the preset's run, what makes it take seconds
SMALL = (
    "--dataset_revision main --class_conditional --max_train_steps 6 --block_out_channels [8,16] --attention_levels []"
    " --train_batch_size 8 --max_images 64 --checkpointing_steps 3 --validation_steps 6 --sample_steps 6"
    " --num_samples 2 --lr_warmup_steps 1 --report_to none"
)
WITHOUT_US = """
import sys
from diffusers import DiffusionPipeline
from safetensors.numpy import save_file
try:
    import ddpm_hf
except ImportError:
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    images = pipeline(2, class_labels=[8, 8], num_inference_steps=4, seed=5, output_type="np").images
    save_file({"images": images}, sys.argv[2])
"""


def commands() -> list[list[str]]:
    """The words of the README's commands."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [shlex.split(next(line for line in lines if line.startswith(start))) for start in STARTS]


def run(words: list[str], **environment: str) -> str:
    """The output of a command, in the checkout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("hub", ["xet"], indirect=True)  # what the Hub itself uses
def test_from_pictures_to_a_live_space(hub, tmp_path, diffusers_python, space_python):
    train, push, deploy = commands()
    api = HfApi()
    api.create_repo("alice/garments", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=ROOT / "data" / "fashion_mnist_tiny.parquet",
        path_in_repo="data/train-00000-of-00001.parquet",
        repo_id="alice/garments",
        repo_type="dataset",
    )
    ours = {"my_pictures": "alice/garments", "runs/mine": str(tmp_path / "run"), "python": sys.executable}
    ours |= {"you/your-model": "alice/your-model", "you/your-space": "alice/your-space"}
    train, push, deploy = ([ours.get(word, word) for word in words] for words in (train, push, deploy))

    assert train[:2] == ["accelerate", "launch"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run([*torchrun, *train[2:], *shlex.split(SMALL)], ACCELERATE_USE_CPU="1")
    assert "2 process(es)" in output
    assert "alice/your-model" in run(push)
    assert "alice/your-space" in run(deploy)

    home = tmp_path / "home"
    home.mkdir()
    drawn = tmp_path / "drawn.safetensors"
    environment = bare_environment(home, HF_HUB_DISABLE_XET="1" if hub.storage == "lfs" else "0")
    command = [diffusers_python, "-c", WITHOUT_US, "alice/your-model", drawn]
    subprocess.run(command, cwd=home, env=environment, check=True, timeout=300)
    expected = (load_file(drawn)["images"][..., 0] * 255).round().astype(int)
    assert expected.shape == (2, 28, 28) and expected.std() > 5

    space = StartedSpace(hub.repos["space", "alice/your-space"], space_python, tmp_path / "space")
    try:
        images = generated(space.url, class_name="Bag", **SETTINGS)  # the model's own sampling, as above
    finally:
        space.stop()
    # the same pictures, though the app may compute in bfloat16: those of other seeds are a hundred levels apart
    assert np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - expected).mean() < 3
