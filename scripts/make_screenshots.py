"""Make the pictures of the page for the docs: starts the app on the embedded model, uses it, writes docs/app*.png.

    python -m scripts.make_screenshots [NAME ...]

NAME is one of those below, such as app-forward; without, all are made. It wants Playwright,
and Chromium of the distribution or of `playwright install chromium`.
"""

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DEBIAN_CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 600_000  # ms: the comparison takes a thousand steps
WIDE, PHONE = (1280, 900), (390, 844)
MAX_BYTES = 300_000  # of a picture; a larger one gets a palette


def generated(page: Page):
    """Generate, after one press."""
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_selector('#stage .stage[data-state=done][data-shown="20"]')


def watched(page: Page):
    """Generate, in the middle of the way: noise beside guess."""
    generated(page)
    page.get_by_role("slider", name="Step shown").fill("11")
    page.wait_for_selector('#stage .stage[data-shown="11"]')


def compared(page: Page):
    """Compare, with distances."""
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare").get_by_role("button", name="Add a sampler").click()
    page.locator("#compare").get_by_role("button", name="Compare").click()
    page.wait_for_selector("#compare .compare[data-state=measuring]")
    page.wait_for_selector("#compare .compare[data-state=done]")
    if not page.locator("#compare .distances b").last.inner_text()[0].isdigit():
        print("note: too busy a machine for the distances of Compare: make app-dark again later.", file=sys.stderr)


def noised(page: Page):
    """Forward, and back from a quarter of the way."""
    page.get_by_role("tab", name="Forward").click()
    page.locator(".examples").get_by_role("radio").nth(7).check(force=True)
    page.get_by_role("slider", name="Timestep").fill("299")
    page.wait_for_selector('.forward[data-t="299"]')
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector('#forward .result .stage[data-state=done][data-shown="15"]')


def explained(page: Page):
    """How it works, in the middle of a run."""
    generated(page)
    page.get_by_role("tab", name="How it works").click()
    page.get_by_role("slider", name="Timestep t").locator("visible=true").fill("249")
    page.get_by_role("slider", name="Step of the run").fill("13")
    page.wait_for_selector('#stage .stage[data-shown="13"]', state="attached")


def taken_away(page: Page):
    """Take away."""
    generated(page)
    page.get_by_role("tab", name="Take away").click()
    page.wait_for_function("document.querySelector('#take-away pre').textContent.length > 100")


def enlarged(page: Page):
    """Generate, one image enlarged."""
    generated(page)
    page.get_by_role("button", name="Enlarge image 8 ").click()


# name: (what to do, window, dark)
PICTURES: dict[str, tuple[Callable[[Page], None], tuple[int, int], bool]] = {
    "app": (watched, WIDE, False),
    "app-dark": (compared, WIDE, True),
    "app-forward": (noised, WIDE, False),
    "app-theory": (explained, WIDE, False),
    "app-take-away": (taken_away, WIDE, True),
    "app-phone": (generated, PHONE, False),
    "app-phone-dark": (enlarged, PHONE, True),
}


def picture(browser: Browser, url: str, name: str):
    """Write docs/NAME.png."""
    use, (width, height), dark = PICTURES[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")
    use(page)
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot(full_page=(width, height) == WIDE))).convert("RGB")
    context.close()
    buffer = io.BytesIO()
    shot.save(buffer, "PNG", optimize=True)
    if buffer.tell() > MAX_BYTES:
        shot.quantize(256, dither=Image.Dither.NONE).save(buffer := io.BytesIO(), "PNG", optimize=True)
    (DOCS / f"{name}.png").write_bytes(buffer.getvalue())


def main(names: list[str]):
    unknown = set(names) - set(PICTURES)
    if unknown:
        sys.exit(f"error: there is no picture {', '.join(sorted(unknown))}; known are {', '.join(PICTURES)}.")
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = next(line for line in app.stdout if line.startswith("open ")).split()[-1]
        threading.Thread(target=app.stdout.read, daemon=True).start()  # its log, which must not fill the pipe
        with sync_playwright() as playwright:
            path = DEBIAN_CHROMIUM if DEBIAN_CHROMIUM.exists() else None
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            for name in names or PICTURES:
                picture(browser, url, name)
            browser.close()
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
