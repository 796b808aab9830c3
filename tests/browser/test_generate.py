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


@pytest.mark.parametrize("model", ["shapes", pytest.param("colours", marks=pytest.mark.slow)])
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
    # However late they come, an eighth of the waiting frames are skipped: of 60 at once, 20 are still drawn.
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
    page.get_by_role("button", name="Noisy").click()
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

    # in a loop it starts over until it is paused
    page.get_by_role("combobox", name="Speed").select_option("4")
    page.get_by_role("button", name="Loop").click()
    page.get_by_role("button", name="Play").click()
    for _ in range(2):
        wait_for_step(page, 12)
        page.wait_for_function(f"Number(document.querySelector('{STAGE}').dataset.shown) < 6")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()


@pytest.mark.slow
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
        page.evaluate(  # in one breath
            """() => {
              document.querySelector("#settings .stop").click();
              document.querySelector("#settings .primary").click();
            }"""
        )
        finish(page, 5)
        set_number(page, "Seed", int(page.get_by_role("spinbutton", name=re.compile("^Seed")).first.input_value()) + 1)


def test_a_press_right_after_the_end_is_a_run(open_page):
    """The moment between the last frame and the end of the connection is no trap."""
    page = open_page()
    set_number(page, "Steps", 4)
    page.evaluate(
        """() => {
          const stage = document.querySelector("#stage .stage");
          window.ends = 0;
          new MutationObserver(() => {
            if (stage.dataset.state !== "done" || ++window.ends > 4) return;
            document.querySelector("#settings [aria-label='Roll a seed']").click();
            document.querySelector("#settings .primary").click();
          }).observe(stage, { attributes: true, attributeFilter: ["data-state"] });
        }"""
    )
    generate(page)
    page.wait_for_function("window.ends === 5")


def test_a_short_run_is_not_behind_a_long_one(open_page):
    first, second = open_page(), open_page()
    set_number(first, "Steps", 1000)
    generate(first)
    wait_for_state(first, "running")
    set_number(second, "Steps", 3)
    generate(second)
    finish(second, 3)
    assert stage(first)["state"] == "running"
    stop(first)
    wait_for_state(first, "stopped")


def test_a_place_in_the_queue_is_told_and_given_up(open_page):
    page = open_page()
    page.route("**/page/run", lambda route: None)  # no answer yet
    generate(page)
    wait_for_state(page, "waiting")
    page.evaluate("ddpm.parts.stage.receive({ run: 'x', state: 'waiting', queue: 'one run ahead of yours' })")
    expect(page.locator("#stage .stage-status")).to_have_text("Waiting: one run ahead of yours")
    stop(page)
    wait_for_state(page, "empty")


def test_a_connection_that_is_lost_is_told_and_tried_again(open_page):
    page = open_page()
    set_number(page, "Steps", 3)
    page.route("**/page/run", lambda route: route.fulfill(content_type="text/event-stream", body=""))
    generate(page)
    notice = page.locator(".notice")
    expect(notice).to_contain_text("The connection to the server was lost.")
    wait_for_state(page, "empty")
    page.unroute("**/page/run")
    notice.get_by_role("button", name="Try again").click()
    finish(page, 3)
    expect(notice).to_be_hidden()


def test_a_server_that_falls_silent_is_noticed(open_page):
    """A watchdog: the server tells every second that it is there."""
    page = open_page()
    page.clock.install()
    page.route("**/page/run", lambda route: None)
    generate(page)
    wait_for_state(page, "waiting")
    page.clock.fast_forward(14_000)
    wait_for_state(page, "waiting")
    page.clock.fast_forward(2_000)
    expect(page.locator(".notice")).to_contain_text("The connection to the server was lost.")
    wait_for_state(page, "empty")


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

    # where guidance is at work: the model's own, or two timesteps in order
    low, high = (settings.get_by_role("spinbutton", name=name) for name in ("From timestep", "to timestep"))
    assert (low.input_value(), high.input_value()) == ("0", "400")
    high.fill("700")
    assert page.evaluate("ddpm.parts.form.read().guidance_interval") == [0, 700]
    low.fill("900")  # above the end: not taken
    low.press("Tab")
    expect(low).to_have_value("0")
    assert page.evaluate("ddpm.parts.form.read().guidance_interval") == [0, 700]

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


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)])
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
    assert page.locator("#stage .lens-picture canvas").bounding_box()["width"] > 350
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

    # more like this: variations of the image beside it, on Forward, of its class; and variations of a variation
    lens.get_by_role("button", name="Make more like this").click()
    expect(page.locator("#forward")).to_be_visible()
    page.wait_for_selector("#forward .result .stage[data-state=done]")
    first = page.evaluate("ddpm.parts.forward.stage.run.settings")
    assert first["num_images"] == 9 and first["class_name"] == "<b>star</b>"
    expect(page.locator("#forward .frame img").first).to_have_attribute("src", re.compile("^data:image/png"))
    page.locator("#forward .result .cells button").nth(4).click()
    page.locator("#forward").get_by_role("button", name="Make more like this").click()
    page.wait_for_function("(image) => ddpm.parts.forward.stage.run.settings.image !== image", arg=first["image"])
    page.wait_for_selector("#forward .result .stage[data-state=done]")
