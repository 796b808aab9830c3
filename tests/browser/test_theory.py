"""How it works: equations, and pictures that follow the controls of the other tabs."""

import re

import pytest
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
    expect(page.locator("#theory")).not_to_contain_text("guesses v")
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

    # x_t, its t and the x_0 guessed from this x_t are of one frame, and the weights are those of that t
    frame, level = page.evaluate(
        """() => {
          const { film } = ddpm.parts.stage, frame = film.frames[4];
          return [frame, ddpm.parts.theory.description.schedule.alpha_bar[frame.t]];
        }"""
    )
    words = f"step 4 of 20, t = {frame['t']}, √ᾱ = {level**0.5:.2f}, √(1\u2212ᾱ) = {(1 - level) ** 0.5:.2f}"
    expect(page.locator("#theory")).to_contain_text(words)
    drawn = """async (src) => {
      const image = new Image(); image.src = src; await image.decode();
      const [tile, pair] = [ddpm.parts.stage.run.tile, [...document.querySelectorAll(".pair canvas")]];
      return [0, image.naturalHeight / 2].every((top, i) => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = tile;
        canvas.getContext("2d").drawImage(image, 0, top, ...tile, 0, 0, ...tile);
        return canvas.toDataURL() === pair[i].toDataURL();
      });
    }"""
    assert page.evaluate(drawn, frame["src"])
    page.get_by_role("slider", name="Step of the run").fill("0")
    expect(page.locator("#theory")).to_contain_text("noise, t = 999")
    page.get_by_role("slider", name="Step of the run").fill("20")
    expect(page.locator("#theory")).to_contain_text("step 20 of 20, finished")


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


@pytest.mark.slow
def test_the_slider_over_t_is_that_of_the_forward_process(open_page):
    page = open_page("embedded")
    open_tab(page, "How it works")
    page.get_by_role("slider", name="Timestep t").locator("visible=true").fill("249")
    expect(page.locator("#theory")).to_contain_text("t = 249: ᾱ = 0.52")
    assert len(set(page.locator(".sum img").evaluate_all("(images) => images.map((image) => image.src)"))) == 3
    page.get_by_role("button", name="Try it on a picture of yours").click()
    expect(page.locator("#forward-t")).to_have_value("249")
    expect(page.locator("#theory")).to_be_hidden()


@pytest.mark.slow
def test_the_model_tells_of_itself(open_page):
    page = open_page("embedded")
    open_tab(page, "How it works")
    theory = page.locator("#theory")
    for words in ("28 x 28, gray", "million", "linear, β from 0.0001 to 0.02", "The loss fell from"):
        expect(theory).to_contain_text(words)
    # what it predicts, and how the picture and the noise follow from that
    for words in ("The network of this page is asked for the picture itself", "guesses the finished picture"):
        expect(theory).to_contain_text(words)
    expect(theory.get_by_role("group", name=re.compile("^epsilon theta is .*x t"))).to_be_visible()
    # scores with those of real images, the number of images, and the space they are measured in
    scores = theory.get_by_role("table", name="Scores")
    expect(scores.get_by_role("row", name=re.compile(r"^FID \d+\.\d\d\d 0\.\d\d\d$"))).to_be_visible()
    expect(theory).to_contain_text(re.compile(r"[\d,]+ generated images against [\d,]+ real ones"))
    expect(theory).to_contain_text(re.compile(r"in the space of \d+ features of the network fashion-mnist"))


@pytest.mark.slow
def test_equations_fit_a_phone(open_page):
    page = open_page("embedded", width=390, height=844)
    open_tab(page, "How it works")
    cut = "(all) => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"
    assert page.locator("#theory .equation").evaluate_all(cut) == []
