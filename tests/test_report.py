"""The report of a run: its plots, its page, and what a damaged run does to them."""

import base64
import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from ddpm_hf.__main__ import main
from ddpm_hf.checkpoints import write_checkpoint
from ddpm_hf.config import build_config
from ddpm_hf.errors import UserError
from ddpm_hf.report import PAPER, draw_loss, draw_timesteps, smooth, write_report
from ddpm_hf.run import Facts, RunFolder


def line(step, **values):
    loss = 0.03 + math.exp(-step / 100)
    record = {"step": step, "images_seen": 8 * step, "epoch": step / 100, "loss": loss, "lr": 1e-3}
    return {**record, "images_per_second": 100.0, "ema_decay": 0.99, **values}


def validated(step):
    means = [0.1 / (1 + i) + 10 / step for i in range(10)]
    return line(
        step, validation_loss=sum(means) / 10, validation_loss_by_timestep=means, grad_norm=1.0, skipped_steps=2
    )


def make_run(folder: Path, lines=(), samples=(), **settings) -> Path:
    """A run's folder with real files: metrics ``lines`` (dicts or raw text) and grids at the steps ``samples``."""
    (folder / "samples").mkdir(parents=True)
    build_config({"dataset": "set", "max_train_steps": 1000, **settings}).save(folder / "config.yaml")
    text = "".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in lines)
    (folder / "metrics.jsonl").write_text(text)
    for step in samples:
        Image.new("L", (40, 16), step % 256).save(folder / "samples" / f"step-{step:07d}.png")
    return folder


class Page(HTMLParser):
    """What a page holds: ids, classes, links and text; fails on tags that do not pair."""

    VOID = ("meta", "img", "source", "input", "br", "link")

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.tags, self.open, self.texts = [], [], Counter(), [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags[tag] += 1
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    lines = [validated(step) if step % 100 == 0 else line(step) for step in range(10, 1001, 10)]
    run = make_run(tmp_path_factory.mktemp("report") / "my run", lines, range(100, 1001, 100), learning_rate=5e-4)
    (run / "pipeline").mkdir()
    RunFolder(run).keep_facts(Facts(device="two cores"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run):
    return Page(run / "report.html")


def test_every_file_is_whole(run):
    written = {path.name for path in run.iterdir() if path.is_file()}
    assert written == {"config.yaml", "metrics.jsonl", "facts.json", "loss.png", "timesteps.png", "report.html"}
    for name in ("loss.png", "timesteps.png"):
        with Image.open(run / name) as image:
            assert image.width == 1920  # two pixels a CSS pixel
            assert 600 < image.height < 1300
            pixels = np.asarray(image.convert("RGB"))
        paper = tuple(int(PAPER[i : i + 2], 16) for i in (1, 3, 5))
        assert tuple(pixels[0, 0]) == tuple(pixels[-1, -1]) == paper
        assert 0.005 < (pixels != paper).any(axis=-1).mean() < 0.2
        for side in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (side == paper).all(), "something is cut off at the edge"


def test_plots_have_the_lines_that_were_logged(run):
    rows = RunFolder(run).lines()
    figure = draw_loss(rows)
    losses = figure.axes[0]
    raw, smoothed, validation, best = losses.get_lines()
    assert raw.get_ydata() == pytest.approx([row["loss"] for row in rows])
    assert smoothed.get_ydata() == pytest.approx(smooth(raw.get_ydata()))
    assert validation.get_xdata().tolist() == list(range(100, 1001, 100))
    assert best.get_xdata().tolist() == [1000]
    assert [axes.get_title(loc="left") for axes in figure.axes[1:]] == [
        "learning rate",
        "gradient norm",
        "images per second",
    ]
    low, high = losses.get_ylim()
    assert low < min(row["loss"] for row in rows)
    assert low < validation.get_ydata().min() <= validation.get_ydata().max() < high

    profiles = draw_timesteps(rows, {"num_train_timesteps": 500}).axes[0]
    assert [line.get_label() for line in profiles.get_lines()][:: len(profiles.get_lines()) - 1] == [
        "step 100",
        "step 1,000",
    ]
    assert profiles.get_lines()[0].get_xdata().tolist() == [25 + 50 * i for i in range(10)]
    assert profiles.get_lines()[-1].get_ydata() == pytest.approx(rows[-1]["validation_loss_by_timestep"])


def test_the_page_is_one_file_that_can_be_mailed(run, page):
    """All pictures are in it: two plots, the last grid, and a film of all ten."""
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert len(page.links) == 2 + 1 + 10
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.removeprefix("data:image/png;base64,")))) as image:
            image.load()
    assert base64.b64encode((run / "loss.png").read_bytes()).decode() in page.links[0]


def test_the_page_tells_what_is_looked_for(page):
    for text in (
        "Training report · finished",
        "Best validation loss",
        "at step 1,000",
        "Steps skipped 2",
        "Device two cores",
        "learning_rate 0.0005 0.001",  # changed: this run's, the default
        "step 1,000",
        "900\N{EN DASH}999",
        "my run/pipeline' --num-images 16",  # quoted for the shell
    ):
        assert text in page.text


def test_settings_that_differ_from_the_defaults_come_first(tmp_path):
    run = make_run(tmp_path / "run", block_out_channels=[32, 64])
    text = Page(write_report(run)).text
    changed, rest = text.split("settings at their defaults")
    assert "block_out_channels [32, 64] [64, 128, 256, 512]" in changed
    assert "max_train_steps 1000 null" in changed
    assert "learning_rate" not in changed
    assert "learning_rate 0.001" in rest


def test_smoothing_is_a_gaussian_mean_that_is_narrow_at_the_start():
    values = np.random.default_rng(0).exponential(size=200)
    expected = []
    for i in range(200):
        width = max(1e-3, min(i / 6, 4.0))
        weights = [math.exp(-((j - i) ** 2) / (2 * width**2)) for j in range(200)]
        expected.append(sum(w * v for w, v in zip(weights, values)) / sum(weights))
    assert smooth(values) == pytest.approx(expected)
    assert smooth(np.full(7, 3.0)) == pytest.approx([3.0] * 7)
    assert smooth(values[:1]) == pytest.approx(values[:1])


def test_torn_lines_and_numbers_that_are_none(tmp_path):
    lines = [
        line(10, loss=float("nan")),
        "\n",
        "[1, 2]\n",
        "not json\n",
        '{"loss": 1.0}\n',
        '{"step": "20", "loss": 1.0}\n',
        line(20, loss=None, validation_loss="low", validation_loss_by_timestep=[None] * 10),
        line(30, lr=None, images_per_second=1e400, validation_loss_by_timestep=[0.1, None, float("nan")] + [0.2] * 7),
        line(40, loss=10**400),
        line(40, loss=0.5),  # a resumed run wrote it anew
        '{"step": 50, "lo',
    ]
    run = make_run(tmp_path / "run", lines)
    rows = RunFolder(run).lines()
    assert [(row["step"], row["loss"]) for row in rows] == [
        (10, None),
        (20, None),
        (30, pytest.approx(0.7708, abs=1e-4)),
        (40, 0.5),
    ]
    assert rows[2]["validation_loss_by_timestep"][:3] == [0.1, None, None]
    page = Page(write_report(run))
    assert "4% of 1,000 steps" in page.text
    assert "nan" not in page.text.lower().replace("name", "")
    assert {path.name for path in run.glob("*.png")} == {"loss.png", "timesteps.png"}


@pytest.mark.parametrize("losses", [[0.0, 0.0], [1.0, -1.0, 0.5], [0.3], [1e-9, 1e9], [0.5] * 3, [1e30, 0.1]])
def test_losses_of_any_size_can_be_drawn(tmp_path, losses):
    lines = [line(10 * i, loss=loss, lr=0.0, validation_loss=loss) for i, loss in enumerate(losses)]
    write_report(make_run(tmp_path / "run", lines))
    with Image.open(tmp_path / "run" / "loss.png") as image:
        image.load()


def test_long_runs_are_drawn_with_few_points_that_keep_the_spikes():
    rows = [{"step": float(step), "loss": 1.0 + step % 2 + 50 * (step == 7777)} for step in range(10_000)]
    raw, smoothed = draw_loss(rows).axes[0].get_lines()
    assert len(raw.get_xdata()) == 4000
    assert raw.get_xdata()[raw.get_ydata().argmax()] == 7777
    assert (np.diff(raw.get_xdata()) > 0).all()
    assert len(smoothed.get_xdata()) == 2000
    assert np.median(smoothed.get_ydata()) == pytest.approx(1.5, abs=0.05)


def test_a_run_that_has_nothing_yet(tmp_path):
    run = make_run(tmp_path / "run")
    page = Page(write_report(run))
    assert "No loss has been logged yet" in page.text
    assert "No sample grid has been written yet" in page.text
    assert "Use the model" not in page.text
    assert page.tags["img"] == 0
    assert not list(run.glob("*.png"))
    (run / "metrics.jsonl").unlink()
    (run / "samples").rmdir()
    assert write_report(run) == run / "report.html"


def test_many_samples_are_picked_evenly_and_broken_ones_left_out(tmp_path):
    run = make_run(tmp_path / "run", [line(10)], range(1, 101))
    (run / "samples" / "step-0000101.png").write_bytes(b"\x89PNG torn")
    page = write_report(run).read_text()
    steps = [int(step) for step in re.findall(r'alt="">step ([\d,]+)</button>', page)]
    assert (steps[0], steps[-1], len(steps)) == (1, 100, 12)
    assert set(np.diff(steps)) == {9}


def test_nothing_from_a_file_is_taken_for_html(tmp_path):
    hostile = "</td><script>alert('x')</script>\"&"
    run = make_run(tmp_path / "<b>&", [line(10)], dataset=hostile)
    Image.new("L", (4, 4)).save(run / "samples" / "step-1'><b>#?%.png")
    (run / "pipeline").mkdir()
    RunFolder(run).keep_facts(Facts(device=hostile))
    page = Page(write_report(run))
    assert page.tags["script"] == 1
    assert page.tags["b"] == 0
    assert page.text.count(hostile) == 2  # the setting and the fact
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_facts_stay_for_a_later_report(tmp_path):
    run = make_run(tmp_path / "run", [line(10)])
    RunFolder(run).keep_facts(Facts(device="two cores", wall_seconds=95400))
    assert "Device two cores Wall time 1 day, 2:30:00" in Page(write_report(run)).text
    (run / "facts.json").write_text("[1")
    assert "two cores" not in Page(write_report(run)).text


def test_an_older_report_stays_where_a_new_one_cannot_be_made(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", [line(10)])
    write_report(run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    monkeypatch.setattr("ddpm_hf.report._png", lambda figure: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_the_checkpoint_of_an_unfinished_run_is_the_one_to_use(tmp_path):
    run = make_run(tmp_path / "run", [line(10)])
    for step in (90, 100):
        checkpoint = run / "checkpoints" / f"step-{step}"
        write_checkpoint(checkpoint, lambda part: (part / "pipeline").mkdir() or (part / "state.json").write_text("{}"))
    assert f"python -m ddpm_hf push {run}/checkpoints/step-100/pipeline" in Page(write_report(run)).text
    (run / "checkpoints" / "step-100" / "state.json").write_text("{")
    assert f"python -m ddpm_hf push {run}/checkpoints/step-90/pipeline" in Page(write_report(run)).text


def test_from_the_shell(tmp_path):
    run = make_run(tmp_path / "run", [line(10)], num_samples=7)
    command = [sys.executable, "-m", "ddpm_hf", "report", str(run)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, f"wrote {run / 'report.html'}\n"), result.stderr
    assert "num_samples 7 20" in Page(run / "report.html").text


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    (tmp_path / "config.yaml").write_text("a: [")
    assert main(["report", str(tmp_path)]) == 2
    (tmp_path / "config.yaml").write_text("- a")
    assert main(["report", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 4
    assert "is not there; give the output_dir of a training run" in lines[0]
    assert "has no config.yaml" in lines[1]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(UserError):
        write_report(tmp_path / "none")


def test_drawing_leaves_matplotlibs_settings_alone(run):
    script = (
        "import sys, pathlib, ddpm_hf.report as report\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "import matplotlib\n"
        "names = set(matplotlib.rcParams) - {'backend'}  # looking at it would import pyplot\n"
        "before = {name: matplotlib.rcParams[name] for name in names}\n"
        f"report.write_report(pathlib.Path({str(run)!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert {name: matplotlib.rcParams[name] for name in names} == before\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
