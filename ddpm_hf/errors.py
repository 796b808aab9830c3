"""The exception for mistakes that a user can correct, and the one way to print text that others wrote."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable

NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-inf|-nan")
LONGEST_LINE = 500  # characters
TOKEN = re.compile(r"(hf|api_org)_(oauth_|jwt_)?[A-Za-z0-9]{20,}")  # of the Hub, whatever stands before it
JOINERS = "\u200c\u200d"  # not printable by themselves, but scripts and emoji are written with them


def printable(text, longest: int = LONGEST_LINE) -> str:
    """``text`` as one line that is safe to show in a terminal, a log or a page, whoever wrote it.

    Line breaks and tabs become spaces. Other characters that control or reorder text, such as escape sequences and
    bidirectional overrides, become "?". Text of more than ``longest`` characters loses its middle. Tokens of the Hub
    are cut off after "hf_".
    """
    text = TOKEN.sub(r"\1_...", str(text))
    if len(text) > longest:
        end = longest // 3
        text = f"{text[: longest - end - 5]} ... {text[-end:]}"
    return "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "?" for c in text)


def echo(text="", *, error: bool = False):
    """Print ``text`` as one ``printable`` line, to standard error if it is an error or a warning.

    Characters that the console has not, as on Windows, become question marks.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream, flush=True)


class UserError(ValueError):
    """Something in the input is wrong. The message is one printable line: what is wrong, and what to do."""

    def __init__(self, message: str, longest: int = LONGEST_LINE):
        super().__init__(printable(message, longest))


def nearest(name: str, known) -> str:
    """A hint ', did you mean ...?' naming the most similar of ``known``, or all of them when none is similar."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(known)}."


def counted(number: int, noun: str) -> str:
    """'1 picture', '1,200 pictures'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(error: Exception) -> str:
    """The first line of an error that says something: the Hub client starts with a request's number."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("(Request ID")), type(error).__name__)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors.

    Options are understood with hyphens and with underscores, and a value may be a negative number of any form.
    """

    def __init__(self, *args, **options):
        self._spellings: dict[str, str] = {}
        super().__init__(*args, **options)

    def add_argument(self, *names, **options):
        """As of ``argparse``; remembers the other spelling of an option."""
        for name in names:
            if name.startswith("--"):
                for other in (name, f"--{name[2:].replace('_', '-')}", f"--{name[2:].replace('-', '_')}"):
                    self._spellings.setdefault(other, name)
        return super().add_argument(*names, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As of ``argparse``."""
        words = []
        for word in sys.argv[1:] if args is None else args:
            if words and NEGATIVE.fullmatch(word) and words[-1].startswith("--") and "=" not in words[-1]:
                words[-1] += f"={word}"  # argparse takes -1e-4 for an option
                continue
            name, equals, value = word.partition("=")
            words.append(self._spellings.get(name, name) + equals + value)
        return super().parse_known_args(words, namespace)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help).")


def run_command(command: Callable[[], None]) -> int:
    """Run ``command``; 0 when done, 2 for a mistake of the user's or a file that cannot be read or written.

    An error is one line, printed by one process on a machine.
    """
    try:
        command()
    except UserError as error:
        message = str(error)
    except OSError as error:  # a full disk, a folder that is a file, no permission
        message = printable(f"{error.filename or 'a file'}: {error.strerror or error}")
    else:
        return 0
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    return 2
