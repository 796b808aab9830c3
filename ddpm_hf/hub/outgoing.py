"""What files have to be before they are published; nothing here asks the Hub."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ddpm_hf.errors import TOKEN, UserError
from ddpm_hf.hub.headers import read_header
from ddpm_hf.reading import parse_yaml, read_json, read_text

BLOCK = 2**20  # bytes that are searched at a time
LONGEST_TOKEN = 4096  # bytes that two blocks share, so that none is cut in half
SHORTEST_SECRET = 8  # characters; shorter ones would be found everywhere
PNG = b"\x89PNG\r\n\x1a\n"
# git check-ref-format: no part that begins with a dot or ends with .lock, no "..", "@{", "//" or special characters
TAG = re.compile(r"(?!@$)(?!.*(\.\.|@\{|//|/\.|\.lock(/|$)))(?![-./])[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])")
FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", re.DOTALL)


def refuse_links_out(files: dict[str, Path], folder: Path):
    """Raise a UserError where a file is a link that leads out of ``folder``, except into the Hub's cache.

    Args:
        files: name -> path; one that is not there is passed over.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    inside = [os.path.realpath(folder), os.path.realpath(HF_HUB_CACHE)]
    for name, path in files.items():
        target = os.path.realpath(path)
        if not any(os.path.commonpath([target, root]) == root for root in inside):
            raise UserError(
                f"{name} is a link to a file outside of {folder}, which would become public; put a copy in its place, "
                "or remove it."
            )


def refuse_disguised(files: dict[str, Path]):
    """Raise a UserError where a file's content is not what its suffix says: PNG, safetensors or JSON."""
    for name, path in files.items():
        if path.suffix == ".png":
            with open(path, "rb") as file:
                if file.read(len(PNG)) != PNG:
                    raise UserError(f"{name} is not a PNG file; remove it, then push again.")
        elif path.suffix == ".safetensors":
            parameters_in(path)
        elif path.suffix == ".json":
            try:
                read_json(path)
            except ValueError:
                raise UserError(f"{name} is not a JSON file; remove it, then push again.") from None


def parameters_in(path: Path) -> int:
    """Values in a safetensors file, counted in its header.

    Raises:
        UserError: if it is no such file, or not whole.
    """
    try:
        return sum(weight.size for weight in read_header(path).values())
    except ValueError as error:
        raise UserError(f"{error}.") from None


def check(files: dict[str, str], texts: Iterable[str], tag: str | None, secrets: Iterable[str | None]):
    """Raise a UserError unless all of an upload can be published: before anything is created or sent.

    Args:
        files: path in the repository -> file here. Each must be a file that can be read, and hold no token.
        texts: that are published besides.
        tag: for the commit.
        secrets: that must be in none of them, such as the token in use.
    """
    if tag is not None and not TAG.fullmatch(tag):
        raise UserError(f"{tag!r} cannot be the name of a tag; use letters, digits, '.', '-' and '_', such as v1.0.")
    wanted = [secret.encode() for secret in secrets if secret and len(secret) >= SHORTEST_SECRET]
    for name, path in files.items():
        if not os.path.isfile(path):
            raise UserError(f"{name} is not a file, or a link to nothing; remove it, then do it again.")
        try:
            found = _holds_token(path, wanted)
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}.") from None
        if found:
            raise UserError(f"{name} holds what looks like a token or secret; take it out, then do it again.")
    for text in texts:
        if _token_in(text.encode(), wanted):
            raise UserError("the settings or facts of the run hold what looks like a token; take it out.")
    if "README.md" in files:
        check_readme(Path(files["README.md"]))


def _holds_token(path: str, secrets: list[bytes]) -> bool:
    end = b""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            if _token_in(end + block, secrets):
                return True
            end = block[-LONGEST_TOKEN:]
    return False


def _token_in(text: bytes, secrets: list[bytes]) -> bool:
    return any(secret in text for secret in secrets) or re.search(TOKEN.pattern.encode(), text) is not None


def check_readme(path: Path):
    """Raise a UserError unless the Hub can read a README.md: text in UTF-8, with names and values in the YAML at its
    start, if there is one."""
    try:
        found = FRONT_MATTER.match(read_text(path))
        values = (parse_yaml(found[1]) or {}) if found else {}
    except UnicodeDecodeError:
        raise UserError("README.md is not text in UTF-8; save it as such, then push again.") from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError("README.md: the YAML between its first two lines of --- is not names with values; correct it.")
