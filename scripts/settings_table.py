"""Write the tables of docs/settings.md, between its two marks, from the classes that check the settings.

python -m scripts.settings_table
"""

import inspect
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from ddpm_hf.config import TrainConfig
from ddpm_hf.files import write_whole
from ddpm_hf.source import Source

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
START, END = "<!-- settings -->", "<!-- /settings -->"


def with_tables(page: str) -> str:
    """The page with the text between its marks replaced by the current tables.

    Raises:
        ValueError: if a mark is missing, repeated or out of order.
    """
    return between(page, START, END, tables())


def between(page: str, start: str, end: str, text: str) -> str:
    """The page with the text between two marks replaced by ``text``."""
    before, mark, rest = page.partition(start)
    _, last, after = rest.partition(end)
    if not mark or not last or start in after or end in before + after:
        raise ValueError(f"The page must have {start} and, below it, {end}, once each.")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def tables() -> str:
    """Markdown: a table for each group of TrainConfig, and one of an entry of ``datasets``."""
    parts = [
        f"**{heading[0].upper()}{heading[1:]}**\n\n{_table(TrainConfig, names)}" for heading, names in groups().items()
    ]
    entry = f"**An entry of `datasets`**, where an id alone is not enough\n\n{_table(Source, fields_of(Source))}"
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


def fields_of(model: type) -> dict:
    """The pydantic fields of a model or of a dataclass, by name."""
    return model.model_fields if hasattr(model, "model_fields") else model.__pydantic_fields__


def _table(model: type, names) -> str:
    rows = [f"| `{name}` | {_default(fields_of(model)[name])} | {_meaning(model, name)} |" for name in names]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _default(field) -> str:
    if field.is_required():
        return "required"
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


def _meaning(model: type, name: str) -> str:
    """The description, and the values to choose from where it does not name them all."""
    if model is not TrainConfig:  # some fields are TrainConfig's, with or without a prefix
        for twin in (name, f"dataset_{name}"):
            if twin in TrainConfig.model_fields:
                return f"as `{twin}`"
    field = fields_of(model)[name]
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
    text = with_tables(PAGE.read_text(encoding="utf-8"))
    write_whole(PAGE, lambda path: path.write_text(text, encoding="utf-8"))
