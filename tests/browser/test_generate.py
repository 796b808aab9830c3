"""Generate, in a real browser: frames appear one by one, and every control does what it says."""

import re

import pytest
from driving import (
    STAGE,
    finish,
    generate,
    picture,
    pixels_are_blank,
    set_number,
    stage,
    stop,
    wait_for_frames,
    wait_for_state,
    wait_for_step,
)
from playwright.sync_api import expect

# Remembers what was on the canvas at every step that was shown.
RECORD = """
() => {
  const stage = document.querySelector("#stage .stage"), canvas = stage.querySelector("canvas");
  window.seen = [];
  const look = () => {
    const step = Number(stage.dataset.shown);
    if (stage.dataset.frames > 0 && step >= 0 && seen.at(-1)?.step !== step) {
      seen.push({ step, picture: canvas.toDataURL() });
    }
    requestAnimationFrame(look);
  };
  look();
}
"""


@pytest.mark.parametrize("model", ["shapes", "colours"])
def test_frames_appear_in_order_and_all_are_kept(open_page, model):
    page = open_page(model)
    expect(page.locator("#settings").get_by_role("group", name="Class")).to_have_count(1 if model == "shapes" else 0)
    set_number(page, "Steps", 60)
    page.evaluate(RECORD)
    generate(page)
    finish(page, 60)
    page.wait_for_function("window.seen.at(-1).step === 60")
    seen = page.evaluate("window.seen")
    steps = [entry["step"] for entry in seen]
    assert steps == sorted(set(steps)) and steps[0] == 0
    # However late they come, an eighth of those that wait are jumped over: of 60 at once, 20 are still drawn.
    assert len({entry["picture"] for entry in seen}) == len(seen) >= 20
    assert stage(page)["frames"] == "61"
    assert not pixels_are_blank(page)
    expect(page.locator("#stage .stage-progress")).to_have_text("step 60 of 60 · finished")

    scrubber = page.get_by_role("slider", name="Step shown")
    for step in (0, 1, 29, 30, 59):
        scrubber.fill(str(step))
        wait_for_step(page, step)
        expect(scrubber).to_have_attribute("aria-valuetext", f"step {step} of 60" if step else "noise")
        expect(page.locator("#stage .stage-progress")).to_have_text(re.compile(r" · t = \d+$|^noise · t = 999$"))


# What arrives of the frames 20 to 59, and of the start, is lost, as in a browser that has been busy for a while.
LOSE = """() => {
  const { prototype } = ddpm.parts.stage.film.constructor, add = prototype.add;
  prototype.add = function (arrived) {
    if (this.filling) return add.call(this, arrived);
    const left = Object.entries(arrived).filter(([index]) => index > 0 && (index < 20 || index > 59));
    return add.call(this, Object.fromEntries(left));
  };
}"""


def test_frames_that_were_lost_on_the_way_are_there_at_the_end(open_page):
    page = open_page()
    set_number(page, "Images", 4)
    set_number(page, "Steps", 100)
    page.evaluate(LOSE)
    generate(page)
    wait_for_state(page, "done")
    page.wait_for_function(f"document.querySelector('{STAGE}').dataset.frames === '101'")
    frames = page.evaluate("ddpm.parts.stage.film.frames.map(({ t, at, src }) => [t, at, src.length])")
    times = [t for t, _, _ in frames[:-1]]
    assert times == sorted(set(times), reverse=True) and times[0] == 999 and frames[-1][0] is None
    assert all(size > 100 for _, _, size in frames) and frames[0][1] > 0  # the start, with what is predicted from it


def test_scrubber_play_speed_loop_and_views(open_page):
    page = open_page()
    set_number(page, "Steps", 12)
    generate(page)
    finish(page, 12)
    scrubber = page.get_by_role("slider", name="Step shown")
    assert scrubber.get_attribute("max") == "12"
    last = picture(page)

    # every step is there, by keyboard, and no two look the same
    scrubber.focus()
    scrubber.press("Home")
    pictures = []
    for step in range(13):
        wait_for_step(page, step)
        pictures.append(picture(page))
        scrubber.press("ArrowRight")
    assert len(set(pictures)) == 13 and pictures[-1] == last
    expect(scrubber).to_have_attribute("aria-valuetext", "step 12 of 12")

    # the other view shows something else, and the first view the same again
    scrubber.fill("6")
    wait_for_step(page, 6)
    noisy = picture(page)
    page.get_by_role("button", name="Predicted").click()
    expect(page.get_by_role("button", name="Predicted")).to_have_attribute("aria-pressed", "true")
    assert picture(page) != noisy
    page.get_by_role("button", name="Noisy").click()
    assert picture(page) == noisy

    # play goes to the end, from the start when it is there already
    scrubber.press("End")
    wait_for_step(page, 12)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.wait_for_function(f"Number(document.querySelector('{STAGE}').dataset.shown) < 6")
    wait_for_step(page, 12)
    expect(page.get_by_role("button", name="Play")).to_be_visible()

    # in a loop it starts over until it is told to pause
    page.get_by_role("combobox", name="Speed").select_option("4")
    page.get_by_role("button", name="Loop").click()
    page.get_by_role("button", name="Play").click()
    for _ in range(2):
        wait_for_step(page, 12)
        page.wait_for_function(f"Number(document.querySelector('{STAGE}').dataset.shown) < 6")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_scrubbing_back_while_frames_arrive(open_page):
    page = open_page()
    set_number(page, "Steps", 400)
    generate(page)
    wait_for_frames(page, 8)
    page.get_by_role("slider", name="Step shown").fill("3")
    wait_for_step(page, 3)
    had = int(stage(page)["frames"])
    wait_for_frames(page, had + 20)
    assert stage(page)["shown"] == "3"
    wait_for_state(page, "done")
    assert stage(page)["shown"] == "3" and stage(page)["frames"] == "401"


def test_stop_stops_early_and_the_next_run_starts_at_once(open_page):
    page = open_page()
    set_number(page, "Steps", 1000)
    generate(page)
    wait_for_frames(page, 5)
    expect(page.locator("#stage .stage-status")).to_have_text(re.compile("left|Denoising"))
    stop(page)
    wait_for_state(page, "stopped")
    assert int(stage(page)["frames"]) < 900
    expect(page.locator("#stage .stage-status")).to_contain_text("Stopped after")
    page.wait_for_timeout(1000)  # what was on its way has come
    had = stage(page)["frames"]
    page.wait_for_timeout(1000)
    assert stage(page)["frames"] == had
    set_number(page, "Steps", 5)
    generate(page)
    finish(page, 5)
    assert stage(page)["frames"] == "6"

    # the same again is there at once, with all its frames
    generate(page)
    expect(page.locator("#stage .stage-status")).to_have_text("Done: from memory, as made before")
    finish(page, 5)
    assert stage(page)["frames"] == "6"


def test_a_press_right_after_stop_is_not_lost(open_page):
    page = open_page()
    for _ in range(3):
        set_number(page, "Steps", 1000)
        generate(page)
        wait_for_state(page, "running")
        set_number(page, "Steps", 5)
        page.evaluate(  # in one breath: Gradio has not stopped yet, and would drop what comes meanwhile
            """() => {
              document.querySelector("#settings .stop").click();
              document.querySelector("#settings .primary").click();
            }"""
        )
        finish(page, 5)
        set_number(page, "Seed", int(page.get_by_role("spinbutton", name=re.compile("^Seed")).first.input_value()) + 1)


def test_stop_while_waiting_in_the_queue(open_page):
    first, second = open_page(), open_page()
    set_number(first, "Steps", 1000)
    generate(first)
    wait_for_state(first, "running")
    generate(second)
    wait_for_state(second, "waiting")
    expect(second.locator("#stage .stage-status")).to_have_text("Waiting: one run ahead of yours")
    stop(second)
    wait_for_state(second, "empty")
    stop(first)
    wait_for_state(first, "stopped")


def test_closing_the_tab_frees_the_model(open_page):
    first, second = open_page(), open_page()
    set_number(first, "Steps", 1000)
    generate(first)
    wait_for_state(first, "running")
    first.close()
    set_number(second, "Steps", 3)
    generate(second)
    finish(second, 3)


def test_bad_input_is_told_on_the_page(open_page):
    page = open_page()
    set_number(page, "Images", 64)
    set_number(page, "Steps", 1000)
    generate(page)
    expect(
        page.get_by_text(re.compile("64 images with 1000 steps are too much work: take at most 250 steps"))
    ).to_be_visible()
    wait_for_state(page, "empty")

    # a notice of the page's own moves nothing, and can be closed
    before = page.locator("#stage").bounding_box()
    page.evaluate("ddpm.tell('notice', 'Something to know.')")
    expect(page.get_by_role("alert").filter(has_text="Something to know.")).to_be_visible()
    assert page.locator("#stage").bounding_box() == before
    page.locator(".notice").get_by_role("button", name="Close").click()
    expect(page.locator(".notice")).to_be_hidden()
    set_number(page, "Images", 2)
    set_number(page, "Steps", 3)
    generate(page)
    finish(page, 3)


def test_controls_are_labelled_and_work_by_keyboard(open_page):
    page = open_page()
    settings = page.locator("#settings")
    for label in ("Images", "Steps", "Guidance"):
        expect(settings.get_by_role("slider", name=label)).to_have_count(1)
        expect(settings.get_by_role("spinbutton", name=label)).to_have_count(1)
    steps = settings.get_by_role("slider", name="Steps")
    steps.press("Home")
    expect(settings.get_by_role("spinbutton", name="Steps")).to_have_value("1")
    steps.press("End")
    expect(settings.get_by_role("spinbutton", name="Steps")).to_have_value("1000")
    expect(steps).to_have_attribute("aria-valuetext", "1000")
    settings.get_by_role("slider", name="Guidance").press("ArrowRight")
    expect(settings.locator("#field-guidance-line")).to_contain_text("two network calls")

    # every sampler has its line in the list
    sampler = settings.get_by_role("button", name="Sampler")
    expect(settings.locator(".choice-about")).to_contain_text("fresh noise at every step")
    sampler.press("ArrowDown")
    options = settings.get_by_role("option")
    assert all(len(text) > 20 for text in options.locator("span").all_inner_texts())
    page.keyboard.press("h")  # Heun
    page.keyboard.press("Enter")
    expect(settings.locator(".choice-about")).to_contain_text("two network calls")
    expect(sampler).to_be_focused()
    sampler.press("ArrowUp")
    page.keyboard.press("Escape")
    expect(settings.get_by_role("listbox")).to_be_hidden()

    # the class, by arrow keys as radio buttons are
    page.get_by_role("radio", name="Any").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="circle")).to_be_checked()
    expect(page.get_by_role("radio", name="<b>star</b>")).to_have_count(1)

    seed = settings.get_by_role("spinbutton", name="Seed")
    settings.get_by_role("button", name="Roll a seed").click()
    expect(seed).not_to_have_value("0")
    assert 0 <= int(seed.input_value()) < 2**32


@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_phone_without_moving(open_page, dark):
    page = open_page(width=390, height=844, dark=dark)
    page.wait_for_timeout(300)
    assert not pixels_are_blank(page)  # there is something to see on arrival
    before = page.locator("#settings").bounding_box()
    button = page.get_by_role("button", name="Generate", exact=True).bounding_box()
    assert button["y"] + button["height"] <= 844  # on the first screen
    generate(page)
    finish(page, 20)
    assert page.locator("#settings").bounding_box() == before
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in page.locator(f"{STAGE} :is(button, input, select):visible").all():
        box = part.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    # at the end of the page nothing is left under what stays at the bottom
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    seed = page.locator("#field-seed").bounding_box()
    button = page.get_by_role("button", name="Generate", exact=True).bounding_box()
    assert seed["y"] + seed["height"] < button["y"]

    # an image enlarged fills the screen, and the focus stays where it can be seen
    page.locator(".cells button").first.click()
    assert page.locator(".lens-picture canvas").bounding_box()["width"] > 350
    lens = page.get_by_role("dialog", name="One image, enlarged")
    lens.get_by_role("button", name="Make more like this").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.lens') !== null")


def test_an_image_enlarged_with_its_strip_and_more_like_it(open_page):
    page = open_page()
    set_number(page, "Seed", 4)
    set_number(page, "Images", 4)
    generate(page)
    finish(page, 20)

    # pointing names it, pressing enlarges it
    second = page.get_by_role("button", name="Enlarge image 2 · <b>star</b> · seed 5")
    second.hover()
    expect(page.locator("#stage .stage-progress")).to_contain_text("image 2 · <b>star</b> · seed 5")
    second.click()
    lens = page.get_by_role("dialog", name="One image, enlarged")
    expect(lens.locator(".lens-title")).to_have_text("image 2 · <b>star</b> · seed 5")
    expect(lens.get_by_role("button", name="Back to all images")).to_be_focused()
    assert not pixels_are_blank(page, ".lens-picture canvas")

    # its strip over the steps leads to them
    strip = lens.get_by_role("button", name=re.compile("^Step "))
    expect(strip).to_have_count(8)
    pictures = [picture(page, f".lens-strip button:nth-child({i}) canvas") for i in range(1, 9)]
    assert len(set(pictures)) == 8
    strip.first.click()
    wait_for_step(page, 0)
    expect(strip.first).to_have_attribute("aria-current", "true")

    # by keyboard to its neighbours, and back to where it was
    page.keyboard.press("ArrowRight")
    expect(lens.locator(".lens-title")).to_contain_text("seed 6")
    page.keyboard.press("Escape")
    expect(lens).to_be_hidden()
    expect(page.get_by_role("button", name="Enlarge image 3")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")

    # more like this: the same class and settings, whatever is in the form by now, and seeds that were not there yet
    set_number(page, "Steps", 7)
    lens.get_by_role("button", name="Make more like this").click()
    expect(lens).to_be_hidden()
    page.wait_for_function("document.querySelector('#field-seed').value === '8'")
    expect(page.get_by_role("radio", name="<b>star</b>")).to_be_checked()
    names = page.locator(".cells button")
    expect(names.first).to_have_attribute("aria-label", "Enlarge image 1 · <b>star</b> · seed 8")
    finish(page, 20)
    labels = names.evaluate_all("(cells) => cells.map((cell) => cell.ariaLabel)")
    assert labels == [f"Enlarge image {i} · <b>star</b> · seed {i + 7}" for i in range(1, 5)]

    # of the first image, too: not the same run again
    names.first.click()
    lens.get_by_role("button", name="Make more like this").click()
    expect(names.first).to_have_attribute("aria-label", "Enlarge image 1 · <b>star</b> · seed 12")
    finish(page, 20)
