"""What the page keeps and offers between visits: earlier runs, the short walk, the list of keys; noise beside guess."""

import re

import pytest
from driving import STAGE, finish, generate, open_tab, picture, set_number, wait_for_state, wait_for_step
from playwright.sync_api import expect
from test_forward import BACK, DROP, FORWARD
from test_use import made, png

EARLIER = "#earlier .earlier-strip button"
WALK = ".walk"


# ---- earlier runs


def test_each_run_comes_back_with_one_press(open_page):
    page = open_page()
    expect(page.locator("#earlier")).to_be_hidden()
    made(page, steps=3)
    made(page, steps=4)
    open_tab(page, "Forward")
    page.evaluate(DROP, png())
    page.wait_for_selector(f"{FORWARD}[data-t]")
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{BACK}[data-state=done]")
    expect(page.locator(EARLIER)).to_have_count(3)
    expect(page.locator(EARLIER).first).to_have_attribute("title", re.compile("^9 images, seed 0, .* from t = "))

    page.get_by_role("button", name="Again: 2 images, seed 0, 3 steps").click()
    expect(page.locator("#stage")).to_be_visible()
    finish(page, 3)
    assert "steps=3" in page.url
    page.go_back()  # to the run of Forward
    expect(page.locator("#forward")).to_be_visible()

    # another visit of the same browser; nothing is there twice
    page.goto(page.url.split("?")[0].split("#")[0])
    page.wait_for_selector("html[data-ready]", state="attached")
    expect(page.locator(EARLIER)).to_have_count(3)
    page.get_by_role("button", name="Again: 9 images").click()
    page.wait_for_selector(f"{BACK}[data-state=done]")
    page.get_by_role("button", name="Forget them").click()
    expect(page.locator("#earlier")).to_be_hidden()


def test_a_browser_that_may_keep_nothing_works_all_the_same(open_page):
    page = open_page()
    page.evaluate("void (Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') })")
    made(page)
    expect(page.locator("#earlier")).to_be_hidden()


def test_what_others_have_written_there_is_no_harm(open_page):
    page = open_page()
    page.evaluate("localStorage.setItem('ddpm_hf.runs', '[1, {}, null]'); localStorage.setItem('ddpm_hf.walked', '{')")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    made(page)
    expect(page.locator(EARLIER)).to_have_count(1)


# ---- the walk


@pytest.mark.parametrize("model", ["shapes", pytest.param("colours", marks=pytest.mark.slow)])
def test_the_walk_does_what_it_explains(open_page, model):
    page = open_page(model)
    page.get_by_role("button", name="New here? Take a short walk").click()
    walk = page.get_by_role("dialog", name="A short walk")
    go = walk.locator(".primary")

    def step(title: str, after: str):
        expect(walk).to_contain_text(title)
        go.click()
        expect(walk).to_contain_text(after)
        expect(go).to_have_text("That is all" if title.startswith("5") else "Next")

    step("1 of 5: Noise", "There is no picture in it yet")
    wait_for_step(page, 0)
    noise = picture(page)
    go.click()
    step("2 of 5: Guess", "vague")
    expect(page.get_by_role("button", name="Predicted")).to_have_attribute("aria-pressed", "true")
    assert picture(page) != noise
    go.click()
    step("3 of 5: Step", "until there is no noise left")
    wait_for_step(page, 20)
    go.click()
    if model == "shapes":
        step("4 of 5: Class", "of that class now")
        assert page.evaluate("ddpm.parts.stage.run.settings.class_name") == "circle"
    else:
        step("4 of 5: Seed", "Other noise")
        assert page.evaluate("ddpm.parts.stage.run.settings.seed") == 1
    go.click()
    step("5 of 5: Sampler", "often coarser")
    finish(page, 5)
    go.click()
    expect(walk).to_be_hidden()
    assert page.locator(".marked-by-walk").count() == 0


def test_the_walk_is_offered_once_and_can_be_left(open_page):
    page = open_page()
    page.get_by_role("button", name="New here? Take a short walk").click()
    page.locator(WALK).get_by_role("button", name="Leave the walk").first.click()
    expect(page.locator(WALK)).to_be_hidden()
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    expect(page.get_by_role("button", name="New here?")).to_have_count(0)
    # whoever wants it again finds it with the keys
    page.get_by_role("button", name="Keys and a short walk").click()
    keys = page.get_by_role("dialog", name="Keys")
    expect(keys).to_contain_text("leave an enlarged image")
    keys.get_by_role("button", name="Take the short walk").click()
    expect(keys).to_be_hidden()
    expect(page.locator(WALK)).to_contain_text("1 of 5")
    page.keyboard.press("Escape")
    expect(page.locator(WALK)).to_be_hidden()


def test_the_walk_is_not_offered_to_those_who_refuse_or_have_made_a_run(open_page):
    page = open_page()
    page.get_by_role("button", name="No, thanks").click()
    expect(page.get_by_role("button", name="New here?")).to_have_count(0)
    other = open_page()
    made(other)
    other.goto(other.url.split("?")[0])
    other.wait_for_selector("html[data-ready]", state="attached")
    expect(other.get_by_role("button", name="New here?")).to_have_count(0)


# ---- noise and guess


def test_noise_and_guess_are_side_by_side_until_they_are_the_same(open_page):
    page = open_page()
    set_number(page, "Steps", 8)
    set_number(page, "Images", 4)
    generate(page)
    finish(page, 8)
    guess = page.locator(f"{STAGE} .guess")
    expect(guess).to_be_hidden()
    page.get_by_role("slider", name="Step shown").fill("3")
    wait_for_step(page, 3)
    expect(guess).to_be_visible()
    noisy, predicted = picture(page), picture(page, f"{STAGE} .guess")
    assert noisy != predicted
    left, right = page.locator(f"{STAGE} canvas").first.bounding_box(), guess.bounding_box()
    assert left["x"] + left["width"] <= right["x"] or left["y"] + left["height"] <= right["y"]  # or one below the other
    assert [left["width"], left["height"]] == pytest.approx([right["width"], right["height"]], abs=1)
    # an image of either side is enlarged
    x, y = page.evaluate(
        """async () => {
          const { place } = await import("/page/tiles.js"), { guessed } = ddpm.parts.stage;
          const half = [guessed.width / 2, guessed.height / 2];
          return place(guessed, 3).map((start, i) => (start + half[i]) / guessed.ratio);
        }"""
    )
    page.mouse.click(right["x"] + x, right["y"] + y)
    expect(page.get_by_role("dialog", name="One image, enlarged")).to_contain_text("image 4")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Predicted").click()
    expect(guess).to_be_hidden()
    wait_for_state(page, "done")
