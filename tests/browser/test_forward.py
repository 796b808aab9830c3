"""Forward: a picture noised up to t, the schedule, and the way back from there."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from driving import open_tab
from PIL import Image
from playwright.sync_api import expect

FORWARD = "#forward .forward"
BACK = "#forward .result .stage"
DROP = """(bytes) => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
  window.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
}"""


def photograph() -> bytes:
    """A picture with more detail than the model has pixels."""
    pixels = np.indices((300, 200)).sum(0) % 256
    buffer = io.BytesIO()
    Image.fromarray(np.stack([pixels, 255 - pixels, pixels // 2], -1).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def set_t(page, t: int):
    page.get_by_role("slider", name="Timestep").fill(str(t))
    page.wait_for_selector(f'{FORWARD}[data-t="{t}"]')


def choose_sampler(page, name: str):
    settings = page.locator("#forward-settings")
    settings.get_by_role("button", name="Sampler").click()
    settings.get_by_role("option", name=re.compile(f"^{re.escape(name)}")).first.click()


def sources(page) -> list[str]:
    return page.locator(f"{FORWARD} .frame img").evaluate_all("(images) => images.map((image) => image.src)")


@pytest.mark.slow
def test_an_example_disappears_as_t_grows(open_page):
    page = open_page("embedded")
    open_tab(page, "Forward")
    set_t(page, 0)
    facts = page.locator("#forward-settings .facts")
    expect(facts).to_contain_text("1.00")  # alpha-bar of almost one
    original, nearly = sources(page)[:2]
    set_t(page, 999)
    expect(facts).to_contain_text(re.compile(r"-\d\d\.\d dB"))
    assert sources(page)[0] == original
    assert sources(page)[1] not in (original, nearly)
    chart = page.get_by_role("img", name=re.compile("at t = 999 it is 0.00004"))
    expect(chart).to_be_visible()

    # the marker can be dragged, and the strip leads to its timesteps
    box = chart.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + 20)
    expect(page.get_by_role("slider", name="Timestep")).to_have_value(re.compile("^[34]..$"))
    page.get_by_role("button", name="25 %").click()
    page.wait_for_selector(f'{FORWARD}[data-t="249"]')
    strip = page.locator(".quarters img").evaluate_all("(images) => images.map((image) => image.src)")
    assert len(set(strip)) == 4 and strip[0] == sources(page)[1]

    # another example is another picture, and chooses its class
    page.locator(".examples").get_by_role("radio", name="Bag").check(force=True)
    page.wait_for_function(f"(src) => document.querySelector('{FORWARD} .frame img').src !== src", arg=original)
    expect(page.get_by_role("combobox", name="Class").locator("visible=true")).to_have_value("Bag")

    # A little noise taken away again leaves the picture much as it was. With DDIM: it adds no noise of its own, so that
    # what differs is what the network got wrong.
    set_t(page, 99)
    choose_sampler(page, "DDIM")
    expect(page.locator(".way-back .line")).to_have_text("From t = 99 down, 5 of them are left.")
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{FORWARD}[data-state=done]")
    page.wait_for_selector(f'{BACK}[data-shown="5"]')
    status = page.locator(f"{BACK} .stage-status")
    expect(status).to_have_text(re.compile(r"Done in [\d.]+ s"))
    expect(page.locator(f"{BACK} .stage-progress")).to_have_text("step 5 of 5 · finished")
    before, after = page.evaluate(
        """async () => {
          const grays = (drawable, width, height) => {
            const canvas = document.createElement("canvas");
            Object.assign(canvas, { width, height });
            const context = canvas.getContext("2d");
            context.drawImage(drawable, 0, 0);
            return [...context.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 0);
          };
          const image = document.querySelector(".forward .frame img");
          const { film } = ddpm.parts.forward.stage;
          await image.decode();
          const sheet = await film.picture(film.frames[film.total]);
          return [grays(image, 28, 28), grays(sheet, 28, 28)]; // of the first of them
        }"""
    )
    assert len(before) == 28 * 28
    correlation = np.corrcoef(before, after)[0, 1]
    print(f"correlation of a picture and its way back from t = 99: {correlation:.3f}")
    assert correlation > 0.9

    # the same again comes from memory; guidance is part of what is asked for
    page.get_by_role("button", name="Denoise from here").click()
    expect(status).to_have_text("Done: from memory, as made before")
    page.get_by_role("spinbutton", name="Guidance").locator("visible=true").fill("4")
    page.get_by_role("button", name="Denoise from here").click()
    expect(status).to_have_text(re.compile("in [\\d.]+ s"))
    assert page.evaluate("ddpm.parts.forward.stage.run.settings.guidance_scale") == 4


@pytest.mark.parametrize("model", ["shapes", pytest.param("colours", marks=pytest.mark.slow)])
def test_a_model_without_examples_invites_and_makes_one(open_page, model):
    page = open_page(model)
    expect(page.locator("#settings .classes[data-plain]")).to_have_count(1 if model == "shapes" else 0)
    assert page.locator("#settings .class-any").count() == 0  # no pictures, and nothing that stands for them
    open_tab(page, "Forward")
    forward = page.locator(FORWARD)
    expect(forward.get_by_text("Your picture goes here.")).to_be_visible()
    assert not any(image.is_visible() for image in forward.locator("img").all())
    page.get_by_role("button", name="Denoise from here").click()
    expect(forward).to_contain_text("Drop in a picture first.")

    page.get_by_role("button", name="Let the model make one").click()
    page.wait_for_selector(f"{FORWARD}[data-t]")
    expect(forward.get_by_text("Your picture goes here.")).to_be_hidden()
    expect(page.get_by_role("button", name="Let the model make another")).to_be_enabled()
    for seed in ("", "7"):  # another one, with the seed as it is and with a new one
        made = sources(page)[0]
        if seed:
            page.locator("#forward-settings").get_by_role("spinbutton", name=re.compile("^Seed")).fill(seed)
        page.get_by_role("button", name="Let the model make another").click()
        page.wait_for_function(f"(src) => document.querySelector('{FORWARD} .frame img').src !== src", arg=made)


def test_a_picture_of_ones_own_by_choosing_and_by_dropping(open_page):
    page = open_page("colours")
    open_tab(page, "Forward")
    expect(page.locator(FORWARD)).to_contain_text("drop in a picture of your own")
    chooser = page.locator("#forward-settings input[type=file]")
    chooser.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photograph()})
    page.wait_for_selector(f"{FORWARD}[data-t]")
    chosen = sources(page)[0]
    assert chosen.startswith("data:image/png")

    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (10, 200, 30)).save(buffer, "PNG")
    page.evaluate(DROP, list(buffer.getvalue()))
    page.wait_for_function(f"(src) => document.querySelector('{FORWARD} .frame img').src !== src", arg=chosen)
    expect(page.locator(".notice")).to_be_hidden()  # it holds no settings

    page.get_by_role("slider", name="Timestep").fill("700")
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{FORWARD}[data-state=done]")
    expect(page.locator(f"{BACK} .cells button")).to_have_count(9)
    assert page.evaluate("ddpm.parts.forward.stage.run.settings.t") == 700

    chooser.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"})
    expect(page.locator(FORWARD)).to_contain_text("no picture that your browser can read")


def test_a_png_that_was_made_here_is_a_picture_and_offers_its_settings(open_page):
    page = open_page(path="/?num_images=1&steps=3&seed=11&sampler=ddim")
    page.wait_for_selector("#stage .stage[data-state=done]")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save PNG").click()
    expect(page.get_by_role("button", name="Saved")).to_be_visible()
    expect(page.get_by_role("button", name="Save PNG")).to_be_enabled()
    made = list(Path(waiting.value.path()).read_bytes())

    fresh = open_page()
    open_tab(fresh, "Forward")
    fresh.evaluate(DROP, made)
    fresh.wait_for_selector(f"{FORWARD}[data-t]")
    assert sources(fresh)[0].startswith("data:image/png")
    fresh.get_by_role("alert").get_by_role("button", name="Restore them").click()
    expect(fresh.locator("#stage")).to_be_visible()
    fresh.wait_for_selector("#stage .stage[data-state=done]")
    expect(fresh.locator("#field-seed")).to_have_value("11")
    expect(fresh.locator("#settings").get_by_role("button", name="Sampler: DDIM")).to_be_visible()
