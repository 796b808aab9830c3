import os
import sys
from pathlib import Path

import pytest
from driving import PATIENCE
from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ui"))  # app_server is shared with the tests over HTTP

expect.set_options(timeout=PATIENCE)

DEBIAN_CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(900))  # on a machine that does ten other things


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: Debian's where there is one, else Playwright's own.

    Not for the whole session: Playwright keeps an event loop in this thread, and other tests want their own.
    """
    try:
        from playwright.sync_api import sync_playwright

        playwright = sync_playwright().start()
        try:
            path = DEBIAN_CHROMIUM if DEBIAN_CHROMIUM.exists() else None
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Exception:
            playwright.stop()
            raise
    except Exception as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no browser: pip install playwright && playwright install chromium ({type(error).__name__})")
    yield browser
    browser.close()
    playwright.stop()


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Starts the app, once a model: "shapes", conditional and gray; "colours", neither; "embedded"; or "several"."""
    from app_server import AppServer, export_tiny

    running, folders = {}, tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (folders / name).exists():
            export_tiny(folders / name, conditional=name == "shapes")
        return folders / name

    def server(name: str) -> AppServer:
        if name not in running:
            model = None if name == "embedded" else folder("shapes" if name == "several" else name)
            others = {"MODELS": str(folder("colours"))} if name == "several" else {}
            running[name] = AppServer(model, tmp_path_factory.mktemp("scratch"), **others)
            running[name].model = model
        return running[name]

    yield server
    for each in running.values():
        each.stop()


@pytest.fixture
def open_page(browser, servers):
    """Opens the page; at the end of the test there must have been nothing on its console."""
    contexts, complaints = [], []

    def open_page(model="shapes", path="", width=1280, height=900, dark=False):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
        page.goto(servers(model).url + path)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
