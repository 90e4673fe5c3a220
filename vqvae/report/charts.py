"""Charts of the page: lines and filled outlines in a box from 0 to 1000, with the ticks of both axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

Point = tuple[float, float]
BOX = 1000  # units of the drawing, along both axes; it is stretched to the size of its place on the page
MOST_POINTS = 400  # of a line; of longer ones, some evenly spread
MOST_LINES = 24
FEW_POINTS = 20  # of a line whose points are marked
TINIEST = 1e-200  # smaller values are 0 for an axis, so that nothing below divides by too little
LOG_RATIO = 50  # positive values of which a quarter is so much smaller than the largest have a logarithmic axis
TICKS = 4  # at least that many along an axis, about


@dataclass
class Line:
    """A named line through points (x, y). Filled: the area between it and 0.

    outline: what is drawn, where that is not the points themselves; points are what the reader's pointer finds.
    """

    name: str
    points: list[Point]
    color: int = 0
    dash: int = 0
    filled: bool = False
    outline: list[Point] | None = None

    @property
    def drawn(self) -> list[Point]:
        return self.points if self.outline is None else self.outline


@dataclass
class Axis:
    """A range of values, and the ticks on it as (share of the range from its low end, label)."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """A value -> its share of the range, 0 at the low end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        values = decades(self.low, self.high) if self.log else round_values(self.low, self.high)
        enough = (digits for digits in range(4, 17) if len({label(value, digits) for value in values}) == len(values))
        digits = next(enough, 17)
        return [(self.place(value), label(value, digits)) for value in values]


@dataclass
class Chart:
    """A chart. x_values: what else the horizontal axis must show. `left_out`: lines that it has no room for."""

    title: str
    lines: list[Line]
    x_title: str = "step"
    x_values: Sequence[float] = ()
    left_out: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        lines = [thinned(line) for line in self.lines]
        lines = [line for line in lines if line.points]
        self.lines, self.left_out = lines[:MOST_LINES], len(lines[MOST_LINES:])
        drawn = [point for line in self.lines for point in line.drawn]
        self.x = axis_of([*self.x_values, *(x for x, _ in drawn)])
        ys = [y for _, y in drawn] + [0.0] * any(line.filled for line in self.lines)
        self.y = axis_of(ys, may_be_log=True, margin=0.05)

    def path(self, line: Line) -> str:
        """The `d` of an SVG path; of a filled line closed along the value 0."""
        places = [(BOX * self.x.place(x), BOX * (1 - self.y.place(y))) for x, y in line.drawn]
        text = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        return f"{text}V{BOX}H{places[0][0]:.1f}Z" if line.filled else text

    def marks(self, line: Line) -> str:
        """The `d` of an SVG path of dots at the points of a line that has few; else nothing."""
        few = len(line.points) <= FEW_POINTS and line.outline is None
        places = [(BOX * self.x.place(x), BOX * (1 - self.y.place(y))) for x, y in line.points if few]
        return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)

    def for_pointer(self) -> list[dict[str, object]]:
        """For the page's script: name, color and points of each line, these as (place x, place y, x, y), places in percent."""
        return [
            {
                "name": line.name,
                "color": line.color,
                "points": [
                    [round(100 * self.x.place(x), 2), round(100 * self.y.place(y), 2), label(x), label(y)]
                    for x, y in line.points
                ],
            }
            for line in self.lines
        ]


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[float],
    name: str,
    x_title: str,
    x_values: Sequence[float] = (),
) -> Chart:
    """A chart of bins: edges (bins + 1,), counts (bins,) of what `name` says; a count that is not finite is left out."""
    counts = [count if math.isfinite(count) else 0.0 for count in counts]
    outline = [(edges[0], 0.0)]
    for low, high, count in zip(edges, edges[1:], counts):
        outline += [(low, count), (high, count)]
    outline.append((edges[-1], 0.0))
    points = [((low + high) / 2, count) for low, high, count in zip(edges, edges[1:], counts)]
    return Chart(title, [Line(name, points, filled=True, outline=outline)], x_title, x_values)


def thinned(line: Line) -> Line:
    """The line without points that are not finite, and with at most MOST_POINTS of the others, its ends among them."""
    points = [point for point in line.points if all(map(math.isfinite, point))]
    if len(points) > MOST_POINTS:
        points = [points[i * (len(points) - 1) // (MOST_POINTS - 1)] for i in range(MOST_POINTS)]
    return replace(line, points=points)


def axis_of(values: list[float], may_be_log: bool = False, margin: float = 0.0) -> Axis:
    """The axis that shows all values; one that is a single value stands in its middle."""
    values = [value if abs(value) > TINIEST else 0.0 for value in values]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if may_be_log and low > 0 and high / sorted(values)[len(values) // 4] > LOG_RATIO:
        return Axis(low / 1.1, high * 1.1, log=True)
    if low == high:
        half = abs(low) / 2 or 0.5
        return Axis(low - half, high + half)
    room = margin * (high - low)
    return Axis(low - room * (low != 0), high + room)


def round_values(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within a range."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= raw * (1 + 1e-9))
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten within a range."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def label(value: float, digits: int = 4) -> str:
    """A number as text: whole ones and large ones with their thousands separated, others with so many significant digits."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.{digits}g}"
