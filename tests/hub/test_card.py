"""The model card: what the run says, nothing else, valid, and never in the way of somebody's own."""

import json
from pathlib import Path

import pytest
from helpers import tiny_pipeline
from huggingface_hub import HfApi, ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from ddpm_hf.hub import export_pipeline, push

NAMES = {"0": "sun", "1": "moon"}
EVALUATION = {
    "protocol": {
        "dataset": "shapes",
        "num_images": 100,
        "reference_images": 90,
        "features": "fashion-mnist",
        "sampler": "dpm",
        "steps": 20,
        "seed": 0,
        "reference_split": "test",
        "command": "python -m ddpm_hf evaluate /home/me/runs/x --num-images 100 --output evaluation.json",
    },
    "scores": {"fid": 12.5, "kid": 0.25, "label_accuracy": None},
    "floor": {"fid": 3.5},
    "memorisation": {"ratio": 0.9},
    "findings": ["collapsed: recall 0.5"],
}
FACTS = {
    "Images": "1,000 gray",
    "Device": "2 x GPU 9000",
    "Wall time": "1 day, 2:30:00",
    "Code": "0123abc",
    "Hub data sets": "alice/shapes, alice/secret",
}
pytestmark = pytest.mark.parametrize("hub", ["lfs"], indirect=True)


def a_run(folder: Path, **pipeline) -> Path:
    export_pipeline(folder / "pipeline", tiny_pipeline(**pipeline))
    settings = (
        "dataset: alice/shapes\noutput_dir: /home/me/My runs/x\nseed: 0\nlearning_rate: 0.001\nhorizontal_flip: false\n"
    )
    (folder / "config.yaml").write_text(settings)
    (folder / "metrics.jsonl").write_text('{"step": 1200, "loss": 0.125, "images_seen": 76800}\n{"step": 1300, "lo')
    (folder / "samples").mkdir()
    for name in ("samples/step-0001200.png", "samples/step-0001300.png", "loss.png"):
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def card_of(hub, name="alice/m") -> ModelCard:
    text = hub.repos["model", name].resolve("main").files["README.md"].data.decode()
    card = ModelCard(text)
    card.validate()  # by the Hub's own check, here the double's
    return card


def test_everything_the_run_says_is_in_it(hub, tmp_path):
    api = HfApi()
    api.create_repo("alice/shapes", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=b"---\nlicense: [mit, cc0-1.0]\n---\n",
        path_in_repo="README.md",
        repo_id="alice/shapes",
        repo_type="dataset",
    )
    run = a_run(tmp_path / "run", num_class_embeds=2, id2label=NAMES)
    (run / "facts.json").write_text(json.dumps(FACTS))
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    Image.new("L", (8, 8)).save(run / "evaluation-samples.png")
    push(run, "alice/m", license="apache-2.0", quiet=True)
    card = card_of(hub)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        *("apache-2.0", "diffusers"),
        "unconditional-image-generation",
    )
    assert data.datasets == ["alice/shapes", "alice/secret"]
    assert {"ddpm", "class-conditional"} <= set(data.tags)
    assert data.metrics == ["fid", "kid"]
    fid = next(result for result in data.eval_results if result.metric_type == "fid")
    assert (fid.dataset_type, fid.dataset_name, fid.dataset_split) == ("alice/shapes", "shapes", "test")
    assert (fid.metric_value, fid.metric_name) == (12.5, "FID (fashion-mnist features, 100 images)")
    text = " ".join(card.text.split())
    for said in (
        'DiffusionPipeline.from_pretrained("alice/m", trust_remote_code=True)',
        'load_pipeline("alice/m")',
        "python -m ddpm_hf sample alice/m",
        "grayscale pictures of 8x8 pixels from noise, of 2 classes",
        "1. moon",
        "![generated images](evaluation-samples.png)",
        "| FID | 12.5000 | 3.5000 |",
        "| KID | 0.2500 | |",
        "- collapsed: recall 0.5",
        "evaluate x --num-images 100",
        "1,200 steps, 76,800 images seen; the last training loss is 0.1250",
        "| `seed` | 0 |",
        "commit 0123abc",
        "- [alice/shapes](https://huggingface.co/datasets/alice/shapes), licence mit, cc0-1.0",
        "- [alice/secret](https://huggingface.co/datasets/alice/secret) ",
        "1,000 gray images were trained on",
        "26.5 hours of training on 2 x GPU 9000",
        "## Intended use and limits",
    ):
        assert said in text
    for wrong in ("{{", "{%", "None", "nan", "horizontal_flip", "Label accuracy", "/home/me", "step-0001300"):
        assert wrong not in text
    assert "/home/me" not in hub.repos["model", "alice/m"].resolve("main").files["config.yaml"].data.decode()


def test_it_renders_as_markdown(hub, tmp_path):
    run = a_run(tmp_path / "run", num_class_embeds=2, id2label=NAMES)
    (run / "facts.json").write_text(json.dumps(FACTS))
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    push(run, "alice/m", quiet=True)
    text = card_of(hub).text
    html = MarkdownIt("commonmark").enable("table").render(text)
    for element, count in (("<table>", 2), ("<h2>", 7), ("<pre>", 4), ("<ol", 1)):
        assert html.count(element) == count, element
    assert "|" not in html.replace("||", "")
    files = hub.repos["model", "alice/m"].resolve("main").files
    shown = [token.children for token in MarkdownIt().parse(text) if token.children]
    for picture in (child for children in shown for child in children if child.type == "image"):
        assert picture.attrs["src"].removeprefix("./") in files


def test_what_is_not_known_is_left_out(hub, tmp_path):
    """A pipeline without a run, and a run without facts."""
    export_pipeline(tmp_path / "model", tiny_pipeline())
    push(tmp_path / "model", "alice/m", quiet=True)
    card = card_of(hub)
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "ddpm", "ddpm_hf"],
    }
    headings = [line for line in card.text.splitlines() if line.startswith("#") or "None" in line]
    assert headings == ["# m", "## How to use it", "## Intended use and limits"]


def test_a_card_that_somebody_changed_is_kept(hub, tmp_path, capfd):
    run = a_run(tmp_path / "run")
    push(run, "alice/m", license="mit", quiet=True)
    (run / "metrics.jsonl").write_text('{"step": 2400}\n')
    push(run, "alice/m", quiet=True)
    card = card_of(hub)
    assert "2,400 steps" in card.text and card.data.license == "mit"  # that was given before
    changed = str(card).replace("# m", "# My model, with my words")
    HfApi().upload_file(path_or_fileobj=changed.encode(), path_in_repo="README.md", repo_id="alice/m")
    (run / "metrics.jsonl").write_text('{"step": 3600}\n')
    push(run, "alice/m")
    assert str(card_of(hub)) == str(ModelCard(changed))
    assert "has a README.md of somebody's own, which is kept" in capfd.readouterr().err


def test_metadata_from_the_websites_form_is_not_somebodys_own_card(hub, tmp_path):
    HfApi().create_repo("alice/m")
    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id="alice/m")
    push(a_run(tmp_path / "run"), "alice/m", quiet=True)
    card = card_of(hub)
    assert card.data.license == "mit" and "# m" in card.text


def test_names_that_are_no_ascii_or_look_like_yaml(hub, tmp_path):
    names = {"0": "日本", "1": "a: [b] | *c* {{ 7 * 7 }}"}
    run = a_run(tmp_path / "run", num_class_embeds=2, id2label=names)
    (run / "config.yaml").write_text("dataset: Blüten und mehr\nseed: 0\n", encoding="utf-8")
    push(run, "acme/m.1-x_y", quiet=True)
    card = card_of(hub, "acme/m.1-x_y")
    for said in ("0. 日本", "1. a: [b] | *c* {{ 7 * 7 }}", "- Blüten und mehr", "# m.1-x_y"):
        assert said in card.text


def test_labels_that_are_no_numbers_come_last(hub, tmp_path):
    names = {"ten": "last", "10": "third", "9": "second", "0": "first"}
    push(a_run(tmp_path / "run", num_class_embeds=4, id2label=names), "alice/m", quiet=True)
    text = card_of(hub).text
    places = [text.index(f". {name}") for name in ("first", "second", "third", "last")]
    assert places == sorted(places)
