"""Write the README's tables of settings, between its two marks, from the classes that check them.

python -m scripts.settings_table
"""

import inspect
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from ddpm_hf.config import DataSource, TrainConfig
from ddpm_hf.files import write_whole

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- settings -->", "<!-- /settings -->"


def with_tables(readme: str) -> str:
    """The README with what lies between its marks replaced by the tables of now.

    Raises:
        ValueError: if it has not both marks, once and in order.
    """
    return between(readme, START, END, tables())


def between(readme: str, start: str, end: str, text: str) -> str:
    """The README with what lies between two marks replaced by ``text``."""
    before, mark, rest = readme.partition(start)
    _, last, after = rest.partition(end)
    if not mark or not last or start in after or end in before + after:
        raise ValueError(f"README.md must have {start} and, below it, {end}, once each.")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def tables() -> str:
    """Markdown: a table for each group of TrainConfig, and one of an entry of ``datasets``."""
    parts = [
        f"**{heading[0].upper()}{heading[1:]}**\n\n{_table(TrainConfig, names)}" for heading, names in groups().items()
    ]
    entry = (
        f"**An entry of `datasets`**, where an id alone is not enough\n\n{_table(DataSource, DataSource.model_fields)}"
    )
    return "\n\n".join([*parts, entry])


def groups() -> dict[str, list[str]]:
    """The settings by the ``# ----`` headings between them in the source of TrainConfig."""
    found, heading = {}, None
    for line in inspect.getsource(TrainConfig).splitlines():
        if match := re.fullmatch(r"    # ---- (.+)", line):
            heading = found.setdefault(match[1], [])
        elif (match := re.match(r"    (\w+):", line)) and match[1] in TrainConfig.model_fields:
            heading.append(match[1])
    return found


def _table(model: type[BaseModel], names) -> str:
    rows = [f"| `{name}` | {_default(model.model_fields[name])} | {_meaning(model, name)} |" for name in names]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _default(field) -> str:
    if field.is_required():
        return "required"
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


def _meaning(model: type[BaseModel], name: str) -> str:
    """The description, and the values to choose from where it does not name them all."""
    if model is not TrainConfig:  # some fields are TrainConfig's, with or without a prefix
        for twin in (name, f"dataset_{name}"):
            if twin in TrainConfig.model_fields:
                return f"as `{twin}`"
    field = model.model_fields[name]
    text = field.description
    choices = _choices(field.annotation)
    if not all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in choices):
        text += f"; one of {', '.join(f'`{choice}`' for choice in choices)}"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _choices(annotation) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


if __name__ == "__main__":
    text = with_tables(README.read_text(encoding="utf-8"))
    write_whole(README, lambda path: path.write_text(text, encoding="utf-8"))
