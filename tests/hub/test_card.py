"""The model card: what the run says, nothing else, valid, and never in the way of somebody's own."""

import json
import re
import shlex

import numpy as np
import pytest
from example_runs import EVALUATION, FACTS, NAMES, a_run, card_of
from helpers import tiny_pipeline
from huggingface_hub import HfApi, ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from ddpm_hf.__main__ import main
from ddpm_hf.figures import make_grid
from ddpm_hf.hub import as_stock, card, export_pipeline, load_pipeline, push
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import Sampling, with_sampling

pytestmark = pytest.mark.usefixtures("uploads_here")


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
        "| FID | 12.500 | 3.500 |",
        "| KID x 1000 | 250.000 | |",
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


def test_all_figures_of_the_run_are_shown(hub, tmp_path):
    """And of its grids the first, the last, and some between, in a row of a table."""
    run = a_run(tmp_path / "run")
    (run / "config.yaml").write_text("dataset: shapes\nattention_levels: []\n")
    figures = ["loss.png", "timesteps.png", "noise.png"]
    for name in [*figures, *(f"samples/step-{step:07}.png" for step in range(200, 1200, 200))]:
        Image.new("L", (8, 8)).save(run / name)
    push(run, "alice/m", quiet=True)
    text = card_of(hub).text
    html = MarkdownIt("commonmark").enable("table").render(text)
    for name in figures:
        assert html.count(f'<img src="{name}"') == 1
    grids = [int(step) for step in re.findall(r'<td><img src="./samples/step-(\d+).png"', html)]
    assert grids == [200, 600, 800, 1200]  # of 200, 400, ... 1200
    assert re.findall(r"<th>step ([\d,]+)</th>", html)[-1] == "1,200"
    assert "| `attention_levels` | none |" in text


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


def stock_pipeline():
    from diffusers import DDPMScheduler, UNet2DModel

    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return as_stock(
        MyDDPMPipeline(UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks), DDPMScheduler(30))
    )


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda: tiny_pipeline(num_class_embeds=3, num_train_timesteps=12), 12),
        (lambda: tiny_pipeline(num_class_embeds=1), 20),
        (lambda: tiny_pipeline(num_train_timesteps=7), 7),
        (stock_pipeline, 20),
    ],
    ids=["classes", "one class", "no classes", "stock"],
)
def test_its_three_ways_work_as_they_are(hub, tmp_path, monkeypatch, capsys, make, steps):
    export_pipeline(tmp_path / "model", make())
    push(tmp_path / "model", "alice/m", quiet=True)
    text = card_of(hub).text
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shell,) = re.findall(r"```\npython -m ddpm_hf (sample .*?)\n```", text)
    names = {}
    exec(first, names)
    images = names["images"]
    assert [image.size for image in images] == [(8, 8)] * 4
    assert len(names["pipeline"].scheduler.timesteps) == steps
    capsys.readouterr()
    exec(second, names)
    assert capsys.readouterr().out.count("torch.Size([4, 1, 8, 8])") == steps
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(shell)) == 0
    assert Image.open("grid.png").width > 8


@pytest.mark.parametrize("conditional", [True, False])
def test_the_ways_of_a_model_with_sampling_of_its_own(hub, tmp_path, monkeypatch, conditional):
    """The same pictures by diffusers alone and from the shell, and the card says how they are made."""
    pipeline = tiny_pipeline(num_class_embeds=3 if conditional else None)
    own = Sampling("dpm-sde", 4, 2.0, (0, 8)) if conditional else Sampling("dpm-sde", 4, 1.0, None)
    push(export_pipeline(tmp_path / "model", with_sampling(pipeline, own)), "alice/m", quiet=True)
    text = card_of(hub).text
    assert ("4 steps, guidance 2.0 at timesteps 0 to 8, classes in turn." in text) == conditional
    assert ("as its settings have it: 4 steps. `class_labels`" in text) != conditional
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shell,) = re.findall(r"```\npython -m ddpm_hf (sample .*?)\n```", text)
    names = {}
    exec(first, names)
    exec(second, names)
    assert names["step"].index == 3
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(shell), "--dtype", "float32"]) == 0
    expected = np.asarray(make_grid(names["images"], scale=2)).astype(int)
    assert np.abs(np.asarray(Image.open("grid.png")).astype(int) - expected).max() <= 1


# ---- other facts on the card


def test_licences_and_where_the_settings_come_from(hub, tmp_path):
    run = a_run(tmp_path / "run")
    settings = "dataset: /home/me/my pictures\nseed: 0\nhub_license: apache-2.0\ndataset_license: cc0-1.0\n"
    (run / "config.yaml").write_text(settings)
    (run / "facts.json").write_text(json.dumps({"settings_from": "configs/x.yaml; seed on the command line"}))
    push(run, "alice/m", quiet=True)
    card = card_of(hub)
    assert card.data.license == "apache-2.0"
    for said in (
        "- my pictures, licence cc0-1.0",
        "The settings are from configs/x.yaml; seed on the command line.",
        "## Licence\n\napache-2.0.",
    ):
        assert said in card.text
    assert main(["push", str(run), "--repo-id", "alice/m", "--license", "mit", "--dataset-license", "other"]) == 0
    card = card_of(hub)
    assert card.data.license == "mit" and "- my pictures, licence other" in card.text


def test_the_model_that_it_was_made_of(hub, tmp_path):
    """As diffusers notes it, or as the owner says; never itself."""
    export_pipeline(tmp_path / "base", tiny_pipeline())
    push(tmp_path / "base", "alice/base", quiet=True)
    assert card_of(hub, "alice/base").data.base_model is None
    loaded = MyDDPMPipeline.from_pretrained("alice/base", trust_remote_code=True)
    loaded.unet.out_conv.bias.data += 1.0
    loaded.save_pretrained(tmp_path / "tuned")
    for name, base in (("alice/tuned", "alice/base"), ("alice/base", None)):
        push(tmp_path / "tuned", name, quiet=True)
        assert card_of(hub, name).data.base_model == base
    assert load_pipeline("alice/tuned").num_classes is None
    HfApi().create_repo("alice/said")
    said = b"---\nbase_model: acme/first\n---\n"
    HfApi().upload_file(path_or_fileobj=said, path_in_repo="README.md", repo_id="alice/said")
    for _ in range(2):
        push(tmp_path / "base", "alice/said", quiet=True)
        assert card_of(hub, "alice/said").data.base_model == "acme/first"


def test_a_card_of_ours_in_the_folder_is_written_anew(hub, tmp_path):
    """For its repository, as the shipped model's; not where it would say less, nor one that somebody changed."""
    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    values = card.card_values(run_files_of(folder), "mit")
    (folder / "README.md").write_text(card.render_card(values, "alice/first"))
    push(folder, "alice/third", quiet=True)  # as it was downloaded
    assert str(card_of(hub, "alice/third")) == str(ModelCard((folder / "README.md").read_text()))
    (folder / "facts.json").write_text(json.dumps(FACTS))
    push(folder, "alice/second", quiet=True)
    text = str(card_of(hub, "alice/second"))
    assert "alice/first" not in text and '"alice/second"' in text and card.given_in(text)["license"] == "mit"
    changed = (folder / "README.md").read_text().replace("# first", "# My first")
    (folder / "README.md").write_text(changed)
    push(folder, "alice/second", quiet=True)
    assert str(card_of(hub, "alice/second")) == str(ModelCard(changed))
