"""What a visitor does and sees, in words for the tests."""

import re

from playwright.sync_api import Page, expect

STAGE = "#stage .stage"
PATIENCE = 120_000  # ms; on a busy machine


def set_number(page: Page, label: str, value: int | float):
    """Types into the number beside a slider, or into the seed."""
    box = page.locator("#settings").get_by_role("spinbutton", name=re.compile(f"^{label}"))
    box.fill(str(value))
    box.press("Tab")


def generate(page: Page):
    page.get_by_role("button", name="Generate", exact=True).click()


def stop(page: Page):
    page.locator("#settings").get_by_role("button", name="Stop").click()


def wait_for_state(page: Page, state: str, where: str = STAGE):
    page.wait_for_selector(f"{where}[data-state={state}]")


def wait_for_step(page: Page, step: int, where: str = STAGE):
    page.wait_for_selector(f'{where}[data-shown="{step}"]')


def finish(page: Page, steps: int):
    """Waits until a run is done and its last frame on the canvas."""
    wait_for_state(page, "done")
    wait_for_step(page, steps)


def wait_for_frames(page: Page, count: int):
    page.wait_for_function(f"Number(document.querySelector('{STAGE}').dataset.frames) > {count}")


def stage(page: Page) -> dict:
    return page.evaluate(f"({{ ...document.querySelector('{STAGE}').dataset }})")


def picture(page: Page, where: str = f"{STAGE} canvas") -> str:
    """What is on a canvas, as a data URL."""
    return page.evaluate(f"document.querySelector('{where}').toDataURL()")


def pixels_are_blank(page: Page, where: str = f"{STAGE} canvas") -> bool:
    script = f"""() => {{
      const canvas = document.querySelector("{where}");
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return new Set(new Uint32Array(data.buffer)).size < 3;
    }}"""
    return page.evaluate(script)


def open_tab(page: Page, name: str):
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
