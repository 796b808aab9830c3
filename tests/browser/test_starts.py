"""Forward, from a picture: variations, drawing, a part made anew, the way between two; with link, file and address."""

import base64
import json
from pathlib import Path

import pytest
from driving import open_tab
from PIL import Image
from playwright.sync_api import expect
from test_forward import BACK, DROP, FORWARD
from test_ui_forward import file_url
from test_use import png

WHITE = list(base64.b64decode(file_url(Image.new("L", (20, 20), 255)).partition(",")[2]))
MODELS = pytest.mark.parametrize("model", ["shapes", pytest.param("colours", marks=pytest.mark.slow)])


def open_forward(open_page, model="shapes", **options):
    """Forward, with a picture of one's own."""
    page = open_page(model, **options)
    open_tab(page, "Forward")
    page.evaluate(DROP, png())
    page.wait_for_selector(f"{FORWARD}[data-t]")
    return page


def denoise(page, count: int = 9):
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{BACK}[data-state=done]")
    expect(page.locator(f"{BACK} .cells button")).to_have_count(count)


def settings(page) -> dict:
    return page.evaluate("ddpm.parts.forward.stage.run.settings")


def stroke(page, where: str, *points):
    """A line over shares of an element, with the pointer."""
    box = page.locator(where).bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def last_pixels(page) -> list[list[int]]:
    """The finished images' sheet, as gray or red values by row."""
    return page.evaluate(
        """async () => {
          const { film } = ddpm.parts.forward.stage, sheet = await film.picture(film.frames[film.total]);
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [sheet.naturalWidth, sheet.naturalHeight];
          const context = canvas.getContext("2d", { willReadFrequently: true });
          context.drawImage(sheet, 0, 0);
          const rows = [];
          for (let y = 0; y < canvas.height; y++)
            rows.push([...context.getImageData(0, y, canvas.width, 1).data].filter((_, i) => i % 4 === 0));
          return rows;
        }"""
    )


@MODELS
def test_nine_variations_have_an_address_a_link_and_a_png(open_page, model):
    page = open_forward(open_page, model)
    denoise(page)
    made = last_pixels(page)
    address = page.url
    assert "#forward?" in address and "image=data" in address
    page.reload()
    page.wait_for_selector(f"{BACK}[data-state=done]")
    expect(page.get_by_role("tab", name="Forward")).to_have_attribute("aria-selected", "true")
    assert last_pixels(page) == made

    with page.expect_download() as waiting:
        page.locator("#forward").get_by_role("button", name="Save PNG").click()
    file = Path(waiting.value.path())
    assert json.loads(Image.open(file).info["ddpm_hf"])["t"] == settings(page)["t"]
    page.locator("#forward").get_by_role("button", name="More").click()
    expect(page.get_by_role("textbox", name="Link to this run")).to_have_value(address)
    expect(page.get_by_label("Code", exact=True)).to_contain_text('api_name="/vary"')

    open_tab(page, "Forward")
    assert page.url == address

    fresh = open_page(model)
    fresh.evaluate(DROP, list(file.read_bytes()))
    fresh.wait_for_selector(f"{BACK}[data-state=done]")
    assert last_pixels(fresh) == made


def test_back_leads_from_run_to_run(open_page):
    page = open_forward(open_page)
    denoise(page)
    first = settings(page)["t"]
    page.get_by_role("slider", name="Timestep").fill("700")
    expect(page.locator(f"{BACK} .stage-status")).to_contain_text("Made with other settings")
    denoise(page)
    page.go_back()
    page.wait_for_function(f"ddpm.parts.forward.stage.run.settings.t === {first}")
    expect(page.get_by_role("slider", name="Timestep")).to_have_value(str(first))


@MODELS
def test_a_drawing_is_turned_into_pictures(open_page, model):
    page = open_page(model)
    open_tab(page, "Forward")
    page.get_by_role("button", name="Draw", exact=True).click()
    colours = page.get_by_role("group", name="Colour").get_by_role("button")
    expect(colours).to_have_count(5 if model == "shapes" else 10)
    colours.nth(4 if model == "shapes" else 3).click()
    page.wait_for_selector(f"{FORWARD}[data-t]")
    blank = page.locator(f"{FORWARD} .frame img").first.get_attribute("src")
    stroke(page, f"{FORWARD} .pad:not(.mask)", (0.2, 0.3), (0.8, 0.7))
    page.wait_for_function(f"(src) => document.querySelector('{FORWARD} .frame img').src !== src", arg=blank)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function(f"(src) => document.querySelector('{FORWARD} .frame img').src === src", arg=blank)
    stroke(page, f"{FORWARD} .pad:not(.mask)", (0.2, 0.3), (0.8, 0.7))
    page.get_by_role("button", name="Done").click()
    denoise(page)
    assert settings(page)["image"].startswith("data:image/png") and "mask" not in settings(page)


@MODELS
def test_a_part_is_made_anew_and_the_rest_stays(open_page, model):
    page = open_forward(open_page, model, width=390, height=844)
    page.get_by_role("button", name="Paint over a part").click()
    page.get_by_role("button", name="Broad").click()
    assert page.locator(f"{FORWARD} .pad.mask").bounding_box()["width"] > 300  # room for a finger
    stroke(page, f"{FORWARD} .pad.mask", (0.1, 0.9), (0.9, 0.9))
    expect(page.locator(FORWARD)).to_contain_text("What is marked is made anew")
    expect(page.get_by_role("slider", name="Timestep")).to_have_value("999")
    denoise(page)
    assert settings(page)["mask"].startswith("data:image/png")
    rows = last_pixels(page)
    assert len(set(rows[1])) == 1  # of one colour, as the picture is
    size = page.evaluate("ddpm.page.description.image_size[1]")
    assert len(set(rows[size - 2])) > 5

    # the mask travels with the link
    page.reload()
    page.wait_for_selector(f"{BACK}[data-state=done]")
    assert last_pixels(page) == rows
    expect(page.locator(f"{FORWARD} .pad.mask")).to_be_visible()
    # another picture has no mask
    page.evaluate(DROP, WHITE)
    expect(page.locator(FORWARD)).not_to_contain_text("What is marked")


@MODELS
def test_the_way_between_two_pictures_is_a_strip_and_a_loop(open_page, model):
    page = open_forward(open_page, model)
    page.get_by_role("button", name="The way to a second picture").click()
    page.get_by_role("button", name="Denoise from here").click()
    expect(page.locator(FORWARD)).to_contain_text("Pick the second picture")
    page.evaluate(DROP, WHITE)
    denoise(page)
    assert settings(page)["to_image"].startswith("data:image/png")
    loop = page.get_by_role("img", name="as a loop")
    expect(loop).to_be_visible()
    before = loop.evaluate("(canvas) => canvas.toDataURL()")
    page.wait_for_function(
        "(before) => document.querySelector('.forward .sources figure:last-child canvas').toDataURL() !== before",
        arg=before,
    )
    page.reload()
    page.wait_for_selector(f"{BACK}[data-state=done]")
    expect(loop).to_be_visible()
    page.get_by_role("button", name="One picture alone").click()
    expect(loop).to_be_hidden()
    denoise(page)
    assert "to_image" not in settings(page)


def test_a_loop_stands_still_for_those_who_want_little_motion(open_page):
    page = open_forward(open_page)
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="The way to a second picture").click()
    page.evaluate(DROP, WHITE)
    denoise(page)
    loop = page.get_by_role("img", name="as a loop")
    expect(loop).to_be_visible()
    before = loop.evaluate("(canvas) => canvas.toDataURL()")
    page.wait_for_timeout(1000)
    assert loop.evaluate("(canvas) => canvas.toDataURL()") == before
