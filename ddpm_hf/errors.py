"""The one exception for mistakes that a user can make and mend."""


class UserError(ValueError):
    """Something in the input is wrong. The message is one line: what is wrong, and what would be right."""


def nearest(name: str, known) -> str:
    """A hint ', did you mean ...?' naming the most similar of ``known``, or all of them when none is similar."""
    import difflib

    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(known)}."
