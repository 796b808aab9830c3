"""The presets on their real Hub ids, which the double serves: their data are read and trained on as they say."""

import huggingface_hub
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from helpers import ROOT
from PIL import Image
from tiny_runs import DATA, metrics

from ddpm_hf.config import load_config
from ddpm_hf.hub import load_pipeline
from ddpm_hf.training import Trainer

FLOWERS = 102


@pytest.fixture
def served(hub):
    """Puts a parquet file on the Hub as a split of a data set."""

    def serve(repo: str, split: str, file):
        owner = repo.split("/")[0]
        hub.add_user(f"hf_{owner}", owner)
        api = huggingface_hub.HfApi(token=f"hf_{owner}")
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        name = f"data/{split}-00000-of-00001.parquet"
        api.upload_file(path_or_fileobj=str(file), path_in_repo=name, repo_id=repo, repo_type="dataset")

    return serve


def flowers(path, count: int, seed: int) -> str:
    """Discs of a colour on another, as RGB pictures of several sizes with labels of 102 classes."""
    random = np.random.default_rng(seed)

    def picture(height: int, width: int) -> Image.Image:
        rows, columns = np.mgrid[:height, :width]
        disc = np.hypot(rows - height / 2, columns - width / 2) < min(height, width) / 3
        return Image.fromarray(np.where(disc[..., None], *random.integers(0, 256, (2, 3), np.uint8)))

    images = [picture(*random.integers(40, 90, 2)) for _ in range(count)]
    labels = random.integers(0, FLOWERS, count)
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=FLOWERS)})
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)
    return path


def trained(preset: str, folder, *arguments: str) -> Trainer:
    words = ["--config", str(ROOT / "configs" / f"{preset}.yaml"), "--output_dir", str(folder), "--report_to", "none"]
    trainer = Trainer(load_config([*words, "--max_train_steps", "2", "--num_samples", "2", *arguments]))
    trainer.train()
    return trainer


@pytest.mark.slow
def test_flowers102(served, tmp_path):
    for split, count, seed in (("train", 24, 0), ("test", 16, 1)):
        served("nelorth/oxford-flowers", split, flowers(tmp_path / f"{split}.parquet", count, seed))
    trainer = trained("flowers102", tmp_path / "run")
    assert len(trainer.data) + len(trainer.validation_data) == 40  # of both splits, some held out
    assert trainer.data.num_channels == 3 and trainer.data.images.shape[1:] == (3, 32, 32)
    pipeline = load_pipeline(tmp_path / "run")
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) == 20_728_259
    image = pipeline(1, num_inference_steps=2, seed=0).images[0]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert np.isfinite(metrics(tmp_path / "run")[-1]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["fashion_mnist_small", "fashion_mnist"])
def test_fashion_mnist(served, tmp_path, preset):
    served("zalando-datasets/fashion_mnist", "train", DATA)
    trainer = trained(preset, tmp_path / "run", "--train_batch_size", "4")
    assert trainer.data.output_size == (28, 28) and trainer.data.num_classes == 10
    pipeline = load_pipeline(tmp_path / "run")
    image = pipeline(1, num_inference_steps=2, seed=0).images[0]
    assert (image.mode, image.size) == ("L", (28, 28))
    assert (pipeline.num_classes, pipeline.scheduler.config.prediction_type) == (
        (10, "sample") if preset == "fashion_mnist_small" else (None, "epsilon")
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
def test_emoji_in_patches(tmp_path, size):
    for name, colour in (("face", "yellow"), ("sign", "blue")):
        (tmp_path / "emoji" / name).mkdir(parents=True)
        for i in range(4):
            square = Image.new("RGBA", (size, size))
            square.paste(Image.new("RGBA", (size // 2, size // 2), colour), (i, size // 4))
            square.save(tmp_path / "emoji" / name / f"{i}.png")
    trainer = trained(f"emoji_{size}", tmp_path / "run", "--dataset", str(tmp_path / "emoji"), "--label_column", "null")
    assert trainer.data.images.shape[1:] == (3, size, size)
    assert size // trainer.config.patch_size == 32
    image = load_pipeline(tmp_path / "run")(1, num_inference_steps=2, seed=0, class_labels=[0]).images[0]
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert np.isfinite(metrics(tmp_path / "run")[-1]["loss"])
