"""The tabs, other models, and what every part of the page owes to those who cannot see or point."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from driving import finish, generate, open_tab, set_number
from playwright.sync_api import expect

TABS = {
    "Generate": "#stage",
    "Compare": "#compare",
    "Forward": "#forward",
    "How it works": "#theory",
    "Take away": "#take-away",
}


def test_tabs_by_pointer_keyboard_and_link(open_page):
    page = open_page()
    for name, part in TABS.items():
        open_tab(page, name)
        for other in TABS.values():
            expect(page.locator(other)).to_be_visible(visible=other == part)
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
    page.get_by_role("tab", name="Take away").press("ArrowRight")
    expect(page.get_by_role("tab", name="Generate")).to_be_focused()
    expect(page.locator("#stage")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#compare")).to_be_visible()
    assert page.evaluate("location.hash") == "#compare"
    expect(open_page(path="/#theory").locator("#theory")).to_be_visible()


def test_a_change_of_tab_keeps_the_links_query(open_page):
    page = open_page(path="/?steps=3&num_images=1&seed=5")
    finish(page, 3)
    open_tab(page, "Compare")
    open_tab(page, "Generate")
    assert "seed=5" in page.evaluate("location.search")


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1280, False),
        (390, True),
        pytest.param(1280, True, marks=pytest.mark.slow),
        pytest.param(390, False, marks=pytest.mark.slow),
    ],
)
def test_nothing_serious_is_found_by_axe(open_page, width, dark):
    page = open_page(width=width, height=900, dark=dark)
    set_number(page, "Steps", 3)
    generate(page)
    finish(page, 3)
    for name in TABS:
        open_tab(page, name)
        assert serious(page) == [], name
    page.get_by_role("tab", name="Generate").click()
    page.locator(".cells button").first.click()
    assert serious(page) == [], "enlarged"


def serious(page) -> list[tuple[str, list[str]]]:
    """What axe-core finds: rule and elements."""
    report = Axe().run(page).response
    assert len(report["passes"]) > 15  # it has looked
    found = [one for one in report["violations"] if one["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("model", ["shapes", pytest.param("colours", marks=pytest.mark.slow)])
def test_every_tab_fits_a_phone(open_page, model):
    page = open_page(model, width=390, height=844)
    for name in TABS:
        open_tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    # what starts a comparison is at hand beside its lanes
    open_tab(page, "Compare")
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    box = page.locator("#compare").get_by_role("button", name="Compare", exact=True).bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 844
    # what noises the picture and takes the noise away again is at hand beside the pictures
    open_tab(page, "Forward")
    for control in (page.get_by_role("slider", name="Timestep"), page.get_by_role("button", name="Denoise from here")):
        box = control.locator("visible=true").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844


@pytest.mark.slow
def test_another_model_brings_its_own_controls(open_page):
    page = open_page("several")
    settings = page.locator("#settings")
    expect(settings.get_by_role("group", name="Class")).to_have_count(1)
    page.get_by_role("combobox", name="Model").select_option("colours")
    expect(settings.get_by_role("group", name="Class")).to_have_count(0)
    expect(settings.get_by_role("slider", name="Guidance")).to_have_count(0)
    set_number(page, "Images", 2)
    set_number(page, "Steps", 3)
    generate(page)
    finish(page, 3)
    expect(page.get_by_role("button", name="Enlarge image 1 · seed 0")).to_have_count(1)
    open_tab(page, "How it works")
    expect(page.locator("#theory")).to_contain_text("16 x 16, RGB")
    expect(page.locator("#theory .loss")).to_have_count(0)
    page.get_by_role("combobox", name="Model").select_option("shapes")
    expect(page.locator("#theory")).to_contain_text("14 x 14, gray")
