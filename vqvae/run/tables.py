"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from vqvae.surroundings.terminal import printable


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Aligned columns, numbers with four significant digits."""
    cells = [head] + [[f"{c:.4g}" if isinstance(c, float) else printable(str(c)) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells)
