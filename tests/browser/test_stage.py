"""The page in a real browser: frames appear one by one, and the stage's controls do what they say."""

import re

import pytest
from playwright.sync_api import Page, expect

# Remembers what was on the canvas at every step that was shown.
RECORD = """
() => {
  const stage = document.querySelector(".stage"), canvas = stage.querySelector("canvas");
  window.seen = [];
  const look = () => {
    const step = Number(stage.dataset.shown), run = stage.dataset.state;
    if (stage.dataset.frames > 0 && (!seen.length || seen.at(-1).step !== step)) {
      seen.push({ step, picture: canvas.toDataURL() });
    }
    requestAnimationFrame(look);
  };
  look();
}
"""


def set_number(page: Page, label: str, value: int | float):
    box = page.get_by_role("spinbutton", name=re.compile(rf"(^|for ){label}"))
    box.fill(str(value))
    box.press("Tab")


def generate(page: Page):
    page.get_by_role("button", name="Generate").click()


def wait_for_state(page: Page, state: str):
    page.wait_for_selector(f".stage[data-state={state}]")
    page.wait_for_function(
        "document.querySelector('.stage').dataset.shown === document.querySelector('.stage input').value"
    )


def stage(page: Page) -> dict:
    return page.evaluate("({ ...document.querySelector('.stage').dataset })")


def picture(page: Page) -> str:
    return page.evaluate("document.querySelector('.stage canvas').toDataURL()")


def pixels_are_blank(page: Page) -> bool:
    script = """() => {
      const canvas = document.querySelector(".stage canvas");
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return new Set(new Uint32Array(data.buffer)).size < 3;
    }"""
    return page.evaluate(script)


@pytest.mark.parametrize("conditional", [True, False])
def test_frames_appear_one_by_one(open_page, tmp_path, conditional):
    page = open_page(conditional)
    expect(page.get_by_role("combobox", name="Class")).to_have_count(1 if conditional else 0)
    set_number(page, "Steps", 60)
    page.evaluate(RECORD)
    generate(page)
    wait_for_state(page, "done")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '60'")
    page.wait_for_function("window.seen.at(-1).step === 60")
    seen = page.evaluate("window.seen")
    steps = [entry["step"] for entry in seen]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 60
    assert len({entry["picture"] for entry in seen}) == len(seen) >= 10
    assert stage(page)["frames"] == "61"
    assert not pixels_are_blank(page)
    expect(page.locator(".stage-progress")).to_contain_text("step 60 of 60")
    page.screenshot(path=tmp_path / "done.png", full_page=True)
    assert (tmp_path / "done.png").stat().st_size > 10_000


def test_scrubber_play_and_views(open_page):
    page = open_page()
    set_number(page, "Steps", 12)
    generate(page)
    wait_for_state(page, "done")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '12'")
    scrubber = page.get_by_role("slider", name="Step shown")
    assert scrubber.get_attribute("max") == "12"
    last = picture(page)

    # every step is there, by keyboard, and no two look the same
    scrubber.focus()
    scrubber.press("Home")
    pictures = []
    for step in range(13):
        page.wait_for_function(f"document.querySelector('.stage').dataset.shown === '{step}'")
        pictures.append(picture(page))
        scrubber.press("ArrowRight")
    assert len(set(pictures)) == 13 and pictures[-1] == last
    expect(scrubber).to_have_attribute("aria-valuetext", "step 12 of 12")

    # the other view shows something else, and the first view the same again
    scrubber.fill("6")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '6'")
    noisy = picture(page)
    page.get_by_role("button", name="Predicted").click()
    page.wait_for_function("(before) => document.querySelector('.stage canvas').toDataURL() !== before", arg=noisy)
    expect(page.get_by_role("button", name="Predicted")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Noisy").click()
    page.wait_for_function("(before) => document.querySelector('.stage canvas').toDataURL() === before", arg=noisy)

    # play goes to the end, from the start when it is there already
    scrubber.press("End")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '12'")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.wait_for_function("Number(document.querySelector('.stage').dataset.shown) < 6")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '12'")
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_scrubbing_back_while_frames_arrive(open_page):
    page = open_page()
    set_number(page, "Steps", 400)
    generate(page)
    page.wait_for_function("Number(document.querySelector('.stage').dataset.frames) > 8")
    page.get_by_role("slider", name="Step shown").fill("3")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '3'")
    had = int(stage(page)["frames"])
    page.wait_for_function(f"Number(document.querySelector('.stage').dataset.frames) > {had + 20}")
    assert stage(page)["shown"] == "3"
    wait_for_state(page, "done")
    assert stage(page)["shown"] == "3" and stage(page)["frames"] == "401"


def test_stop_stops_early_and_the_next_run_starts_at_once(open_page):
    page = open_page()
    set_number(page, "Steps", 1000)
    generate(page)
    page.wait_for_function("Number(document.querySelector('.stage').dataset.frames) > 5")
    page.get_by_role("button", name="Stop").click()
    wait_for_state(page, "stopped")
    had = int(stage(page)["frames"])
    assert had < 900
    expect(page.locator(".stage-progress")).to_contain_text("stopped")
    page.wait_for_timeout(1000)
    assert int(stage(page)["frames"]) <= had + 40  # what was on its way
    set_number(page, "Steps", 5)
    generate(page)
    wait_for_state(page, "done")
    assert stage(page)["frames"] == "6"


def test_stop_while_waiting_in_the_queue(open_page):
    first, second = open_page(), open_page()
    set_number(first, "Steps", 1000)
    generate(first)
    first.wait_for_selector(".stage[data-state=running]")
    generate(second)
    second.wait_for_selector(".stage[data-state=waiting]")
    second.get_by_role("button", name="Stop").click()
    second.wait_for_selector(".stage[data-state=empty]")
    first.get_by_role("button", name="Stop").click()
    first.wait_for_selector(".stage[data-state=stopped]")


def test_closing_the_tab_frees_the_model(open_page):
    first, second = open_page(), open_page()
    set_number(first, "Steps", 1000)
    generate(first)
    first.wait_for_selector(".stage[data-state=running]")
    first.close()
    set_number(second, "Steps", 3)
    generate(second)
    second.wait_for_selector(".stage[data-state=done]", timeout=15_000)


def test_bad_input_is_told_on_the_page(open_page):
    page = open_page()
    set_number(page, "Images", 64)
    set_number(page, "Steps", 1000)
    generate(page)
    expect(
        page.get_by_text(re.compile("64 images with 1000 steps are too much work: take at most 250 steps"))
    ).to_be_visible()
    assert stage(page)["state"] == "empty"
    set_number(page, "Images", 2)
    set_number(page, "Steps", 3)
    generate(page)
    wait_for_state(page, "done")


def test_controls_are_labelled_and_the_sampler_explained(open_page):
    page = open_page()
    for role, name in [("slider", "Images"), ("slider", "Steps"), ("slider", "Guidance"), ("combobox", "Sampler")]:
        expect(page.get_by_role(role, name=re.compile(name))).to_have_count(1)
    expect(page.locator("#sampler-about")).to_contain_text("Second-order, deterministic")
    page.get_by_role("combobox", name="Sampler").click()
    page.get_by_role("option", name="Heun").click()
    expect(page.locator("#sampler-about")).to_contain_text("two network calls")
    seed = page.get_by_role("spinbutton", name="Seed")
    page.get_by_role("button", name="Random").click()
    expect(seed).not_to_have_value("0")
    assert 0 <= int(seed.input_value()) < 2**32


@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_phone_without_moving(open_page, tmp_path, dark):
    page = open_page(width=390, height=844, dark=dark)
    page.wait_for_timeout(300)
    before = page.locator("#settings").bounding_box()
    generate(page)
    wait_for_state(page, "done")
    after = page.locator("#settings").bounding_box()
    assert before == after
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".stage").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)


def test_pointing_at_an_image_names_it(open_page):
    page = open_page()
    set_number(page, "Seed", 4)
    generate(page)
    wait_for_state(page, "done")
    page.wait_for_function("document.querySelector('.stage').dataset.shown === '20'")
    box = page.locator(".stage canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 8, box["y"] + box["height"] / 8)
    expect(page.locator(".stage-progress")).to_contain_text("image 1 · square · seed 4")
