"""The report of a run: ``loss.png``, ``timesteps.png`` and ``report.html``, made from what the run wrote."""

import base64
import io
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml

from ddpm_hf.errors import UserError
from ddpm_hf.figures import pick_frames
from ddpm_hf.files import write_whole

TEMPLATE = Path(__file__).with_name("report.html.jinja")
PAGE_WIDTH = 960  # CSS pixels
MOST_SAMPLES = 12
MOST_POINTS = 2000  # of a smooth line: more are not seen, and smoothing takes their square
MOST_PROFILES = 6  # lines in the plot by timestep
LAST_LINES = 8
ROUND = (1, 2, 5, 10)  # distances of ticks

# columns of metrics.jsonl as the page names them, in its order
COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "validation_loss": "validation loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_second": "images / s",
    "ema_decay": "EMA decay",
    "skipped_steps": "skipped steps",
}


def write_report(
    run: Path, facts: Mapping[str, str] | None = None, *, defaults: Mapping[str, Any] | None = None
) -> Path:
    """Write the report of a run that has ended, was stopped, or is still going, and return its page.

    Into the run's folder: ``loss.png`` where a loss was logged, ``timesteps.png`` where there are validation losses by
    timestep, and ``report.html``, which shows them and links to ``samples/``. Each appears whole or not at all.

    Args:
        run: ``output_dir`` of a run, with ``config.yaml``; ``metrics.jsonl`` and ``samples/*.png`` may be missing.
        facts: what only the trainer knows, label -> text (data set, device, wall time, ...). They are kept as
            ``facts.json``, and read from there when None, so that a report made later shows them too.
        defaults: the default of every setting, as in ``config.yaml``; settings that differ are shown first.

    Raises:
        UserError: if ``run`` is not the folder of a run, or its ``config.yaml`` is not YAML.
        OSError: if a file cannot be written.
    """
    run = Path(run)
    settings = _read_settings(run)
    if facts is None:
        facts = _read_facts(run)
    else:
        keep_facts(run, facts)
    rows = read_metrics(run / "metrics.jsonl")
    figures = [
        _figure(run, "loss", lambda look: draw_loss(rows, look), _loss_in_words(rows)),
        _figure(run, "timesteps", lambda look: draw_timesteps(rows, settings, look), _timesteps_in_words()),
    ]
    page = _render(
        name=run.resolve().name,
        state=_state(rows, settings),
        headline=_headline(rows),
        figures=dict(zip(("loss", "timesteps"), figures)),
        timesteps=_timestep_table(rows, settings),
        samples=_samples(run),
        lines=_last_lines(rows),
        facts=facts,
        settings=_compared(settings, defaults),
        use=_commands(run),
        light=LIGHT,
        dark=DARK,
        page_width=PAGE_WIDTH,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    write_whole(run / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return run / "report.html"


# ---- reading


def _read_settings(run: Path) -> dict[str, Any]:
    if not run.is_dir():
        raise UserError(f"run {run} is not there; give the output_dir of a training run.")
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{run} has no config.yaml; give the output_dir of a training run.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{run / 'config.yaml'} is not YAML.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{run / 'config.yaml'} must hold 'setting: value' lines.")
    return {str(name): value for name, value in settings.items()}


def keep_facts(run: Path, facts: Mapping[str, str]):
    """Write what only the trainer knows, for a later report or push."""
    text = json.dumps({str(label): str(value) for label, value in facts.items()}, indent=1)
    write_whole(run / "facts.json", lambda path: path.write_text(text))


def _read_facts(run: Path) -> dict[str, str]:
    try:
        facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
        return {str(label): str(value) for label, value in facts.items()}
    except (FileNotFoundError, ValueError, AttributeError):  # none, or not ours
        return {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` with increasing ``step``, one dict a line; [] if there is no file.

    Numbers are finite floats; what is null, not finite or no number is None. ``validation_loss_by_timestep`` is a list
    of such values. Torn lines are left out, and so are lines that a resumed run has written anew.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(values, dict) or (step := _number(values.get("step"))) is None:
            continue
        while rows and rows[-1]["step"] >= step:
            rows.pop()
        rows.append({str(name): _clean(value) for name, value in values.items()})
    return rows


def _clean(value):
    return [_number(item) for item in value] if isinstance(value, list) else _number(value)


def _number(value) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _series(rows: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values (N,) of the lines that have a number under ``name``."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float)]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smooth course of the values, of means of neighbours where they are more than ``MOST_POINTS``."""
    if len(steps) > MOST_POINTS:
        steps, values = (np.array([part.mean() for part in np.array_split(a, MOST_POINTS)]) for a in (steps, values))
    return steps, smooth(values)


def _outline(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is seen of a line of very many points: the least and the largest of neighbours, so that spikes stay."""
    if len(steps) <= 2 * MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    kept = sorted({part[pick(values[part])] for part in parts for pick in (np.argmin, np.argmax)})
    return steps[kept], values[kept]


def _profiles(rows: Sequence[Mapping]) -> list[tuple[int, list[float | None]]]:
    """(step, validation losses by timestep) of the lines that have them, those of another number of ranges left out."""
    found = [
        (int(row["step"]), row["validation_loss_by_timestep"])
        for row in rows
        if isinstance(row.get("validation_loss_by_timestep"), list)
        and any(value is not None for value in row["validation_loss_by_timestep"])
    ]
    return [profile for profile in found if len(profile[1]) == len(found[-1][1])]


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of each value's neighbours, with Gaussian weights; (N,) -> (N,).

    The standard deviation is N / 50 values (at least 1.5), and i / 6 near the start, where a loss falls steeply:
    unlike an exponential average, the result does not lag behind.
    """
    position = np.arange(len(values))
    width = np.minimum(position / 6, max(1.5, len(values) / 50)).clip(1e-3)
    weights = np.exp(-0.5 * ((position[None] - position[:, None]) / width[:, None]) ** 2)  # (N, N)
    return weights @ values / weights.sum(axis=1)


# ---- plots. Figures are made by hand, without pyplot: nothing of matplotlib's global state is used or changed


@dataclass(frozen=True)
class Look:
    """Colours and measures of a plot. One point of matplotlib is one CSS pixel."""

    paper: str
    ink: str
    muted: str
    line: str
    training: str  # blue and orange are told apart by the colour-blind, and by their lightness
    validation: str
    first: str  # of lines over time; the last has the colour of the validation
    narrow: bool = False

    @property
    def width(self) -> int:
        return 358 if self.narrow else PAGE_WIDTH

    @property
    def font(self) -> float:
        return 11.5 if self.narrow else 13


LIGHT = Look("#fdfcfa", "#1f1d1a", "#6b665e", "#e4dfd6", "#2a6fb0", "#c8500f", "#ecbb9c")
DARK = Look("#171614", "#f1eee8", "#a29c92", "#383530", "#74b4f0", "#ff9055", "#7d4b33")


def draw_loss(rows: Sequence[Mapping], look: Look = LIGHT):
    """Figure of the losses, with the learning rate, gradient norm and speed below; None if no loss was logged."""
    steps, losses = _series(rows, "loss")
    if not len(steps):
        return None
    panels = {"lr": "learning rate", "grad_norm": "gradient norm", "images_per_second": "images per second"}
    panels = {name: title for name, title in panels.items() if len(_series(rows, name)[0])}
    validated = bool(len(_series(rows, "validation_loss")[0]))
    top, gap, small = 70 if look.narrow and validated else 34, 46, 96 if look.narrow else 110
    main = 270 if look.narrow else 380
    strips = len(panels) if look.narrow else bool(panels)
    figure = _new_figure(look, top + main + 34 + strips * (small + gap) + (2 if strips else 12))
    left, right = 46, 22
    axes = _add_axes(figure, left, top, look.width - left - right, main, look)
    _draw_losses(axes, steps, losses, *_series(rows, "validation_loss"), look)
    end = steps[-1] if len(steps) > 1 else steps[-1] + 1
    axes.set_xlim(min(0, steps[0]), end * 1.008)
    axes.set_xlabel("optimizer step", color=look.muted, fontsize=look.font, labelpad=6)

    columns = 1 if look.narrow else len(panels)
    width = (look.width - right - left * columns - 22 * (columns - 1)) / max(1, columns)
    for i, (name, title) in enumerate(panels.items()):
        column, row = (0, i) if look.narrow else (i, 0)
        panel_top = top + main + 34 + gap + row * (small + gap)
        panel = _add_axes(figure, left + column * (width + left + 22), panel_top, width, small - 22, look)
        _draw_panel(panel, *_series(rows, name), title, look, noisy=name != "lr")
        panel.set_xlim(axes.get_xlim())
    return figure


def _draw_losses(axes, steps, losses, validation_steps, validation, look: Look):
    smooth_steps, smoothed = _smoothed(steps, losses)
    axes.plot(*_outline(steps, losses), color=look.training, alpha=0.3, linewidth=1, solid_joinstyle="round")
    axes.plot(
        smooth_steps,
        smoothed,
        color=look.training,
        linewidth=2.2,
        label=f"training, smoothed  {_short(smoothed[-1])}",
        solid_capstyle="round",
        marker="o" if len(steps) == 1 else None,
    )
    if len(validation):
        best = int(validation.argmin())
        axes.plot(
            validation_steps,
            validation,
            color=look.validation,
            linewidth=1.8,
            marker="o",
            markersize=_dots(validation),
            label=f"validation  {_short(validation[-1])}",
            solid_capstyle="round",
        )
        axes.plot(
            validation_steps[best],
            validation[best],
            "o",
            markersize=10,
            markerfacecolor="none",
            linestyle="none",
            markeredgecolor=look.validation,
            markeredgewidth=1.6,
            clip_on=False,
            label=f"best  {_short(validation[best])} at step {validation_steps[best]:,.0f}",
        )
    _legend(axes, look, columns=1 if look.narrow else 3)
    low, high = _limits(losses, smoothed, validation)
    _set_loss_axis(axes, low, high)
    if losses.max() > high:
        _note_peak(axes, steps, losses, high, look)


def _note_peak(axes, steps, losses, high: float, look: Look):
    """Say how far the loss goes above the plot, right of where it does."""
    peak = int(losses.argmax())
    back = next((i for i in range(peak, len(losses)) if losses[i] < 0.9 * high), peak)
    axes.annotate(
        f"↑ up to {_short(losses[peak])}",
        (steps[back], 1),
        (10, -2),
        color=look.muted,
        fontsize=look.font - 1,
        va="top",
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
    )


def _limits(losses, smoothed, validation) -> tuple[float, float]:
    """Range of the losses to show. The first few are so large that, in view, they would flatten all that follow."""
    everything = np.concatenate([losses, validation])
    high = max(np.quantile(losses, 0.97), smoothed[len(smoothed) // 30 :].max(), validation.max(initial=0))
    if losses.max() < 1.3 * high:
        high = everything.max()
    low = everything.min()
    return (low / 1.06, high * 1.06) if low > 0 else (low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)


def _set_loss_axis(axes, low: float, high: float):
    """A log scale with plain numbers at it; a linear one where a value is not positive."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    ticks = MaxNLocator(5, steps=ROUND).tick_values(low, high)
    if low > 0:
        axes.set_yscale("log")
        if high / low > 1.6:
            digits = (1,) if high / low > 1e3 else (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8)
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = sorted({digit * 10.0**power for power in powers for digit in digits})
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_ylim(low, high)


def _draw_panel(axes, steps, values, title: str, look: Look, *, noisy: bool):
    """A small plot of one quantity, linear, its title above its left end."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    single = "o" if len(steps) == 1 else None
    axes.plot(*_outline(steps, values), color=look.ink, linewidth=1, alpha=0.3 if noisy else 0.85, marker=single)
    if noisy:
        axes.plot(*_smoothed(steps, values), color=look.ink, linewidth=1.4)
    axes.set_title(title, loc="left", color=look.muted, fontsize=look.font - 0.5, pad=8)
    high = np.quantile(values, 0.99) if len(values) > 20 else values.max()  # one spike should not flatten the rest
    axes.set_ylim(min(0, values.min()), (high * 1.12) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    axes.xaxis.set_major_locator(MaxNLocator(5 if look.narrow else 3, steps=ROUND, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def draw_timesteps(rows: Sequence[Mapping], settings: Mapping[str, Any], look: Look = LIGHT):
    """Figure of the validation loss by timestep, a line for each of some validations; None if there are none."""
    profiles = _profiles(rows)
    if not profiles:
        return None
    profiles = [profiles[i] for i in pick_frames(4 if look.narrow else MOST_PROFILES, len(profiles))]
    edges = _edges(settings, len(profiles[0][1]))
    centers = (edges[:-1] + edges[1:]) / 2
    top, main = 52 if look.narrow else 34, 250 if look.narrow else 300
    figure = _new_figure(look, top + main + 46)
    axes = _add_axes(figure, 46, top, look.width - 68, main, look)
    for i, (step, losses) in enumerate(profiles):
        last = i == len(profiles) - 1
        color = look.validation if last else _mix(look.first, look.validation, i / len(profiles))
        axes.plot(
            centers,
            np.array(losses, dtype=float),
            color=color,
            linewidth=2.2 if last else 1.5,
            marker="o",
            markersize=5 if last else 3.5,
            label=f"step {step:,}",
            solid_capstyle="round",
        )
    values = [value for _, losses in profiles for value in losses if value is not None]
    low, high = min(values), max(values)
    _set_loss_axis(axes, low / 1.15 if low > 0 else low - 0.05 * (high - low) - 1e-9, high * 1.15 or 1)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("timestep: low noise to high noise", color=look.muted, fontsize=look.font, labelpad=6)
    _legend(axes, look, columns=2 if look.narrow else MOST_PROFILES)
    return figure


def _edges(settings: Mapping[str, Any], count: int) -> np.ndarray:
    """Bounds (count + 1,) of equal ranges of the timesteps, of a thousand where their number is not known."""
    total = _number(settings.get("num_train_timesteps")) or 1000
    return np.linspace(0, total, count + 1)


def _new_figure(look: Look, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(look.width / 72, height / 72), dpi=72, facecolor=look.paper)


def _add_axes(figure, left: float, top: float, width: float, height: float, look: Look):
    """Axes at a place given in CSS pixels from the upper left corner, with light horizontal lines and no box."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    full_width, full_height = figure.get_size_inches() * 72
    bottom = full_height - top - height
    axes = figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height), facecolor="none"
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(look.muted)
    axes.spines["bottom"].set_linewidth(0.8)
    axes.grid(axis="y", color=look.line, linewidth=0.9)
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, colors=look.muted, labelsize=look.font - 1.5, pad=6)
    axes.tick_params(axis="x", length=4, width=0.8, colors=look.muted, labelsize=look.font - 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(5 if look.narrow else 8, steps=ROUND, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    return axes


def _legend(axes, look: Look, columns: int):
    """Names of the lines above the plot, from its left end."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1 + 10 / axes.bbox.height),
        borderaxespad=0,
        ncols=columns,
        frameon=False,
        fontsize=look.font,
        labelcolor=look.ink,
        borderpad=0,
        handlelength=1.4,
        handletextpad=0.6,
        columnspacing=1.8,
    )


def _dots(values) -> float:
    """Size of a dot at every value: none where they would touch."""
    return 4.5 if len(values) <= 40 else 0


def _mix(first: str, last: str, share: float) -> str:
    channels = [(int(first[i : i + 2], 16), int(last[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in channels)


def _short(value: float) -> str:
    """Three digits: 0.0284, 12.3, 8.70e-5."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".").replace("e-0", "e-")


def _tick(value: float) -> str:
    """A number at an axis, where there is little room: 0.03, 1,500, 5e-4."""
    if 0 < abs(value) < 0.00995:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:,.4g}" if abs(value) < 10_000 else _count(value)


def _count(value: float) -> str:
    """A number of steps: 500, 12,000, 1.5 M."""
    return f"{value / 1e6:.4g} M" if abs(value) >= 1e6 else f"{value:,.4g}" if value % 1 else f"{value:,.0f}"


# ---- parts of the page


def _figure(run: Path, name: str, draw, text: str) -> dict[str, Any] | None:
    """Draw a plot as ``name``.png, and as the page's embedded pictures for dark and narrow screens."""
    if (figure := draw(LIGHT)) is None:
        return None
    write_whole(run / f"{name}.png", lambda path: path.write_bytes(_png(figure)))
    sources = []
    for media, look in (
        ("(max-width: 640px) and (prefers-color-scheme: dark)", replace(DARK, narrow=True)),
        ("(max-width: 640px)", replace(LIGHT, narrow=True)),
        ("(prefers-color-scheme: dark)", DARK),
    ):
        drawn = draw(look)
        data = "data:image/png;base64," + base64.b64encode(_png(drawn)).decode()
        sources.append({"media": media, "data": data, **_size(drawn)})
    return {"file": f"{name}.png", "sources": sources, "text": text, **_size(figure)}


def _png(figure) -> bytes:
    """The figure at two pixels a CSS pixel."""
    from PIL import Image

    buffer, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor=figure.get_facecolor())
    with Image.open(buffer) as image:
        # a few flat colours: a palette holds them, in a third of the bytes
        image.convert("RGB").quantize(200, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _size(figure) -> dict[str, int]:
    width, height = figure.get_size_inches() * 72
    return {"width": round(width), "height": round(height)}


def _loss_in_words(rows) -> str:
    steps, losses = _series(rows, "loss")
    if not len(steps):
        return ""
    text = f"Training loss over the steps: {_short(losses[0])} at first, {_short(losses[-1])} at step {steps[-1]:,.0f}."
    _, validation = _series(rows, "validation_loss")
    return text + (f" Validation loss: {_short(validation[0])} to {_short(validation[-1])}." if len(validation) else "")


def _timesteps_in_words() -> str:
    return "Validation loss by timestep, one line for each of some steps of the training; numbers in the table below."


def _state(rows, settings) -> str:
    """How far the run is: 'finished' or a share of what was asked for."""
    if not rows:
        return "no line of metrics yet"
    for name, unit, done in (("max_train_steps", "steps", "step"), ("num_epochs", "epochs", "epoch")):
        total, now = _number(settings.get(name)), rows[-1].get(done)
        if total and now is not None:
            # epoch is rounded to four digits
            return "finished" if now >= total - 1e-4 else f"{now / total:.0%} of {_count(total)} {unit}"
    return ""


def _headline(rows) -> list[tuple[str, str, str]]:
    """(label, number, remark) of the numbers that are looked for first."""
    if not rows:
        return []
    last = rows[-1]
    numbers = []
    epoch = last.get("epoch")
    numbers.append(("Step", f"{last['step']:,.0f}", "" if epoch is None else f"epoch {epoch:.4g}"))
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
        change = values[-1] / values[0] - 1 if values[0] and values[-1] is not None else None
        cells = ["\N{EM DASH}" if value is None else _short(value) for value in values]
        label = f"{low:,}" if high - low < 2 else f"{low:,}\N{EN DASH}{high - 1:,}"
        table.append([label, *cells, *([_percent(change)] if len(values) > 1 else [])])
    header = ["Timesteps", *(f"Step {step:,}" for step, _ in picked), *(["Change"] if len(picked) > 1 else [])]
    return {"header": header, "rows": table}


def _percent(change: float | None) -> str:
    return "\N{EM DASH}" if change is None else f"{change:+.0%}".replace("-", "\N{MINUS SIGN}")


def _samples(run: Path) -> list[dict[str, Any]]:
    """The sample grids that can be read, oldest first: all where they are few, else evenly picked."""
    from PIL import Image

    found = []
    for path in sorted((run / "samples").glob("step-*.png")):
        try:
            with Image.open(path) as image:
                found.append((path, image.size))
        except OSError:  # torn, or no image
            continue
    return [_sample(*found[i]) for i in pick_frames(MOST_SAMPLES, len(found))]


def _sample(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    width, height = size
    # grids are enlarged twice already: their pixels stay square at multiples of a half
    factor = max(2, min(2 * PAGE_WIDTH // width, 2 * 640 // height)) / 2
    match = re.fullmatch(r"step-(\d+)(.*)", path.stem)
    title = f"step {int(match[1]):,}{match[2].replace('-', ' ')}" if match else path.stem
    shown = {"width": round(factor * width), "height": round(factor * height)}
    return {"link": f"samples/{quote(path.name)}", "title": title, **shown}


def _last_lines(rows) -> dict[str, list] | None:
    """Header and rows of the last lines of metrics.jsonl, with the columns that have any number."""
    lines = rows[-LAST_LINES:]
    names = [name for name in COLUMNS if any(isinstance(row.get(name), float) for row in lines)]
    if not names:
        return None
    return {
        "header": [COLUMNS[name] for name in names],
        "rows": [[_cell(row, name) for name in names] for row in lines],
    }


def _cell(row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, float):
        return ""
    if name in ("step", "skipped_steps"):
        return f"{value:,.0f}"
    return (
        f"{value:.5f}"
        if name == "ema_decay"
        else f"{value:.2f}"
        if name == "epoch"
        else f"{value:#.4g}".rstrip(".")
        if value
        else "0"
    )


def _compared(settings, defaults) -> dict[str, list[tuple[str, str, str]]]:
    """(name, value, default) of the settings: those that are ``changed`` from known defaults, and of the ``rest``."""
    rows = {"changed": [], "rest": []}
    for name, value in settings.items():
        known = defaults is not None and name in defaults
        default = _plain(defaults[name]) if known else ""
        changed = known and _plain(value) != default
        rows["changed" if changed else "rest"].append((name, _plain(value), default))
    return rows


def _plain(value) -> str:
    """A setting as one would type it. 1 and 1.0 are the same."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return f"[{', '.join(_plain(item) for item in value)}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _commands(run: Path) -> list[tuple[str, str]]:
    """(title, code) of how to use the run's pipeline: the exported one, or that of the newest checkpoint."""
    checkpoints = [path for path in run.glob("checkpoints/step-*/pipeline") if path.parent.name[5:].isdecimal()]
    pipeline = run / "pipeline"
    if not pipeline.is_dir():
        if not checkpoints:
            return []
        pipeline = max(checkpoints, key=lambda path: int(path.parent.name[5:]))
    shell = shlex.quote(pipeline.as_posix())
    text = json.dumps(pipeline.as_posix(), ensure_ascii=False)  # a Python string too
    return [
        ("Sample", f"python -m ddpm_hf sample {shell} --num-images 16 --steps 20 --seed 0 --output grid.png"),
        ("Watch it", f"python app.py --model {shell}"),
        (
            "Load, with diffusers alone",
            "from diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({text}, trust_remote_code=True)\n"
            "images = pipeline(batch_size=4, num_inference_steps=100, seed=0).images",
        ),
        ("Push to the Hub", f"python -m ddpm_hf push {shell} --repo-id you/your-model --private"),
    ]


def _render(**values) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**values)
