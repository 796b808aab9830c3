"""What people do with the page, and what it then must do: each was a fault once."""

import io
import json
import re
from pathlib import Path

from driving import STAGE, finish, generate, open_tab, set_number, stage, wait_for_state, wait_for_step
from PIL import Image
from playwright.sync_api import expect
from test_forward import DROP, FORWARD, photograph

STATUS = "#stage .stage-status"


def made(page, steps: int = 3, images: int = 2, **query):
    """A run that is there."""
    set_number(page, "Images", images)
    set_number(page, "Steps", steps)
    generate(page)
    finish(page, steps)


def png(size: int = 40) -> list[int]:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (10, 200, 30)).save(buffer, "PNG")
    return list(buffer.getvalue())


# ---- the address


def test_reload_and_back_bring_runs_back(open_page):
    page = open_page()
    made(page, steps=3)
    assert "steps=3" in page.url and "num_images=2" in page.url
    set_number(page, "Steps", 4)
    generate(page)
    finish(page, 4)
    page.reload()
    finish(page, 4)
    expect(page.locator("#settings").get_by_role("spinbutton", name="Steps")).to_have_value("4")
    page.go_back()
    finish(page, 3)
    expect(page.locator("#settings").get_by_role("spinbutton", name="Steps")).to_have_value("3")


def test_a_tab_changes_nothing_of_a_run(open_page):
    page = open_page()
    made(page)
    run = page.evaluate("ddpm.parts.stage.run.run")
    open_tab(page, "Take away")
    page.go_back()
    open_tab(page, "Generate")
    assert page.evaluate("ddpm.parts.stage.run.run") == run


# ---- messages


def test_a_change_of_settings_is_told_at_what_was_made_before(open_page):
    page = open_page()
    made(page)
    expect(page.locator(STATUS)).to_contain_text("Done")
    set_number(page, "Steps", 5)
    expect(page.locator(STATUS)).to_have_text("Made with other settings: press Generate for the new ones.")
    set_number(page, "Steps", 3)
    expect(page.locator(STATUS)).to_contain_text("Done")


def test_an_error_is_gone_when_something_else_is_asked_for(open_page):
    page = open_page()
    set_number(page, "Images", 64)
    set_number(page, "Steps", 1000)
    generate(page)
    expect(page.locator(".notice")).to_contain_text("too much work")
    made(page)
    expect(page.locator(".notice")).to_be_hidden()


def test_a_run_from_memory_is_played_not_flashed(open_page):
    page = open_page()
    made(page, steps=12)
    page.evaluate(
        f"""() => {{
          window.shown = new Set();
          const stage = document.querySelector("{STAGE}");
          new MutationObserver(() => shown.add(stage.dataset.shown))
            .observe(stage, {{ attributes: true, attributeFilter: ["data-shown"] }});
        }}"""
    )
    generate(page)
    finish(page, 12)
    assert {str(step) for step in range(13)} <= set(page.evaluate("[...shown]"))


# ---- one image, enlarged


def test_an_enlarged_image_is_left_by_esc_back_and_a_press_beside_it(open_page):
    page = open_page()
    made(page)
    lens = page.get_by_role("dialog", name="One image, enlarged")
    cell = page.locator(".cells button").first

    cell.click()
    page.get_by_role("slider", name="Step shown").focus()  # the player stays in use
    wait_for_step(page, 3)
    expect(lens).to_be_visible()
    page.keyboard.press("Escape")
    expect(lens).to_be_hidden()

    cell.click()
    page.locator("h1").click()
    expect(lens).to_be_hidden()

    cell.click()
    expect(lens).to_be_visible()
    page.go_back()
    expect(lens).to_be_hidden()
    assert stage(page)["state"] == "done"


def test_on_a_phone_it_is_swiped_and_the_player_is_at_hand(open_page):
    page = open_page(width=390, height=844)
    made(page)
    page.locator(".cells button").first.click()
    lens = page.get_by_role("dialog", name="One image, enlarged")
    expect(lens.locator(".lens-title")).to_contain_text("image 1")
    box = lens.locator(".lens-picture canvas").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.8 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], middle)
    page.mouse.up()
    expect(lens.locator(".lens-title")).to_contain_text("image 2")
    player = page.locator("#stage .transport").bounding_box()
    assert player["y"] >= lens.bounding_box()["y"] + lens.bounding_box()["height"] - 1
    page.locator("#stage").get_by_role("button", name="Play").click()
    expect(lens).to_be_visible()


# ---- Forward


def test_forward_starts_where_picture_and_noise_are_even(open_page):
    page = open_page("embedded")
    open_tab(page, "Forward")
    alpha_bar = page.evaluate("ddpm.parts.forward.schedule.alpha_bar[ddpm.parts.forward.t]")
    assert 0.45 < alpha_bar <= 0.55


def test_a_picture_of_ones_own_is_of_no_class(open_page):
    page = open_page()
    open_tab(page, "Forward")
    chooser = page.locator("#forward-settings input[type=file]")
    forward = page.locator(FORWARD)

    chooser.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"})
    expect(forward).to_contain_text("no picture that your browser can read")
    chooser.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photograph()})
    page.wait_for_selector(f"{FORWARD}[data-t]")
    expect(forward).not_to_contain_text("no picture that your browser can read")

    expect(page.get_by_role("combobox", name="Class").locator("visible=true")).to_have_value("")
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{FORWARD}[data-state=done]")
    settings = page.evaluate("ddpm.parts.forward.stage.run.settings")
    assert settings["guidance_scale"] == 0 and settings["guidance_interval"] == [0, 1000]


def test_a_photo_dropped_on_another_tab_is_offered_to_forward(open_page):
    page = open_page()
    page.evaluate(DROP, png())
    notice = page.locator(".notice")
    expect(notice).to_contain_text("This picture holds no settings")
    notice.get_by_role("button", name="Noise it on Forward").click()
    page.wait_for_selector(f"{FORWARD}[data-t]")
    expect(page.locator("#forward")).to_be_visible()


def test_another_model_leaves_no_captions_of_the_one_before(open_page):
    page = open_page("several")
    open_tab(page, "Forward")
    page.evaluate(DROP, png())
    page.wait_for_selector(f"{FORWARD}[data-t]")
    page.get_by_role("button", name="Denoise from here").click()
    page.wait_for_selector(f"{FORWARD}[data-state=done]")
    expect(page.locator(FORWARD).get_by_text("And back")).to_be_hidden()
    page.get_by_role("combobox", name="Model").select_option("colours")
    expect(page.locator(FORWARD).get_by_text("And back")).to_be_visible()
    expect(page.locator(f"{FORWARD} figcaption").nth(1)).to_contain_text("noised")


# ---- Take away


def test_the_image_that_is_taken_away_is_the_one_shown(open_page):
    page = open_page()
    made(page, images=4)
    open_tab(page, "Take away")
    canvas = page.locator(".shelf canvas")
    all_of_them = canvas.evaluate("(canvas) => canvas.toDataURL()")
    page.get_by_role("combobox", name="Which images").select_option("Image 3")
    expect(canvas).to_have_attribute("aria-label", re.compile("^image 3 of 4 images"))
    assert canvas.evaluate("(canvas) => canvas.toDataURL()") != all_of_them


def test_an_image_of_the_last_seed_can_be_restored(open_page):
    page = open_page(path=f"/?num_images=3&steps=3&seed={2**32 - 1}")
    finish(page, 3)
    open_tab(page, "Take away")
    page.get_by_role("combobox", name="Which images").select_option("Image 3")
    with page.expect_download() as waiting:
        page.locator("[data-kind=png]").click()
    file = Path(waiting.value.path())
    assert json.loads(Image.open(file).info["ddpm_hf"])["seed"] == 2**32 + 1
    fresh = open_page()
    fresh.evaluate(DROP, list(file.read_bytes()))
    finish(fresh, 3)
    expect(fresh.locator("#field-seed")).to_have_value(str(2**32 + 1))


# ---- sizes and motion


def test_the_main_settings_are_on_the_first_screen_of_a_laptop(open_page):
    page = open_page(width=1280, height=800)
    for part in (page.locator("#field-seed"), page.locator("#settings").get_by_role("button", name="Sampler")):
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 800


def test_on_a_phone_nothing_is_too_small_for_a_finger(open_page):
    page = open_page(width=390, height=844)
    for field in page.locator("#settings :is(input[type=number], select)").all():
        assert float(field.evaluate("(one) => getComputedStyle(one).fontSize").removesuffix("px")) >= 16
    for slider in page.locator("#settings input[type=range]").all():
        assert slider.bounding_box()["height"] >= 44


def test_little_motion_for_those_who_want_little(open_page):
    page = open_page()
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(
        f"""() => {{
          window.shown = new Set();
          const stage = document.querySelector("{STAGE}");
          new MutationObserver(() => shown.add(stage.dataset.shown))
            .observe(stage, {{ attributes: true, attributeFilter: ["data-shown"] }});
        }}"""
    )
    set_number(page, "Steps", 40)
    generate(page)
    wait_for_state(page, "done")
    wait_for_step(page, 40)
    seconds = page.evaluate("ddpm.parts.stage.run.seconds")
    assert page.evaluate("shown.size") <= seconds / 0.5 + 4  # of 41


# ---- Use via API


def test_the_endpoints_are_described(open_page):
    page = open_page(path="/?view=api")
    for name in ("/generate", "/vary", "/noise", "/compare"):
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    generate_card = page.locator("section").filter(has=page.get_by_role("heading", name="/generate", exact=True))
    expect(generate_card.get_by_role("row", name=re.compile("^steps"))).to_contain_text("denoising steps")
    expect(generate_card).to_contain_text("client.predict(")
    page.get_by_role("link", name="Back to the page").click()
    expect(page.get_by_role("tab", name="Generate")).to_be_visible()
    page.get_by_role("link", name="Use via API").click()
    expect(page.get_by_role("heading", name="Use via API")).to_be_visible()
