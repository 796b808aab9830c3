"""Make the pictures of the README from the embedded model: samples, denoising, noise, loss and the app, in docs/.

    python -m scripts.make_pictures

The screenshot wants Playwright, and Chromium of the distribution or of `playwright install chromium`.
"""

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from ddpm_hf.report import draw_loss, read_metrics

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pretrained" / "fashion_mnist_small"
TINY = "data/fashion_mnist_tiny.parquet"
DEBIAN_CHROMIUM = Path("/usr/bin/chromium")


def ddpm_hf(*arguments: str):
    subprocess.run([sys.executable, "-m", "ddpm_hf", *arguments], cwd=ROOT, check=True)


def loss_curve(output: str):
    """The losses of the run that made the model."""
    figure = draw_loss(read_metrics(MODEL / "metrics.jsonl"))
    figure.savefig(ROOT / "docs" / output)


def screenshot(output: str):
    """The page after one press of Generate, its last frame on the stage."""
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = app.stdout.readline().split()[-1]
        with sync_playwright() as playwright:
            path = DEBIAN_CHROMIUM if DEBIAN_CHROMIUM.exists() else None
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 940}, color_scheme="light")
            page.goto(url)
            page.get_by_role("button", name="Generate").click()
            page.wait_for_selector(".stage[data-state=done]", timeout=120_000)
            page.wait_for_function("document.querySelector('.stage').dataset.shown === '20'")
            page.wait_for_timeout(500)
            page.screenshot(path=ROOT / "docs" / output)
            browser.close()
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    ddpm_hf("sample", "--seed", "0", "--num-images", "40", "--output", "docs/samples.png")
    ddpm_hf("sample", "--seed", "0", "--num-images", "10", "--output", "docs/denoising.gif")
    ddpm_hf("noise", str(MODEL.relative_to(ROOT)), "--dataset", TINY, "--output", "docs/noise.png")
    loss_curve("loss.png")
    screenshot("app.png")
