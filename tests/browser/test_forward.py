"""Forward: a picture noised up to t, the schedule, and the way back from there."""

import io
import re

import numpy as np
from driving import open_tab
from PIL import Image
from playwright.sync_api import expect

FORWARD = "#forward .forward"


def photograph() -> bytes:
    """A picture with more detail than the model has pixels."""
    pixels = np.indices((300, 200)).sum(0) % 256
    buffer = io.BytesIO()
    Image.fromarray(np.stack([pixels, 255 - pixels, pixels // 2], -1).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def set_t(page, t: int):
    page.get_by_role("slider", name="Timestep").fill(str(t))
    page.wait_for_selector(f'{FORWARD}[data-t="{t}"]')


def sources(page) -> list[str]:
    return page.locator(f"{FORWARD} .frame img").evaluate_all("(images) => images.map((image) => image.src)")


def test_an_example_disappears_as_t_grows(open_page):
    page = open_page("embedded")
    open_tab(page, "Forward")
    set_t(page, 0)
    facts = page.locator("#forward-settings .facts")
    expect(facts).to_contain_text("1.00")  # alpha-bar of almost one
    original, nearly = sources(page)
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

    # a little noise taken away again leaves the picture much as it was
    set_t(page, 59)
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{FORWARD}[data-state=done]")
    page.wait_for_selector(f'{FORWARD}[data-shown="3"]')
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
          const canvas = document.querySelector(".forward canvas");
          await image.decode();
          return [grays(image, canvas.width, canvas.height), grays(canvas, canvas.width, canvas.height)];
        }"""
    )
    assert len(before) == 28 * 28
    assert np.corrcoef(before, after)[0, 1] > 0.9


def test_a_picture_of_ones_own_by_choosing_and_by_dropping(open_page):
    page = open_page("colours")
    open_tab(page, "Forward")
    expect(page.locator(FORWARD)).to_contain_text("drop in a picture of your own")
    chooser = page.locator("#forward-settings input[type=file]")
    chooser.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photograph()})
    page.wait_for_selector(f"{FORWARD}[data-t]")
    chosen = sources(page)[0]
    assert chosen.startswith("data:image/png")

    drop = """(bytes) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
      window.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (10, 200, 30)).save(buffer, "PNG")
    page.evaluate(drop, list(buffer.getvalue()))
    page.wait_for_function(f"(src) => document.querySelector('{FORWARD} .frame img').src !== src", arg=chosen)

    page.get_by_role("slider", name="Timestep").fill("700")
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{FORWARD}[data-state=done]")
    expect(page.locator(FORWARD)).to_contain_text("back from t = 700")

    chooser.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"})
    expect(page.locator(FORWARD)).to_contain_text("no picture that your browser can read")
