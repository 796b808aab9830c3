"""From captions in a folder to ``/generate`` with a prompt, each command in a process of its own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from clean_room import bare_environment, make_environment
from helpers import ROOT
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from started_space import StartedSpace, generated

from ddpm_hf.hub.space import space_requirements

pytest.importorskip("transformers")  # CI installs it after all others, which would wait for its import

PROMPT = "a red square"
SETTINGS = (
    "--sample_size 8 --image_mode RGB --block_out_channels [8,16] --norm_num_groups 4 --feed_forward_dim 16"
    " --time_embed_dim 16 --train_batch_size 8 --max_train_steps 6 --lr_warmup_steps 1 --checkpointing_steps 3"
    " --sample_steps 6 --num_samples 2 --num_train_timesteps 50 --report_to none --validation_split null"
)
WITHOUT_US = """
import importlib.util, sys
import numpy as np
from diffusers import DiffusionPipeline
from safetensors.numpy import save_file
assert importlib.util.find_spec("ddpm_hf") is None
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipeline(sys.argv[3], num_images_per_prompt=2, num_inference_steps=4, seed=5, output_type="np").images
save_file({"images": np.ascontiguousarray(images)}, sys.argv[2])  # safetensors writes memory as it lies
"""


def run(*words, **environment: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_captions_to_a_space_that_draws_a_prompt(hub, squares, encoder_folder, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    data = ["--dataset", squares, "--text_encoder", encoder_folder, "--output_dir", tmp_path / "run"]
    assert "2 process(es)" in run(*torchrun, *data, *SETTINGS.split(), ACCELERATE_USE_CPU="1")
    run("-m", "ddpm_hf", "push", tmp_path / "run", "--repo-id", "alice/squares")
    run("-m", "ddpm_hf", "deploy-space", "--model", "alice/squares", "--space-id", "alice/words")

    card = ModelCard.load("alice/squares")
    assert card.data.pipeline_tag == "text-to-image" and {"text": PROMPT} in card.data["widget"]
    assert "pip install transformers" in card.text and "class_labels" not in card.text

    home = tmp_path / "home"
    home.mkdir()
    python = make_environment(tmp_path / "diffusers", "diffusers", "torch", "safetensors", "transformers")
    command = [python, "-c", WITHOUT_US, "alice/squares", tmp_path / "drawn.safetensors", PROMPT]
    subprocess.run(command, cwd=home, env=bare_environment(home), check=True, timeout=300)
    expected = (load_file(tmp_path / "drawn.safetensors")["images"] * 255).round().astype(int)
    assert expected.shape == (2, 8, 8, 3) and expected.std() > 5

    names = [re.match(r"[\w.-]+", line)[0] for line in space_requirements().splitlines()]
    python = make_environment(tmp_path / "space-python", *names, "transformers")
    space = StartedSpace(hub.repos["space", "alice/words"], python, tmp_path / "space")
    try:
        assert "transformers" in (tmp_path / "space" / "requirements.txt").read_text().splitlines()
        images = generated(space.url, prompt=PROMPT, num_images=2, steps=4, seed=5)
        others = generated(space.url, prompt="blue", num_images=2, steps=4, seed=5)
    finally:
        space.stop()
    made, other = (np.stack([np.asarray(image) for image in found]).astype(int) for found in (images, others))
    assert made.shape == expected.shape and np.abs(made - other).max() > 0
    assert np.abs(made - expected).mean() < 3  # bfloat16 in the app
