"""Curves as SVG text: no library, no script, readable in light and dark because every colour is a class of the page.

A chart answers the pointer without script: the plot is cut into columns, and the column under the pointer shows its
values, by CSS alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

COLUMN = 9  # least width of a place that answers the pointer
MOST_POINTS = 400  # drawn for each line; more than pixels can show


@dataclass(frozen=True)
class Series:
    """A line. `css` is its class; `dots` marks each point (few, measured ones); a light one gets no value on hover."""

    name: str
    css: str
    points: list[Point]
    dots: bool = False
    light: bool = False
    name_zh: str = ""


@dataclass(frozen=True)
class Frame:
    """Size of a chart in its own units, which are pixels where the chart is shown at full size."""

    width: int = 680
    height: int = 320
    left: int = 46
    right: int = 14
    top: int = 30
    bottom: int = 38


def smooth(points: list[Point], share: float = 0.03) -> list[Point]:
    """The mean of the neighbours of each point: as many on each side, so that the curve does not lag where it is steep.

    A side is at most `share` of all points and 15 % of those before, so that the early fall keeps its shape; at the
    end, the later side is what there is.

    >>> smooth([(0, 4.0), (1, 2.0)])
    [(0, 4.0), (1, 2.0)]
    """
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    smoothed = []
    for i, (x, _) in enumerate(points):
        side = min(math.ceil(share * len(points)), int(0.15 * i))
        begin, end = i - side, min(len(points), i + side + 1)
        smoothed.append((x, (sums[end] - sums[begin]) / (end - begin)))
    return smoothed


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: of each run of neighbours the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most // 2))
    kept = []
    for begin in range(0, len(points), size):
        group = points[begin : begin + size]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high; only the powers where those would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [tick for tick in fine if low * 0.999 <= tick <= high * 1.001]
    return inside if len(inside) <= 8 else [tick for tick in inside if math.log10(tick) % 1 < 1e-9]


def plain(value: float) -> str:
    """A number for an axis: 0.001, 2.5, 1,200, 12k, 3.4M."""
    size = abs(value)
    if size >= 999_500:  # what three digits round up to the next unit is written in it
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 999.5:
        return f"{value:,.0f}"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}"


def labels(values: Sequence[float]) -> list[str]:
    """`plain` of each tick, or where its three digits would hide the distance between them all digits that they have.

    >>> labels([100.2, 100.4])
    ['100.2', '100.4']
    """
    step = min((b - a for a, b in itertools.pairwise(values)), default=0.0)
    top = max(map(abs, values), default=0.0)
    if not step or step > 0.999 * 10.0 ** (math.floor(math.log10(top)) - 2):
        return [plain(value) for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{digits}f}" for value in values]


def line_chart(
    series: Sequence[Series],
    *,
    label: tuple[str, str],
    y_unit: tuple[str, str],
    x_unit: tuple[str, str] = ("step", "步"),
    log_x: bool = False,
    from_zero: bool = False,
    frame: Frame = Frame(),
    css: str = "",
) -> str:
    """The chart as an <svg>; labels and units are in English and Chinese. Empty text if there is nothing to draw.

    With log_x points at x <= 0 are left out. The y axis holds every point; `from_zero` begins it at 0.
    """
    lines = [(s, [p for p in s.points if p[0] > 0] if log_x else s.points) for s in series]
    lines = [(s, points) for s, points in lines if points]
    if not lines:
        return ""
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = (x_low / 2, x_high * 2) if log_x else (x_low - 1, x_high + 1)
    elif not log_x:
        x_low = min(0.0, x_low)
    y_low, y_high = 0.0 if from_zero else min(ys), max(ys)
    if y_low == y_high:
        y_low, y_high = y_low - (abs(y_low) or 1) * 0.1, y_high + (abs(y_high) or 1) * 0.1
    pad = (y_high - y_low) * 0.06
    y_low, y_high = y_low - (0 if from_zero else pad), y_high + pad
    f = frame
    inner_width, inner_height = f.width - f.left - f.right, f.height - f.top - f.bottom
    warp: Callable[[float], float] = math.log if log_x else float
    x_begin, x_span = warp(x_low), warp(x_high) - warp(x_low)

    def at(x: float, y: float) -> tuple[float, float]:
        across = f.left + (warp(x) - x_begin) / x_span * inner_width
        return round(across, 1), round(f.top + (y_high - y) / (y_high - y_low) * inner_height, 1)

    floor, right = f.top + inner_height, f.width - f.right
    kind, name = escape(f"chart {css}".strip()), escape(label[0])
    parts = [f'<svg class="{kind}" viewBox="0 0 {f.width} {f.height}" role="img" aria-label="{name}">']
    y_ticks = ticks(y_low, y_high, max(2, inner_height // 38))
    for tick, text in zip(y_ticks, labels(y_ticks), strict=True):
        y = at(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{f.left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{f.left - 8}" y="{y + 4}" text-anchor="end">{text}</text>')
    x_ticks = log_ticks(x_low, x_high) if log_x else ticks(x_low, x_high, max(2, inner_width // 95))
    for tick, text in zip(x_ticks, labels(x_ticks), strict=True):
        x = at(tick, y_low)[0]
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{floor + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{f.left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(both(y_unit, f'class="unit" x="{f.left - 36}" y="14"'))
    parts.append(both(x_unit, f'class="unit" x="{right}" y="{f.height - 4}" text-anchor="end"'))
    for s, points in lines:
        if len(points) > 1:
            path = " ".join(f"{x},{y}" for x, y in (at(*p) for p in thin(points)))
            parts.append(f'<polyline class="line {escape(s.css)}" points="{path}"/>')
        if s.dots or len(points) == 1:
            parts += [
                f'<circle class="dot {escape(s.css)}" cx="{x}" cy="{y}" r="2.6"/>'
                for x, y in (at(*p) for p in thin(points, 60))
            ]
    parts += _columns([pair for pair in lines if not pair[0].light], at, f, x_unit)
    return "".join([*parts, "</svg>"])


def _columns(
    lines: list[tuple[Series, list[Point]]],
    at: Callable[[float, float], tuple[float, float]],
    f: Frame,
    x_unit: tuple[str, str],
) -> list[str]:
    """The places that answer the pointer: at each a guide, a dot on each line, and the values above the plot."""
    measured = {x for s, points in lines if s.dots for x, _ in points}
    places = sorted(measured) + sorted({x for _, points in lines for x, _ in points} - measured)
    if not places:
        return []
    floor = f.height - f.bottom
    spread: dict[int, float] = {}  # column of the plot -> the x shown there, a measured one if there is one
    for x in places:
        spread.setdefault(int((at(x, 0)[0] - f.left) / COLUMN), x)
    shown = sorted(spread.values())
    centres = [at(x, 0)[0] for x in shown]
    edges = [f.left, *((a + b) / 2 for a, b in itertools.pairwise(centres)), f.width - f.right]
    parts = []
    for index, x in enumerate(shown):
        begin, width = edges[index], max(edges[index + 1] - edges[index], 0.1)
        near = [(s, min(points, key=lambda p: abs(p[0] - x))) for s, points in lines]
        near = [(s, p) for s, p in near if p[0] == x or not s.dots]
        dots = "".join(
            f'<circle class="dot {escape(s.css)}" cx="{cx}" cy="{cy}" r="3.4"/>' for s, p in near for cx, cy in [at(*p)]
        )
        texts = [
            "   ".join(
                [f"{x_unit[k]} {x:,.0f}", *(f"{(s.name_zh if k else s.name) or s.name} {p[1]:.4g}" for s, p in near)]
            )
            for k in (0, 1)
        ]
        value = both((texts[0], texts[1]), f'class="value" x="{f.width - f.right}" y="14" text-anchor="end"')
        parts.append(
            f'<g class="column"><rect x="{begin:.1f}" y="{f.top}" width="{width:.1f}" height="{floor - f.top}"/>'
            f'<g class="answer"><path class="guide" d="M{centres[index]} {f.top}V{floor}"/>'
            f"{dots}{value}</g></g>"
        )
    return parts


def both(text: tuple[str, str], attributes: str) -> str:
    """One <text> for each language, with a class among its attributes; the page shows one of the two."""
    english, chinese = (escape(t) for t in text)
    if english == chinese:
        return f"<text {attributes}>{english}</text>"
    head, quote, rest = attributes.partition('class="')
    return f"<text {head}{quote}en {rest}>{english}</text><text {head}{quote}zh {rest}>{chinese}</text>"


def sparkline(values: list[float], width: int = 48) -> str:
    """A curve in one line of text: the mean of each of `width` groups, from ▁ (lowest) to █ (highest).

    >>> sparkline([1.0, 2.0, 3.0])
    '▁▄█'
    """
    if not values:
        return ""
    count = min(width, len(values))
    groups = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[int((m - low) / (high - low) * 7 + 0.001) if high > low else 0] for m in means)
