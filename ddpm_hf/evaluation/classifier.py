"""A small classifier whose features say how alike images are: its network, and its training in a few minutes.

Scores on features of the data's own domain tell what ImageNet's cannot: whether a shirt is a good shirt (see Heusel
et al. 2017 on the distance, and Kynkaanniemi et al. 2023 on what ImageNet's classes do to it).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from tqdm.auto import tqdm

from ddpm_hf.data import ImageData, epoch_order, mixed_seed
from ddpm_hf.devices import best_device, bf16_is_faster
from ddpm_hf.ownership import CLASSIFIER, replace_folder

BATCH = 128
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
LARGEST_SHIFT = 2  # pixels


class Classified(NamedTuple):
    """features: float32 (B, D), what the last layer sees. logits: float32 (B, num_classes)."""

    features: torch.Tensor
    logits: torch.Tensor


class ResidualPair(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a skip connection (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, in, H, W) -> (B, out, H, W)
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class ImageClassifier(ModelMixin, ConfigMixin):
    """A residual network: per width two ``ResidualPair``, halving the resolution between widths, then the mean.

    Args:
        sample_size: (height, width) of the images in pixels.
        in_channels: 1 for grayscale, 3 for RGB.
        num_classes: number of logits.
        block_out_channels: width of each resolution; the last is the number of features.
        id2label: class names by label, ``{"0": "T-shirt/top", ...}``, where known.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, int] = (28, 28),
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        id2label: dict | None = None,
    ):
        super().__init__()
        widths = block_out_channels
        self.input_conv = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        pairs = []
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            pool = nn.MaxPool2d(2, ceil_mode=True) if i else nn.Identity()
            pairs.append(nn.Sequential(pool, ResidualPair(before, width), ResidualPair(width, width)))
        self.levels = nn.ModuleList(pairs)
        self.out = nn.Linear(widths[-1], num_classes)

    def forward(self, images: torch.Tensor) -> Classified:
        """images (B, C, H, W) in [0, 1] -> features (B, D) and logits (B, num_classes)."""
        x = self.input_conv((images * 2 - 1).to(memory_format=torch.channels_last))
        for level in self.levels:
            x = level(x)
        features = x.float().mean((2, 3))
        return Classified(features, self.out(features).float())


def train_classifier(
    data: ImageData,
    *,
    epochs: int = 8,
    seed: int = 0,
    flip: bool = False,
    device: torch.device | None = None,
    on_epoch: Callable[[int, ImageClassifier], None] | None = None,
) -> ImageClassifier:
    """Train a classifier on all images of ``data``: AdamW, one cycle of the learning rate (Smith and Topin 2018).

    Images are shifted by up to two pixels and, with ``flip``, mirrored at random.

    Args:
        data: labelled images; the network sees them at ``data.output_size``, the size that generated ones have.
        on_epoch: called after every epoch with its number, from 1, and the network in evaluation mode.
    """
    device = device or best_device()
    torch.manual_seed(mixed_seed(seed))
    names = data.label_names and {str(i): name for i, name in enumerate(data.label_names)}
    network = ImageClassifier(tuple(data.output_size), data.num_channels, data.num_classes, id2label=names)
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    per_epoch = max(1, len(data) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * per_epoch)
    half = bf16_is_faster(device)
    generator = torch.Generator().manual_seed(mixed_seed(seed, 1))

    with tqdm(total=epochs * per_epoch, unit="step", desc="training the classifier") as bar:
        for epoch in range(epochs):
            network.train()
            order = epoch_order(mixed_seed(seed, 2), epoch, len(data))
            for step in range(per_epoch):
                chosen = order[step * BATCH : (step + 1) * BATCH]
                images = _shifted(data.shown(chosen), generator, flip).to(device).float() / 255
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = network(images).logits
                loss = F.cross_entropy(logits, torch.from_numpy(data.labels[chosen]).to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if on_epoch is not None:
                on_epoch(epoch + 1, network.eval())
    return network.eval()


def save_classifier(folder: Path, network: ImageClassifier) -> int:
    """Write the network in half precision, whole or not at all; returns the bytes of its weights.

    A classifier in ``folder`` is replaced, other files there stay.

    ``network`` is rounded to it, so that what is measured afterwards is what was written.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
        partial = Path(parent) / "new"
        network.half().save_pretrained(partial, safe_serialization=True)
        network.float()
        replace_folder(folder, partial, CLASSIFIER)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@torch.inference_mode()
def accuracy(network: ImageClassifier, data: ImageData, batch: int = 500) -> float:
    """Share of the images of ``data`` whose label has the largest logit."""
    device, right = next(network.parameters()).device, 0
    for start in range(0, len(data), batch):
        chosen = np.arange(start, min(start + batch, len(data)))
        logits = network(data.shown(chosen).to(device).float() / 255).logits
        right += int((logits.argmax(1).cpu().numpy() == data.labels[chosen]).sum())
    return right / len(data)


def _shifted(images: torch.Tensor, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Every image moved by up to ``LARGEST_SHIFT`` pixels, zeros coming in, and every second one mirrored."""
    count, _, height, width = images.shape
    padded = F.pad(images, (LARGEST_SHIFT,) * 4)
    offsets = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, count, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)  # (B, H)
    columns = offsets[1] + torch.arange(width)  # (B, W)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
