"""Make data/fashion_mnist_tiny.parquet: the first 95 training images of each class of Fashion-MNIST.

apt-get install dataset-fashion-mnist
python -m scripts.make_smoke_data /usr/share/datasets/fashion-mnist data/fashion_mnist_tiny.parquet
"""

import io
import sys

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ddpm_hf.data import load_images

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PER_CLASS = 95


def encode(image: np.ndarray) -> dict:
    """A grayscale PNG, as small as it gets."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return {"bytes": buffer.getvalue(), "path": None}


def main(source: str, target: str):
    data = load_images(source, sample_size=28)
    chosen = np.sort(np.concatenate([np.flatnonzero(data.labels == label)[:PER_CLASS] for label in range(len(NAMES))]))
    table = Dataset.from_dict(
        {"image": [encode(data.images[i, 0]) for i in chosen], "label": data.labels[chosen]},
        features=Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)}),
    )
    table.to_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
