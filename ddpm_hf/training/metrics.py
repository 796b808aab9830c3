"""metrics.jsonl: one JSON object a line, in the order of the steps."""

import json
import math
from pathlib import Path

from ddpm_hf.files import named, write_whole


class Metrics:
    """The lines of a run, in ``folder / "metrics.jsonl"``."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self._last_step: int | None = None

    def lines(self) -> list[dict]:
        """All whole lines that have a step; what a kill left of the last one is passed over."""
        try:
            text = self.path.read_text(errors="replace")
        except OSError:
            return []
        return [record for line in text.splitlines() if (record := _record(line)) is not None]

    def append(self, record: dict):
        """Add a line."""
        finite = {name: _finite(value) for name, value in record.items()}
        with named(self.path), open(self.path, "a") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._last_step = record["step"]

    def forget_after(self, step: int):
        """Drop the lines that an interrupted run wrote after its last checkpoint: they will be written again."""
        kept = "".join(json.dumps(record) + "\n" for record in self.lines() if record["step"] <= step)
        write_whole(self.path, lambda partial: partial.write_text(kept))
        self._last_step = None

    def has(self, step: int) -> bool:
        """Whether the line of ``step`` is there; lines are in the order of their steps."""
        if self._last_step is None:
            self._last_step = max((record["step"] for record in self.lines()), default=0)
        return self._last_step >= step

    def best_step(self, among: list[int]) -> int | None:
        """The one of the steps ``among`` with the lowest validation loss, or None if none was validated."""
        losses = {
            record["step"]: record["validation_loss"]
            for record in self.lines()
            if record.get("validation_loss") is not None
        }
        return min((step for step in among if step in losses), key=losses.get, default=None)


def _finite(value):
    """``value``, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
