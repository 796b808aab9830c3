"""Compare: lanes in step from the same noise, what each costs, and how far each ends from all steps."""

import re

import pytest
from driving import open_tab, picture, wait_for_step
from playwright.sync_api import expect

COMPARE = "#compare .compare"


def set_lane(page, number: int, sampler: str, steps: int):
    lane = page.locator(".lane").nth(number)
    lane.get_by_role("button", name="Sampler: ").click()
    lane.get_by_role("option", name=re.compile(f"^{re.escape(sampler)}")).first.click()
    lane.get_by_role("spinbutton", name="steps").fill(str(steps))


def lanes_at(page) -> list[str]:
    return [picture(page, f".lane:nth-child({i + 1}) canvas") for i in range(page.locator(".lane").count())]


@pytest.mark.slow  # the distances take all 1000 steps
@pytest.mark.timeout(900)
def test_lanes_start_from_the_same_noise_and_end_at_a_distance(open_page):
    page = open_page()
    open_tab(page, "Compare")
    bar = page.get_by_role("form", name="What to compare")
    bar.get_by_role("spinbutton", name="Images").fill("2")
    set_lane(page, 0, "Heun", 4)
    set_lane(page, 1, "DDIM", 8)
    set_lane(page, 2, "DDIM", 40)
    bar.get_by_role("button", name="Compare").click()
    page.wait_for_selector(f"{COMPARE}:is([data-state=measuring], [data-state=done])")
    wait_for_step(page, 40, COMPARE)
    page.get_by_role("slider", name="Step shown").locator("visible=true").fill("0")
    wait_for_step(page, 0, COMPARE)
    start = lanes_at(page)
    assert start[0] == start[1] == start[2]  # the same noise
    page.get_by_role("slider", name="Step shown").locator("visible=true").fill("20")
    wait_for_step(page, 20, COMPARE)
    assert len(set(lanes_at(page))) == 3
    assert [lane.get_attribute("data-frames") for lane in page.locator(".lane").all()] == ["8", "9", "41"]
    costs = page.locator(".lane-cost").all_inner_texts()
    assert [cost.split(" · ")[0] for cost in costs] == ["9 calls", "11 calls", "56 calls"]  # two where t <= 400
    assert all(re.fullmatch(r"\d+ calls · [\d.]+ s", cost) for cost in costs)

    page.wait_for_selector(f"{COMPARE}[data-state=done]", timeout=600_000)
    chart = page.locator(".distances li")
    expect(chart).to_have_count(3)
    few, many = (float(chart.nth(i).locator("b").inner_text()) for i in (1, 2))
    assert 0 < many < few < 1  # more steps of the same sampler end nearer to all of its steps

    # a lane that is changed shows nothing that was made with other settings; the others keep theirs
    kept = lanes_at(page)
    set_lane(page, 1, "DDIM", 9)
    expect(page.locator(".lane-cost").nth(1)).to_be_empty()
    expect(chart.nth(1).locator("b")).to_have_text("\u2013")
    expect(chart.nth(2).locator("b")).to_have_text(f"{many:.3f}")
    expect(page.locator("#compare .stage-status")).to_contain_text("press Compare")
    assert [now == then for now, then in zip(lanes_at(page), kept)] == [True, False, True]
    # and so do they when it is taken away
    page.get_by_role("button", name="Remove this sampler").nth(1).click()
    expect(chart.locator("b")).to_have_text([re.compile(r"0\.\d+"), f"{many:.3f}"])


@pytest.mark.slow
def test_lanes_are_added_removed_and_stopped(open_page):
    page = open_page("colours")
    open_tab(page, "Compare")
    lanes = page.locator(".lane")
    expect(lanes).to_have_count(3)
    page.get_by_role("button", name="Add a sampler").click()
    expect(lanes).to_have_count(4)
    expect(page.get_by_role("button", name="Add a sampler")).to_be_hidden()
    for _ in range(2):
        page.get_by_role("button", name="Remove this sampler").last.click()
    expect(lanes).to_have_count(2)
    expect(page.get_by_role("button", name="Remove this sampler").first).to_be_disabled()
    expect(page.locator(".distances li")).to_have_count(2)

    # two lanes that are the same are refused in words
    set_lane(page, 0, "DDPM", 20)
    set_lane(page, 1, "DDPM", 20)
    compare = page.get_by_role("form", name="What to compare").get_by_role("button", name="Compare")
    compare.click()
    expect(page.get_by_text("Two of the lanes are the same")).to_be_visible()
    page.wait_for_selector(f"{COMPARE}[data-state=empty]")

    set_lane(page, 0, "DDPM", 1000)
    compare.click()
    page.wait_for_selector(f"{COMPARE}[data-state=running]")
    page.wait_for_function(f"Number(document.querySelector('{COMPARE}').dataset.shown) > 3")
    for control in page.locator(".lane-top :is(button, input)").all():
        expect(control).to_be_disabled()  # what is on its way stays as it was asked for
    page.get_by_role("form", name="What to compare").get_by_role("button", name="Stop").click()
    page.wait_for_selector(f"{COMPARE}[data-state=stopped]")
    expect(page.locator(".distances")).to_contain_text("Stopped before the distances were measured.")
    expect(page.locator(".lane-top input").first).to_be_enabled()

    # one that is edited while its picture is being decoded draws it no more, and nothing else happens
    drawn = page.evaluate("""async () => {
      const { compare } = ddpm.parts, [lane] = compare.lanes, { film } = lane, picture = film.picture;
      film.picture = async (frame) => {
        const sheet = await picture.call(film, frame);
        lane.steps.value = 7;
        lane.steps.dispatchEvent(new Event("input"));
        return sheet;
      };
      return await compare.paintLane(lane, 1, compare.run);
    }""")
    assert drawn is False
    expect(lanes.first.locator("canvas")).to_have_attribute("aria-label", "No pictures of these settings yet")


@pytest.mark.slow
def test_a_press_while_distances_are_measured_starts_anew(open_page):
    page = open_page()
    open_tab(page, "Compare")
    bar = page.get_by_role("form", name="What to compare")
    bar.get_by_role("spinbutton", name="Images").fill("1")
    for lane, steps in enumerate((3, 5, 4)):
        page.locator(".lane").nth(lane).get_by_role("spinbutton", name="steps").fill(str(steps))
    compare = bar.get_by_role("button", name="Compare")
    chart, lanes = page.locator(".distances"), page.locator(".lane")
    seed = bar.get_by_role("spinbutton", name="Seed")
    for steps in (6, 7, 8):
        seed.fill(str(steps))  # noise whose distances are not known yet, however fast the machine is
        compare.click()
        page.wait_for_selector(f"{COMPARE}[data-state=measuring]")
        expect(chart).to_contain_text(re.compile(r"DDIM is at step \d+ of 1000 .*, about [\d.]+ (s|min) left"))
        lanes.first.get_by_role("spinbutton", name="steps").fill(str(steps))
        seed.fill(str(100 + steps))
        compare.click()
        expect(lanes.first).to_have_attribute("data-frames", str(steps + 1))
        expect(lanes.last).to_have_attribute("data-frames", "5")
        page.wait_for_selector(f"{COMPARE}[data-state=measuring]")
    bar.get_by_role("button", name="Stop").click()
    page.wait_for_selector(f"{COMPARE}[data-state=done]")
    expect(chart).to_contain_text("Stopped before the distances were measured.")
