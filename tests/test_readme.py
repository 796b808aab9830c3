"""The README says what is there: its settings, snippets, files and modules."""

import importlib.util
import json
import re

import pytest
from helpers import ROOT

from ddpm_hf.config import DataSource, TrainConfig
from scripts.settings_table import END, START, groups, with_tables
from scripts.ship_model import MODEL, with_scores

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
FOLDERS = ("benchmarks", "configs", "data", "ddpm_hf", "docs", "pretrained", "scripts", "tests")


def named_paths() -> set[str]:
    """Files and folders that the text names: those below our folders, Markdown links, and scripts at the top."""
    below = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", README)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in link and not link.startswith("#")]
    top = re.findall(r"(?<![\w./-])(?:train|app)\.py|requirements[\w-]*\.txt|model_card\.md", README)
    return {*below, *links, *top}


def tree_paths() -> set[str]:
    """Paths of the block under "The tree", a folder's entries indented below it."""
    block = re.search(r"^## The tree\n\n((?:    .*\n|\n)+)", README, flags=re.MULTILINE)[1]
    folders, paths = [], set()
    for indent, name in re.findall(r"^    ( *)(\S+)", block, flags=re.MULTILINE):
        depth = len(indent) // 2
        paths.add("".join(folders[:depth]) + name)
        if name.endswith("/"):
            folders[depth:] = [name]
    return paths


def test_settings_are_those_of_the_code():
    assert with_tables(README) == README, "run python -m scripts.settings_table"


def test_scores_are_those_of_the_embedded_model():
    report = json.loads((MODEL / "evaluation.json").read_text())
    assert with_scores(README, report) == README, "run python -m scripts.ship_model --readme"


def test_what_is_told_of_the_training_is_what_the_metrics_say():
    last = json.loads((MODEL / "metrics.jsonl").read_text().splitlines()[-1])
    section = README.split("## The shipped model")[1].split("\n## ")[0]
    assert f"{last['step']:,.0f} steps" in section
    size = sum(file.stat().st_size for file in (MODEL / "unet").glob("*.safetensors"))
    assert f"{size / 1e6:.1f} MB" in section


def test_every_setting_has_a_line():
    section = README.split(START)[1].split(END)[0]
    settings, entry = section.split("**An entry of `datasets`**")
    for part, model in ((settings, TrainConfig), (entry, DataSource)):
        assert re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE) == list(model.model_fields)
    for line in re.findall(r"^\|.*\|$", section, flags=re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
        assert "None" not in line
    assert sum(len(names) for names in groups().values()) == len(TrainConfig.model_fields)


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{START}{END}{START}{END}", f"{START}{END}{END}"])
def test_a_readme_without_its_marks_is_left_alone(text):
    with pytest.raises(ValueError, match="once each"):
        with_tables(text)


def test_text_around_the_marks_stays():
    text = with_tables(f"before{START}outdated{END}after")
    assert text.startswith(f"before{START}\n\n**Where**")
    assert text.endswith(f"\n\n{END}after")
    assert "outdated" not in text
    assert with_tables(text) == text


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[-1][:40])
def test_snippets_are_python(snippet):
    compile(snippet, "README.md", "exec")


def test_the_readme_has_snippets_and_names_files():
    assert len(SNIPPETS) >= 3
    assert {"configs/smoke.yaml", "train.py", "docs/samples.png"} <= named_paths()
    assert {"ddpm_hf/unet.py", "train.py", "tests/", "ddpm_hf/ui/"} <= tree_paths()


@pytest.mark.parametrize("path", sorted(named_paths() | tree_paths()))
def test_files_are_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"python3? -m ([\w.]*\w)", README))))
def test_modules_are_there(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None
    if spec.submodule_search_locations is not None:  # a package needs a __main__ to be run
        assert importlib.util.find_spec(f"{name}.__main__") is not None
