"""The one exception for mistakes that a user can make and mend, and how a command tells of them."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something in the input is wrong. The message is one line: what is wrong, and what would be right."""


def nearest(name: str, known) -> str:
    """A hint ', did you mean ...?' naming the most similar of ``known``, or all of them when none is similar."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(known)}."


def one_line(error: Exception) -> str:
    """The first line of an error that says something: the Hub client starts with a request's number."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("(Request ID")), type(error).__name__)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help).")


def run_command(command: Callable[[], None]) -> int:
    """Run ``command``; 0 when done, 2 for a mistake of the user's or a file that cannot be read or written.

    Either is told in one line, by one process of those on a machine.
    """
    try:
        command()
    except UserError as error:
        message = str(error)
    except OSError as error:  # a full disk, a folder that is a file, no permission
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
    else:
        return 0
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    return 2
