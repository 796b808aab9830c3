"""The report of a run: ``loss.png``, ``timesteps.png`` and ``report.html``, one file with all its pictures inside."""

import base64
import io
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import printable
from ddpm_hf.figures import pick_frames
from ddpm_hf.files import write_whole
from ddpm_hf.reading import LARGEST_JSON, is_finite, open_regular
from ddpm_hf.run import RunFolder

TEMPLATE = Path(__file__).with_name("report.html.jinja")
WIDTH = 960  # CSS pixels of a plot, which has two pixels for each
PAPER, INK, MUTED, LINE = "#fdfcfa", "#1f1d1a", "#6b665e", "#e4dfd6"
TRAINING, VALIDATION, EARLIER = "#2a6fb0", "#c8500f", "#ecbb9c"  # blue and orange, which also differ in lightness
MOST_SAMPLES, MOST_PROFILES, LAST_LINES = 12, 6, 8
MOST_POINTS = 2000  # of a smooth line: more are not seen, and smoothing takes their square
LONGEST_VALUE = 5000  # characters of a setting: it may list a hundred class names
DASH = "\N{EM DASH}"
PANELS = {"lr": "learning rate", "grad_norm": "gradient norm", "images_per_second": "images per second"}
# columns of metrics.jsonl that the page shows: name and format of each
COLUMNS = {
    "step": ("step", ",.0f"),
    "epoch": ("epoch", ".2f"),
    "loss": ("loss", "#.4g"),
    "validation_loss": ("validation loss", "#.4g"),
    "lr": ("learning rate", ".4g"),
    "grad_norm": ("gradient norm", "#.4g"),
    "images_per_second": ("images / s", "#.4g"),
    "ema_decay": ("EMA decay", ".5f"),
    "skipped_steps": ("skipped steps", ",.0f"),
}


def write_report(folder: Path) -> Path:
    """Write the report of a run that has ended, was stopped, or is still going, and return its page.

    Into the run's folder: ``loss.png`` where a loss was logged, ``timesteps.png`` where there are validation losses by
    timestep, and ``report.html``, which holds them and some of the grids in ``samples/``. Each appears whole or not at
    all. Of the run's files, config.yaml alone has to be there.

    Raises:
        UserError: if ``folder`` is not that of a run, or its ``config.yaml`` is not YAML.
        OSError: if a file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    run = RunFolder(folder)
    settings = {printable(name): value for name, value in run.read_settings().items()}
    rows = run.lines()
    figures = {"loss": draw_loss(rows), "timesteps": draw_timesteps(rows, settings)}
    plots = {name: _png(figure) for name, figure in figures.items() if figure is not None}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.path.resolve().name,
        state=_state(rows, settings),
        headline=_headline(rows),
        plots={name: _embedded(png) for name, png in plots.items()},
        timesteps=_timestep_table(rows, settings),
        samples=_samples(run),
        lines=_last_lines(rows),
        facts={label: printable(text) for label, text in run.facts().described().items()},
        settings=_compared(settings),
        use=_commands(run),
        width=WIDTH,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    for name, png in plots.items():
        write_whole(run.path / f"{name}.png", lambda path, png=png: path.write_bytes(png))
    write_whole(run.path / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return run.path / "report.html"


# ---- plots. Figures are made without pyplot: nothing of matplotlib's global state is used or changed


def draw_loss(rows: Sequence[Mapping]):
    """Figure of the losses, with the learning rate, gradient norm and speed below; None if no loss was logged."""
    steps, losses = _series(rows, "loss")
    if not len(steps):
        return None
    panels = {name: title for name, title in PANELS.items() if len(_series(rows, name)[0])}
    figure = _figure(5.6 if panels else 4.2)
    grid = figure.add_gridspec(2 if panels else 1, max(1, len(panels)), height_ratios=[3.4, 1][: 2 if panels else 1])
    axes = _axes(figure, grid[0, :], "optimizer step")
    smooth_steps, smoothed = _smoothed(steps, losses)
    axes.plot(*_outline(steps, losses), color=TRAINING, alpha=0.3, linewidth=1)
    marker = "o" if len(steps) == 1 else None
    label = f"training, smoothed  {_short(smoothed[-1])}"
    axes.plot(smooth_steps, smoothed, color=TRAINING, linewidth=2, marker=marker, label=label)
    validation_steps, validation = _series(rows, "validation_loss")
    if len(validation):
        label, size = f"validation  {_short(validation[-1])}", 4 if len(validation) <= 40 else 0
        axes.plot(validation_steps, validation, "o-", color=VALIDATION, linewidth=1.6, markersize=size, label=label)
        best = int(validation.argmin())
        label, ring = f"best  {_short(validation[best])} at step {validation_steps[best]:,.0f}", "none"
        axes.plot(
            *(validation_steps[best], validation[best], "o"),
            color=VALIDATION,
            ms=9,
            mfc=ring,
            clip_on=False,
            label=label,
        )
    _legend(axes)
    # the first losses are so large that, in view, they would flatten all that follow
    high = max(np.quantile(losses, 0.97), smoothed[len(smoothed) // 30 :].max(), validation.max(initial=-np.inf))
    peak = int(losses.argmax())
    high = high if losses[peak] >= 1.3 * high else np.concatenate([losses, validation]).max()
    _loss_axis(axes, min(losses.min(), validation.min(initial=np.inf)), high)
    if losses[peak] > high:
        back = next((i for i in range(peak, len(losses)) if losses[i] < 0.9 * high), peak)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        axes.annotate(f"↑ up to {_short(losses[peak])}", (steps[back], 1), (8, -2), color=MUTED, fontsize=9, **place)
    axes.set_xlim(min(0, steps[0]), 1.008 * steps[-1] + (len(steps) == 1))
    for column, (name, title) in enumerate(panels.items()):
        panel = _axes(figure, grid[1, column])
        steps, values = _series(rows, name)
        noisy = name != "lr"
        marker = "o" if len(steps) == 1 else None
        panel.plot(*_outline(steps, values), color=INK, linewidth=1, alpha=0.3 if noisy else 0.9, marker=marker)
        if noisy:
            panel.plot(*_smoothed(steps, values), color=INK, linewidth=1.3)
        panel.set_title(title, loc="left", color=MUTED, fontsize=9)
        high = np.quantile(values, 0.99) if len(values) > 20 else values.max()  # a spike should not flatten the rest
        panel.set_ylim(min(0, values.min()), (high * 1.12) or 1)
        panel.locator_params(nbins=4, steps=[1, 2, 5, 10])
        panel.set_xlim(axes.get_xlim())
    return figure


def draw_timesteps(rows: Sequence[Mapping], settings: Mapping[str, Any]):
    """Figure of the validation loss by timestep, a line for each of some validations; None if there are none."""
    profiles = _profiles(rows)
    if not profiles:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    profiles = [profiles[i] for i in pick_frames(MOST_PROFILES, len(profiles))]
    edges, figure = _edges(settings, len(profiles[0][1])), _figure(3.8)
    axes = _axes(figure, figure.add_gridspec(1, 1)[0], "timestep: low noise to high noise")
    colors = LinearSegmentedColormap.from_list("", [EARLIER, VALIDATION])
    for i, (step, losses) in enumerate(profiles, 1):
        values = np.array(losses, dtype=float)
        color, centers = colors(i / len(profiles)), (edges[:-1] + edges[1:]) / 2
        axes.plot(centers, values, "o-", color=color, linewidth=1.6, markersize=4, label=f"step {step:,}")
    _legend(axes)
    everything = [value for _, losses in profiles for value in losses if value is not None]
    _loss_axis(axes, min(everything), max(everything))
    axes.set_xlim(edges[0], edges[-1])
    return figure


def _figure(height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 100, height), dpi=100, layout="constrained", facecolor=PAPER)


def _axes(figure, place, xlabel: str | None = None):
    """Axes with light horizontal lines and no box."""
    axes = figure.add_subplot(place, facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=LINE)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.set_xlabel(xlabel or "", color=MUTED, fontsize=9.5)
    return axes


def _legend(axes):
    """Names of the lines above the plot, from its left end."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, ncols=MOST_PROFILES, frameon=False, fontsize=9
    )


def _loss_axis(axes, low: float, high: float):
    """A log scale with plain numbers at it; a linear one where a value is not positive."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    many = low > 0 and high / low > 8
    margin = 0.05 * (high - low) + 1e-9
    limits = (low / 1.06, high * 1.06) if low > 0 else (low - margin, high + margin)
    if low > 0:
        axes.set_yscale("log")
    locator = LogLocator(subs=(1, 2, 5), numticks=12) if many else MaxNLocator(6, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_ylim(*limits)


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


# ---- numbers


def _series(rows: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values (N,) of the lines that have a number under ``name``."""
    points = [(row["step"], row[name]) for row in rows if is_finite(row.get(name))]
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smooth course of the values, of means of neighbours where they are more than ``MOST_POINTS``."""
    if len(steps) > MOST_POINTS:
        steps, values = (np.array([part.mean() for part in np.array_split(a, MOST_POINTS)]) for a in (steps, values))
    return steps, smooth(values)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of each value's neighbours, with Gaussian weights; (N,) -> (N,).

    The standard deviation is N / 50 values (at least 1.5), and i / 6 near the start, where a loss falls steeply:
    unlike an exponential average, the result does not lag behind.
    """
    position = np.arange(len(values))
    width = np.minimum(position / 6, max(1.5, len(values) / 50)).clip(1e-3)
    weights = np.exp(-0.5 * ((position[None] - position[:, None]) / width[:, None]) ** 2)  # (N, N)
    return weights @ values / weights.sum(axis=1)


def _outline(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is seen of a line of very many points: the least and the largest of neighbours, so that spikes stay."""
    if len(steps) <= 2 * MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    kept = sorted({part[pick(values[part])] for part in parts for pick in (np.argmin, np.argmax)})
    return steps[kept], values[kept]


def _profiles(rows: Sequence[Mapping]) -> list[tuple[int, list[float | None]]]:
    """(step, validation losses by timestep) of the lines that have them, in as many ranges as the last."""
    found = [(row["step"], row.get("validation_loss_by_timestep")) for row in rows]
    found = [(step, losses) for step, losses in found if isinstance(losses, list) and any(map(is_finite, losses))]
    return [profile for profile in found if len(profile[1]) == len(found[-1][1])]


def _edges(settings: Mapping[str, Any], count: int) -> np.ndarray:
    """Bounds (count + 1,) of equal ranges of the timesteps, of a thousand where their number is not known."""
    total = settings.get("num_train_timesteps")
    return np.linspace(0, total if is_finite(total) and total > 0 else 1000, count + 1)


def _short(value: float) -> str:
    """Three digits: 0.0284, 12.3, 8.70e-5."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".").replace("e-0", "e-")


# ---- parts of the page


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _state(rows, settings) -> str:
    """How far the run is: 'finished' or a share of what was asked for."""
    if not rows:
        return "no line of metrics yet"
    for name, unit, done in (("max_train_steps", "steps", "step"), ("num_epochs", "epochs", "epoch")):
        total, now = settings.get(name), rows[-1].get(done)
        if is_finite(total) and total > 0 and is_finite(now):
            # epoch is rounded to four digits
            return "finished" if now >= total - 1e-4 else f"{now / total:.0%} of {total:,g} {unit}"
    return ""


def _headline(rows) -> list[tuple[str, str, str]]:
    """(label, number, remark) of the numbers that are looked for first."""
    if not rows:
        return []
    last = rows[-1]
    epoch = last.get("epoch")
    numbers = [("Step", f"{last['step']:,.0f}", "" if epoch is None else f"epoch {epoch:.4g}")]
    if last.get("images_seen") is not None:
        numbers.append(("Images seen", f"{last['images_seen']:,.0f}", ""))
    steps, losses = _series(rows, "loss")
    if len(steps):
        numbers.append(("Training loss", _short(_smoothed(steps, losses)[1][-1]), "smoothed, at the end"))
    steps, losses = _series(rows, "validation_loss")
    if len(steps):
        best = int(losses.argmin())
        numbers.append(("Best validation loss", _short(losses[best]), f"at step {steps[best]:,.0f}"))
    _, speeds = _series(rows, "images_per_second")
    if len(speeds):
        numbers.append(("Images a second", _short(float(np.median(speeds))), "median"))
    if last.get("skipped_steps"):
        numbers.append(("Steps skipped", f"{last['skipped_steps']:,.0f}", "loss exploded or not finite"))
    return numbers


def _timestep_table(rows, settings) -> dict[str, list] | None:
    """Header and rows of the validation loss by timestep: first, middle and last validation, and the change."""
    profiles = _profiles(rows)
    if not profiles:
        return None
    picked = [profiles[i] for i in pick_frames(3, len(profiles))]
    edges = [math.ceil(edge) for edge in _edges(settings, len(picked[0][1])).round(6)]
    table = []
    for low, high, *values in zip(edges, edges[1:], *(losses for _, losses in picked)):
        cells = [DASH if value is None else _short(value) for value in values]
        if len(values) > 1:
            known = values[0] and values[-1] is not None
            cells.append(f"{values[-1] / values[0] - 1:+.0%}".replace("-", "\N{MINUS SIGN}") if known else DASH)
        table.append([f"{low:,}" if high - low < 2 else f"{low:,}\N{EN DASH}{high - 1:,}", *cells])
    header = ["Timesteps", *(f"Step {step:,}" for step, _ in picked), *["Change"] * (len(picked) > 1)]
    return {"header": header, "rows": table}


def _samples(run: RunFolder) -> list[dict[str, Any]]:
    """The sample grids that can be read, oldest first: all where they are few, else evenly picked."""
    from PIL import Image

    found = []
    for step, path in run.grids().items():
        try:
            with open_regular(path) as file, Image.open(file) as image:
                if os.fstat(file.fileno()).st_size <= LARGEST_JSON:
                    found.append((step, path, image.size))
        except (OSError, ValueError, Image.DecompressionBombError):  # torn, or no image
            continue
    samples = []
    for step, path, (width, height) in (found[i] for i in pick_frames(MOST_SAMPLES, len(found))):
        # grids are enlarged twice already: their pixels stay square at multiples of a half
        factor = max(2, min(2 * WIDTH // width, 2 * 640 // height)) / 2
        size = {"width": round(factor * width), "height": round(factor * height)}
        samples.append({"src": _embedded(path.read_bytes()), "title": f"step {step:,}", **size})
    return samples


def _last_lines(rows) -> dict[str, list] | None:
    """Header and rows of the last lines of metrics.jsonl, with the columns that have any number."""
    lines = rows[-LAST_LINES:]
    shown = {name: column for name, column in COLUMNS.items() if any(is_finite(row.get(name)) for row in lines)}
    cells = [
        [format(row[name], style).rstrip(".") if is_finite(row.get(name)) else "" for name, (_, style) in shown.items()]
        for row in lines
    ]
    return {"header": [title for title, _ in shown.values()], "rows": cells} if shown else None


def _compared(settings) -> dict[str, list[tuple[str, str, str]]]:
    """(name, value, default) of the settings: those that are ``changed`` from known defaults, and of the ``rest``."""
    rows, defaults = {"changed": [], "rest": []}, TrainConfig.model_construct().model_dump(mode="json")
    for name, value in settings.items():
        default = _plain(defaults[name]) if name in defaults else ""
        changed = name in defaults and _plain(value) != default
        rows["changed" if changed else "rest"].append((name, _plain(value), default))
    return rows


def _plain(value) -> str:
    """A setting as one would type it. 1 and 1.0 are the same."""
    if isinstance(value, str):
        return printable(value, LONGEST_VALUE)
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return f"[{', '.join(_plain(item) for item in value)}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return printable(json.dumps(value, ensure_ascii=False, default=str), LONGEST_VALUE)


def _commands(run: RunFolder) -> list[tuple[str, str]]:
    """(title, code) of how to use the run's pipeline: the exported one, or that of the newest checkpoint."""
    pipeline = run.pipeline_folder()
    if pipeline == run.path:  # there is none yet
        return []
    shell = shlex.quote(pipeline.as_posix())
    text = json.dumps(pipeline.as_posix(), ensure_ascii=False)  # a Python string too
    return [
        ("Sample", f"python -m ddpm_hf sample {shell} --num-images 16 --seed 0 --output grid.png"),
        ("Watch it", f"python app.py --model {shell}"),
        (
            "Load, with diffusers alone",
            "from diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({text}, trust_remote_code=True)\n"
            "images = pipeline(batch_size=4, seed=0).images",
        ),
        ("Push to the Hub", f"python -m ddpm_hf push {shell} --repo-id you/your-model --private"),
    ]
