"""Users' mistakes: the one exception that becomes one line on the terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Mistake of a user, in one sentence that names the key, the value and what to do.

    >>> raise UserError("steps must be at least 1, got 0")
    Traceback (most recent call last):
    vqvae.errors.UserError: steps must be at least 1, got 0
    """


class TooManyUnreadable(UserError):
    """More items than allowed cannot be read. counts: split -> their number so far."""

    def __init__(self, message: str, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.counts = counts


def suggest(name: object, valid: Iterable[str], prefix: str = "") -> str:
    """Suggestion 'did you mean ...', or the list of valid names if none is near. prefix: what is shown before each name."""
    valid = list(dict.fromkeys(valid))
    if near := nearest(name, valid):
        return f"did you mean {prefix}{near}?"
    shown = ", ".join(prefix + one for one in valid[:50])
    return f"valid are: {shown}{', ...' * (len(valid) > 50)}" if valid else "there are none"


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """The valid name that is most like a name; None if none is near."""
    return next(iter(difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.5)), None)
