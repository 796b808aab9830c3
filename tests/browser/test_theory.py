"""How it works: equations, and pictures that follow the controls of the other tabs."""

import re

from driving import finish, generate, open_tab, picture, set_number, wait_for_step
from playwright.sync_api import expect


def test_equations_are_mathematics_with_words(open_page):
    page = open_page()
    open_tab(page, "How it works")
    equations = page.locator("#theory .equation")
    assert equations.count() == 8
    assert equations.evaluate_all(
        "(all) => all.every((one) => one.querySelector('math').getBoundingClientRect().width > 50)"
    )
    assert all(len(name) > 20 for name in equations.evaluate_all("(all) => all.map((one) => one.ariaLabel)"))


def test_pictures_follow_the_run_and_the_run_follows_them(open_page):
    page = open_page()
    open_tab(page, "How it works")
    expect(page.locator("#theory")).to_contain_text("No run yet.")
    page.get_by_role("button", name="Generate and watch").click()
    expect(page.get_by_role("button", name="Generate and watch")).to_be_hidden()
    finish_hidden(page, 20)
    pair = [picture(page, f".pair figure:nth-of-type({i}) canvas") for i in (1, 2)]
    page.get_by_role("slider", name="Step of the run").fill("4")
    page.wait_for_selector('#stage .stage[data-shown="4"]', state="attached")
    expect(page.locator("#theory")).to_contain_text("step 4 of 20")
    later = [picture(page, f".pair figure:nth-of-type({i}) canvas") for i in (1, 2)]
    assert later[0] != pair[0] and later[0] != later[1]


def finish_hidden(page, steps: int):
    page.wait_for_selector(f'#stage .stage[data-state=done][data-shown="{steps}"]', state="attached")


def test_links_set_the_controls_and_run(open_page):
    page = open_page()
    set_number(page, "Images", 2)
    set_number(page, "Steps", 4)
    generate(page)
    finish(page, 4)
    open_tab(page, "How it works")
    page.get_by_role("button", name="Guidance 3").click()
    expect(page.locator("#settings").get_by_role("spinbutton", name=re.compile("^Guidance"))).to_have_value("3")
    finish(page, 4)
    open_tab(page, "How it works")
    page.locator(".samplers").get_by_role("button", name="Euler").click()
    expect(page.get_by_role("button", name="Sampler: Euler")).to_be_visible()
    wait_for_step(page, 4)


def test_the_slider_over_t_is_that_of_the_forward_process(open_page):
    page = open_page("embedded")
    open_tab(page, "How it works")
    page.get_by_role("slider", name="Timestep t").locator("visible=true").fill("249")
    expect(page.locator("#theory")).to_contain_text("t = 249: ᾱ = 0.52")
    assert len(set(page.locator(".sum img").evaluate_all("(images) => images.map((image) => image.src)"))) == 3
    page.get_by_role("button", name="Try it on a picture of yours").click()
    expect(page.locator("#forward-t")).to_have_value("249")
    expect(page.locator("#theory")).to_be_hidden()


def test_the_model_tells_of_itself(open_page):
    page = open_page("embedded")
    open_tab(page, "How it works")
    theory = page.locator("#theory")
    for words in ("28 x 28, gray", "million", "linear, β from 0.0001 to 0.02", "The loss fell from"):
        expect(theory).to_contain_text(words)
