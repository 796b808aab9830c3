"""Take away: files, link and code of what is on the stage, and that they all mean the same images, to the byte."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from driving import finish, generate, open_tab, set_number, wait_for_state
from gradio_client import Client
from helpers import ROOT
from PIL import Image
from playwright.sync_api import expect

QUERY = "?num_images=3&class_name=any&guidance_scale=2&sampler=heun&steps=5&seed=7"


def download(page, press) -> Path:
    with page.expect_download() as waiting:
        press()
    return Path(waiting.value.path()), waiting.value.suggested_filename


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(file))


@pytest.mark.slow
def test_page_link_api_and_command_line_agree_to_the_byte(open_page, servers, tmp_path):
    # the page, by its controls
    page = open_page()
    for label, value in (("Images", 3), ("Steps", 5), ("Guidance", 2), ("Seed", 7)):
        set_number(page, label, value)
    page.get_by_role("button", name="Sampler").locator("visible=true").click()
    page.get_by_role("option", name="Heun").locator("visible=true").click()
    generate(page)
    finish(page, 9)
    by_page, name = download(page, page.get_by_role("button", name="Save PNG").click)
    assert name == "shapes-7.png"

    # the link that it gives, opened by somebody else
    open_tab(page, "Take away")
    link = page.get_by_role("textbox", name="Link to this run")
    expect(link).to_have_value(re.compile(re.escape("num_images=3&class_name=any&guidance_scale=2&sampler=heun")))
    path = link.input_value().removeprefix(servers("shapes").url)
    other = open_page(path=path)
    finish(other, 9)
    by_link, _ = download(other, other.get_by_role("button", name="Save PNG").click)
    assert by_link.read_bytes() == by_page.read_bytes()

    # what the visitor saw last: the stage's own frame holds the same pixels
    shown = other.evaluate("ddpm.parts.stage.film.frames.at(-1).src")
    sheet = pixels(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
    columns = sheet.shape[1] // 14
    corners = [(14 * (i // columns), 14 * (i % columns)) for i in range(3)]
    last = [sheet[top : top + 14, left : left + 14] for top, left in corners]

    settings = {"num_images": 3, "guidance_scale": 2, "sampler": "heun", "steps": 5, "seed": 7}
    answer = Client(servers("shapes").url, verbose=False).predict(**settings, api_name="/generate")
    by_api = [pixels(io.BytesIO(base64.b64decode(image["png"]))) for image in answer["images"]]

    words = ["--num-images", "3", "--guidance-scale", "2", "--scheduler", "heun", "--steps", "5", "--seed", "7"]
    words += ["--guidance-interval", "0,400"]  # the default of page and API for a model that carries none
    output = tmp_path / "images.npz"
    command = [sys.executable, "-m", "ddpm_hf", "sample", str(servers("shapes").model), *words, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the app has it
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    by_command = np.load(output)["images"]

    np.testing.assert_array_equal(np.stack(by_api), by_command)
    np.testing.assert_array_equal(np.stack(last), by_command)
    np.testing.assert_array_equal(pixels(by_page), pixels(io.BytesIO(base64.b64decode(answer["grid_png"]))))


@pytest.mark.parametrize(
    ("name", "frames"), [("PNG", 1), ("GIF", 5), ("WebP", 5), pytest.param("MP4", None, marks=pytest.mark.slow)]
)
def test_every_kind_of_file(open_page, name, frames):
    page = open_page("colours", path="/?num_images=2&steps=5&seed=3#take-away")
    finish_hidden(page, 5)
    open_tab(page, "Take away")
    expect(page.get_by_role("combobox", name="Which images")).to_have_value("")
    file, suggested = download(page, page.locator(f"[data-kind={name.lower()}]").click)
    assert suggested == f"colours-3.{name.lower()}"
    expect(page.locator("#take-away")).to_contain_text(f"{suggested}: ")
    if frames is None:
        assert file.read_bytes()[4:8] == b"ftyp"
    else:
        image = Image.open(file)
        assert image.format == name.upper() and getattr(image, "n_frames", 1) == pytest.approx(frames, abs=1)


def finish_hidden(page, steps: int):
    page.wait_for_selector(f'#stage .stage[data-state=done][data-shown="{steps}"]', state="attached")


def test_a_png_brings_its_settings_back(open_page):
    page = open_page(path="/?num_images=4&class_name=square&steps=6&seed=11&sampler=ddim&guidance_scale=1.5")
    finish(page, 6)
    file, _ = download(page, page.get_by_role("button", name="Save PNG").click)
    assert json.loads(Image.open(file).info["ddpm_hf"])["seed"] == 11

    fresh = open_page()
    drop = """(bytes) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
      window.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    fresh.evaluate(drop, list(file.read_bytes()))
    finish(fresh, 6)
    settings = fresh.locator("#settings")
    for label, value in (("Images", "4"), ("Steps", "6"), ("Guidance", "1.5"), ("Seed", "11")):
        expect(settings.get_by_role("spinbutton", name=label)).to_have_value(value)
    expect(settings.get_by_role("spinbutton", name="to timestep")).to_have_value("1000")  # 1.5 alone: everywhere
    expect(settings.get_by_role("radio", name="square")).to_be_checked()
    expect(settings.get_by_role("button", name="Sampler: DDIM")).to_be_visible()

    # one of the images alone
    open_tab(page, "Take away")
    page.get_by_role("combobox", name="Which images").select_option("Image 3")
    alone, suggested = download(page, page.locator("[data-kind=png]").click)
    assert suggested == "shapes-13.png" and pixels(alone).shape == (14, 14)

    # a file without settings is reported
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    fresh.evaluate(drop, list(buffer.getvalue()))
    expect(fresh.get_by_role("alert")).to_contain_text("This picture holds no settings")


def test_code_for_what_is_on_screen_runs(open_page, tmp_path):
    page = open_page(path="/?num_images=2&steps=3&seed=5")
    finish(page, 3)
    open_tab(page, "Take away")
    code = page.get_by_label("Code", exact=True)
    expect(code).to_contain_text("from_pretrained")
    page.get_by_role("button", name="curl").click()
    expect(code).to_contain_text("curl -s http://127.0.0.1")
    page.get_by_role("button", name="gradio_client").click()
    expect(code).to_contain_text("Client(")
    script = code.inner_text()
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["5.png", "6.png"]


def test_a_link_out_of_range_is_told_and_nothing_runs(open_page):
    page = open_page(path="/?steps=5000&seed=-3")
    expect(page.get_by_role("alert")).to_contain_text("must be a whole number")
    wait_for_state(page, "empty")
