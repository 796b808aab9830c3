"""A model that reads words, in a real browser: the prompt is drawn, carried by links, and nothing but text."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from driving import finish, generate, set_number
from helpers import ROOT
from playwright.sync_api import expect

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "words"))  # tiny_encoder is shared with the tests there
PROMPT = "a red <b>square</b> & 'more'"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The app with a tiny model that reads words, from the folder of its run."""
    from app_server import AppServer, tiny_pipeline
    from tiny_encoder import WIDTH, tiny_encoder

    from ddpm_hf.hub import export_pipeline
    from ddpm_hf.pipeline import MyDDPMPipeline
    from ddpm_hf.text_encoders import load_text_encoder
    from ddpm_hf.unet import MyUNet

    folder = tmp_path_factory.mktemp("words")
    scheduler = tiny_pipeline(conditional=False).scheduler
    unet = MyUNet(sample_size=16, block_out_channels=(16, 32), num_train_timesteps=1000, cross_attention_dim=WIDTH)
    pipeline = MyDDPMPipeline(unet, scheduler, **load_text_encoder(tiny_encoder(folder / "encoder"))._asdict())
    model = export_pipeline(folder / "model", pipeline)
    (model / "facts.json").write_text(json.dumps({"prompts": ["blue", "<i>green</i>"]}))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    server = AppServer(model, tmp_path_factory.mktemp("scratch"), PYTHONPATH=path)
    yield server
    server.stop()


def test_a_prompt_is_drawn_and_comes_back_with_the_link(browser, server):
    context, complaints = browser.new_context(), []
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("html[data-ready]", state="attached")
    field = page.get_by_label("Prompt")
    page.get_by_role("button", name="<i>green</i>").click()
    expect(field).to_have_value("<i>green</i>")
    field.fill(PROMPT)
    set_number(page, "Steps", 4)
    generate(page)
    finish(page, 4)
    assert page.evaluate("ddpm.parts.stage.run.settings.prompt") == PROMPT
    assert parse_qs(urlparse(page.url).query)["prompt"] == [PROMPT]

    field.fill("")
    generate(page)
    page.wait_for_function("ddpm.parts.stage.run.settings.prompt === undefined")
    finish(page, 4)
    page.go_back()
    expect(field).to_have_value(PROMPT)
    page.wait_for_function(f"ddpm.parts.stage.run?.settings.prompt === {json.dumps(PROMPT)}")
    finish(page, 4)
    page.get_by_role("tab", name="Take away").click()
    expect(page.get_by_text(f"“{PROMPT}”")).to_be_visible()
    assert page.locator("#settings b, #settings i").filter(has_text="square").count() == 0
    assert field.get_attribute("maxlength") == "1000" and complaints == []
    context.close()
