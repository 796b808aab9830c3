"""README and docs/ agree with the code: settings, scores, snippets, files, links and modules."""

import importlib.util
import json
import re

import pytest
from helpers import ROOT

from ddpm_hf.config import TrainConfig
from ddpm_hf.evaluation.report_schema import TITLES, read_report
from ddpm_hf.source import Source
from scripts.settings_table import END, START, fields_of, groups, with_tables
from scripts.ship_model import MODEL, with_scores

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
SETTINGS = TEXTS["settings.md"]
FOLDERS = ("benchmarks", "configs", "data", "ddpm_hf", "docs", "pretrained", "scripts", "tests")
SNIPPETS = [
    (name, snippet)
    for name, text in TEXTS.items()
    for snippet in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
]


def named_paths(text: str) -> set[str]:
    """Files and folders of the repository that the text names: those below our folders, and files at the top."""
    below = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", text)
    top = re.findall(r"(?<![\w./-])(?:train|app)\.py|requirements[\w-]*\.txt|model_card\.md", text)
    return {*below, *top}


def links(text: str) -> list[str]:
    """Targets of Markdown links and images that lie in the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [link for link in found if "://" not in link]


def tree_paths() -> set[str]:
    """Paths of the block under "Where things are", a folder's entries indented below it."""
    block = re.search(r"^## Where things are\n\n((?:    .*\n|\n)+)", TEXTS["contributing.md"], flags=re.MULTILINE)[1]
    folders, paths = [], set()
    for indent, name in re.findall(r"^    ( *)(\S+)", block, flags=re.MULTILINE):
        depth = len(indent) // 2
        paths.add("".join(folders[:depth]) + name)
        if name.endswith("/"):
            folders[depth:] = [name]
    return paths


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_settings_are_those_of_the_code():
    assert with_tables(SETTINGS) == SETTINGS, "run python -m scripts.settings_table"


def test_scores_are_those_of_the_embedded_model():
    report = read_report(MODEL / "evaluation.json")
    assert with_scores(TEXTS["README.md"], report) == TEXTS["README.md"], "run python -m scripts.ship_model --readme"


def test_the_text_about_the_training_agrees_with_the_metrics():
    last = json.loads((MODEL / "metrics.jsonl").read_text().splitlines()[-1])
    section = TEXTS["evaluation.md"].split("## The shipped model")[1].split("\n## ")[0]
    assert f"{last['step']:,.0f} steps" in section
    size = sum(file.stat().st_size for file in (MODEL / "unet").glob("*.safetensors"))
    assert f"{size / 1e6:.1f} MB" in section


def test_every_setting_has_a_line():
    section = SETTINGS.split(START)[1].split(END)[0]
    settings, entry = section.split("**An entry of `datasets`**")
    for part, model in ((settings, TrainConfig), (entry, Source)):
        assert re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE) == list(fields_of(model))
    for line in re.findall(r"^\|.*\|$", section, flags=re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
        assert "None" not in line
    assert sum(len(names) for names in groups().values()) == len(TrainConfig.model_fields)


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{START}{END}{START}{END}", f"{START}{END}{END}"])
def test_a_page_without_its_marks_is_an_error(text):
    with pytest.raises(ValueError, match="once each"):
        with_tables(text)


def test_text_around_the_marks_stays():
    text = with_tables(f"before{START}outdated{END}after")
    assert text.startswith(f"before{START}\n\n**Where**")
    assert text.endswith(f"\n\n{END}after")
    assert "outdated" not in text
    assert with_tables(text) == text


@pytest.mark.parametrize(("page", "snippet"), SNIPPETS, ids=lambda text: text.splitlines()[-1][:40])
def test_snippets_are_python(page, snippet):
    compile(snippet, page, "exec")


def test_the_first_snippet_runs_on_any_machine(monkeypatch):
    """Offline, in the repository, with what it says about the pictures."""
    monkeypatch.chdir(ROOT)
    names = {}
    exec(next(snippet for page, snippet in SNIPPETS if page == "README.md"), names)
    assert [len(names[key]) for key in ("images", "bags")] == [16, 4]
    assert all(image.size == (28, 28) and image.mode == "L" for image in names["images"] + names["bags"])


def test_pages_have_snippets_and_name_files():
    assert len(SNIPPETS) >= 4
    assert {"configs/smoke.yaml", "train.py", "docs/samples.png"} <= set().union(*map(named_paths, TEXTS.values()))
    assert {"ddpm_hf/unet.py", "train.py", "tests/", "ddpm_hf/ui/"} <= tree_paths()


def test_the_readme_is_short_and_names_every_page():
    assert TEXTS["README.md"].count("\n") <= 200
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links(TEXTS["README.md"]))


@pytest.mark.parametrize("path", sorted(set().union(tree_paths(), *map(named_paths, TEXTS.values()))))
def test_files_are_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(TEXTS[page.name]):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    "name", sorted({name for text in TEXTS.values() for name in re.findall(r"python3? -m ([\w.]*\w)", text)})
)
def test_modules_are_there(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None
    if spec.submodule_search_locations is not None:  # a package needs a __main__ to be run
        assert importlib.util.find_spec(f"{name}.__main__") is not None


def test_every_score_is_in_the_docs(root):
    told = (root / "docs" / "evaluation.md").read_text().lower()
    assert not [title.metric for title in TITLES.values() if title.metric.lower() not in told]
