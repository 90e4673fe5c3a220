"""Text for a terminal: names out of files and data are shown, and steer nothing."""

from __future__ import annotations

import logging
import textwrap

LOG_WIDTH = 80 - len("23:59:59 ")  # columns for what is logged


def printable(name: str) -> str:
    """A text in one line with line ends, terminal escapes, marks of direction and undecodable bytes written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, which stay lines."""
    return "\n".join(printable(line) for line in text.replace("\t", "    ").split("\n"))


def say(text: str) -> None:
    """Print lines that may hold names."""
    print(printable_lines(text))


def counted(count: int, noun: str) -> str:
    """A number of things: 1 image, 2,000 images."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def per_second(count: int, seconds: float) -> str:
    """A rate, with two digits where it is small: 0.47, 1,500."""
    rate = count / seconds
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def wrapped(text: str) -> str:
    """A sentence of the log in lines that fit a terminal; those after the first are indented. Long words stay whole."""
    return "\n".join(
        textwrap.wrap(text, LOG_WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    )


class PrintableFormatter(logging.Formatter):
    """Formats every record for a terminal, and for a log that somebody reads in one."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))
