"""Draws small SVG charts without scripts or a plotting library."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 380, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 30
_GRID, _TEXT = "#e3e3e3", "#555"
# Up to this many points are drawn as dots, each with its value as a tooltip.
_MAX_DOTS = 60
# Of more points, the smallest and the largest of each bucket are drawn.
_MAX_POINTS = 600


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: Shown in the legend.
        points: In the order of x; points that are not finite leave a gap.
        color: A CSS colour.
        dashed: Whether the line is dashed.
    """

    name: str
    points: Sequence[Point]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: Its title.
        x_name: What x counts, such as ``"epoch"``.
        series: Its lines.
        marks: Values of x with a vertical line, and their labels.
        from_zero: Whether the y axis begins at 0.
    """

    title: str
    x_name: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = field(default=())
    from_zero: bool = False

    def svg(self) -> str:
        """Return the chart as an SVG element."""
        finite = [point for series in self.series for point in series.points if math.isfinite(point[1])]
        if not finite:
            return ""
        x_range = _range([x for x, _ in finite], pad=False)
        y_range = _range([y for _, y in finite] + [0.0] * self.from_zero, pad=True)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="11" aria-label="{escape(self.title)}">',
            f'<text x="{_LEFT}" y="15" font-size="13" font-weight="bold" fill="#222">{escape(self.title)}</text>',
            *self._axes(x_range, y_range),
        ]
        for x, label in self.marks:
            at = _scaled(x, x_range, _LEFT, _WIDTH - _RIGHT)
            parts.append(
                f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#b00" '
                f'stroke-dasharray="2 3"><title>{escape(label)}</title></line>'
            )
        for series in self.series:
            parts += _line(series, x_range, y_range)
        return "".join([*parts, *self._legend(), "</svg>"])

    def _axes(self, x_range: Point, y_range: Point) -> Iterator[str]:
        for y in ticks(*y_range):
            at = _scaled(y, y_range, _HEIGHT - _BOTTOM, _TOP)
            yield f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" stroke="{_GRID}"/>'
            yield f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end" fill="{_TEXT}">{short(y)}</text>'
        for x in ticks(*x_range, whole=True):
            at = _scaled(x, x_range, _LEFT, _WIDTH - _RIGHT)
            y0 = _HEIGHT - _BOTTOM
            yield f'<text x="{at:.1f}" y="{y0 + 13}" text-anchor="middle" fill="{_TEXT}">{short(x)}</text>'
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - 4
        yield f'<text x="{right}" y="{bottom}" text-anchor="end" fill="{_TEXT}">{escape(self.x_name)}</text>'

    def _legend(self) -> Iterator[str]:
        if len(self.series) < 2:
            return
        at = _LEFT
        for series in self.series:
            dash = ' stroke-dasharray="4 2"' if series.dashed else ""
            yield f'<line x1="{at}" y1="{_HEIGHT - 8}" x2="{at + 16}" y2="{_HEIGHT - 8}" stroke="{series.color}"{dash} '
            yield f'stroke-width="2"/><text x="{at + 20}" y="{_HEIGHT - 4}" fill="{_TEXT}">{escape(series.name)}</text>'
            at += 34 + 6 * len(series.name)


def _line(series: Series, x_range: Point, y_range: Point) -> Iterator[str]:
    dash = ' stroke-dasharray="5 3"' if series.dashed else ""
    for run in _runs(thinned(series.points)):
        pixels = [
            (_scaled(x, x_range, _LEFT, _WIDTH - _RIGHT), _scaled(y, y_range, _HEIGHT - _BOTTOM, _TOP)) for x, y in run
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        yield f'<polyline points="{path}" fill="none" stroke="{series.color}" stroke-width="1.8"{dash}/>'
        if len(series.points) <= _MAX_DOTS:
            for (x, y), (value_x, value_y) in zip(pixels, run, strict=True):
                tip = escape(f"{series.name} {short(value_y)} at {short(value_x)}")
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{series.color}"><title>{tip}</title></circle>'


def _runs(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Yield the stretches of points between those that are not finite."""
    run: list[Point] = []
    for point in points:
        if math.isfinite(point[1]):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Return fewer points with the same outline."""
    if len(points) <= _MAX_POINTS:
        return points
    size, kept = math.ceil(2 * len(points) / _MAX_POINTS), []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        finite = [point for point in bucket if math.isfinite(point[1])]
        if finite:
            kept += sorted({min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])})
        else:
            kept.append(bucket[0])
    return kept


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about five round numbers from ``low`` to ``high``."""
    step = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(step))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if step <= factor * power * 1.0001)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """Return a number in few characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e6 else f"{value:.4g}"


def _range(values: Sequence[float], *, pad: bool) -> Point:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.05 or 0.5
        return low - margin, high + margin
    margin = (high - low) * 0.06 if pad else 0.0
    return low - margin, high + margin


def _scaled(value: float, source: Point, start: float, end: float) -> float:
    return start + (value - source[0]) / (source[1] - source[0]) * (end - start)
