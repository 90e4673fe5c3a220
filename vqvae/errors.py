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


def suggest(name: str, valid: Iterable[str]) -> str:
    """Suggestion 'did you mean ...', or the list of valid names if none is near."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid are: {', '.join(valid[:50])}{', ...' * (len(valid) > 50)}"
