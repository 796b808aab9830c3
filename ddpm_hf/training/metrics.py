"""metrics.jsonl: one JSON object a line, in the order of the steps."""

import json
from pathlib import Path

from ddpm_hf.files import write_whole


class Metrics:
    """The lines of a run, in ``folder / "metrics.jsonl"``."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"

    def lines(self) -> list[dict]:
        """All whole lines that have a step; what a kill left of the last one is passed over."""
        try:
            text = self.path.read_text(errors="replace")
        except OSError:
            return []
        return [record for line in text.splitlines() if (record := _record(line)) is not None]

    def append(self, record: dict):
        """Add a line."""
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int):
        """Drop the lines that an interrupted run wrote after its last checkpoint: they will be written again."""
        kept = "".join(json.dumps(record) + "\n" for record in self.lines() if record["step"] <= step)
        write_whole(self.path, lambda partial: partial.write_text(kept))

    def has(self, step: int) -> bool:
        """Whether the line of ``step`` is there."""
        return any(record["step"] == step for record in self.lines())

    def best_step(self, among: list[int]) -> int | None:
        """The one of the steps ``among`` with the lowest validation loss, or None if none was validated."""
        losses = {
            record["step"]: record["validation_loss"]
            for record in self.lines()
            if record.get("validation_loss") is not None
        }
        return min((step for step in among if step in losses), key=losses.get, default=None)


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
