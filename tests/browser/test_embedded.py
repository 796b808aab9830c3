"""The first of the README's two commands: ``python app.py``, on the model that ships with the repository."""

import base64
import io

import numpy as np
import pytest
from app_server import AppServer
from driving import PATIENCE, STAGE, finish, generate, stage
from gradio_client import Client
from PIL import Image
from playwright.sync_api import expect

from ddpm_hf import sampling
from ddpm_hf.devices import best_dtype
from ddpm_hf.hub import load_allowed


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    server = AppServer(None, tmp_path_factory.mktemp("embedded"))  # one thread, like this process: rounding differs
    yield server
    server.stop()


@pytest.mark.slow
def test_clothes_appear_frame_by_frame(app, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 940})
    page.goto(app.url)
    page.set_default_timeout(PATIENCE)
    generate(page)
    finish(page, 20)
    assert stage(page)["frames"] == "21"
    expect(page.locator("#stage .stage-progress")).to_contain_text("step 20 of 20")
    shot = page.locator(f"{STAGE} canvas").first.screenshot(path=tmp_path / "clothes.png")
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
    assert (pixels < 40).mean() > 0.3  # dark ground
    assert (pixels > 120).mean() > 0.1  # bright garments
    page.close()


@pytest.mark.slow
def test_the_api_and_the_library_make_the_same_pictures(app):
    answer = Client(app.url, verbose=False).predict(num_images=3, steps=5, seed=7, api_name="/generate")
    served = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"])))) for image in answer["images"]]
    model = sampling.with_sampler(load_allowed(dtype=best_dtype()), "dpm-sde")
    expected = sampling.generate(model, 3, steps=5, seed=7)  # with the model's own guidance
    assert [image["name"] for image in answer["images"]] == ["Sneaker", "Bag", "Ankle boot"]
    assert np.abs(np.stack(served).astype(int) - expected.arrays()["images"]).max() <= 1
