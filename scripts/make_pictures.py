"""Make the pictures of the README and docs/ from the shipped model: samples, denoising, noise, loss and the app.

    python -m scripts.make_pictures

The screenshot wants Playwright, and Chromium of the distribution or of `playwright install chromium`.
"""

import subprocess
import sys
from pathlib import Path

from ddpm_hf.report import draw_loss
from ddpm_hf.run import RunFolder
from scripts import make_screenshots

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pretrained" / "fashion_mnist_small"
TINY = "data/fashion_mnist_tiny.parquet"


def ddpm_hf(*arguments: str):
    subprocess.run([sys.executable, "-m", "ddpm_hf", *arguments], cwd=ROOT, check=True)


def loss_curve(output: str):
    """The losses of the run that made the model."""
    figure = draw_loss(RunFolder(MODEL).lines())
    figure.savefig(ROOT / "docs" / output)


if __name__ == "__main__":
    ddpm_hf("sample", "--seed", "0", "--num-images", "40", "--output", "docs/samples.png")
    ddpm_hf("sample", "--seed", "0", "--num-images", "10", "--output", "docs/denoising.gif")
    ddpm_hf("noise", str(MODEL.relative_to(ROOT)), "--dataset", TINY, "--output", "docs/noise.png")
    loss_curve("loss.png")
    make_screenshots.main([])
