"""The confusion matrix and the reliability diagram as SVG text: no library, no script, colours from the page's classes.

A cell of the matrix is coloured by its share of the row, so that small classes show as well as large ones: hits in one
colour, errors in another. Small shares are lifted (opacity 0.16 + 0.84 share^0.6), because an error of 2 % is what one
looks for. Numbers stand where they fit; every cell that holds a text tells its own when pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from zhixing.evaluation.calibration import Reliability
from zhixing.evaluation.classification import Ints
from zhixing.evaluation.curves import both, plain, ticks
from zhixing.evaluation.records import visible
from zhixing.evaluation.terminal import columns, fits

SIDE = 620  # of the matrix without its labels, in pixels
SMALLEST, LARGEST = 13, 92  # pixels of a cell
MOST_CLASSES = 52  # more would not be legible: the rarest are joined
LABEL_COLUMNS = 24
NUMBER_FROM = 18  # pixels of a cell from which a number may stand in it
DEEP, FULL = 0.66, 0.865  # strengths above which black is read better in the dark, and white in the light (report.css)
LEGEND = (0.01, 0.05, 0.25, 0.5, 1.0)


def join_rare(confusion: ArrayLike, labels: Sequence[str], most: int = MOST_CLASSES) -> tuple[Ints, list[str]]:
    """At most `most` classes: the rarest, by targets and answers together, become one at the end.

    >>> join_rare([[5, 1, 0], [0, 1, 0], [0, 0, 1]], ["a", "b", "c"], most=2)[0].tolist()
    [[5, 1], [0, 2]]
    """
    matrix = np.asarray(confusion, np.int64)
    if len(matrix) <= most:
        return matrix, list(labels)
    common = np.sort(np.argsort(-(matrix.sum(0) + matrix.sum(1)), kind="stable")[: most - 1])  # in their own order
    place = np.full(len(matrix), most - 1)
    place[common] = np.arange(most - 1)
    into = np.eye(most, dtype=np.int64)[place]  # (C, most)
    return into.T @ matrix @ into, [*(labels[k] for k in common), f"{len(matrix) - most + 1} others / 其他"]


def confused(confusion: ArrayLike, most: int = 12) -> list[tuple[int, int, int]]:
    """The pairs taken for one another most often: (target, answer, texts), most first.

    >>> confused([[5, 1], [3, 9]])
    [(1, 0, 3), (0, 1, 1)]
    """
    matrix = np.array(confusion, np.int64)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    pairs = [divmod(int(k), len(matrix)) for k in order]
    return [(row, column, int(matrix[row, column])) for row, column in pairs if matrix[row, column]]


def shade(share: float) -> float:
    """The opacity of a cell that holds this share of its row."""
    return 0.16 + 0.84 * share**0.6 if share > 0 else 0.0


def confusion_picture(confusion: ArrayLike, labels: Sequence[str]) -> str:
    """The matrix (C, C), a row what is so, a column what was said, as an <svg> of its own size. Empty without texts."""
    matrix, names = join_rare(confusion, [visible(label) for label in labels])
    n = int(matrix.sum())
    if not n:
        return ""
    n_classes = len(matrix)
    cell = max(SMALLEST, min(LARGEST, SIDE // n_classes))
    size = min(12, cell - 2)  # of letters
    shown = [fits(" ".join(name.split()), LABEL_COLUMNS) for name in names]
    width = round(0.62 * size * max(map(columns, shown)))  # of the widest label
    turn = 0 if width <= cell - 6 else 45 if 0.7 * cell > size else 90  # degrees, so that no label meets the next
    rise = {0: size, 45: round(0.71 * (width + size)), 90: width}[turn]
    left, top = max(width, 40) + 12, 30 + rise
    side = cell * n_classes
    right = max(8, round(0.71 * width) - cell // 2 + 12) if turn == 45 else 8
    full_width, height = left + max(side + right, 104 + 40 * len(LEGEND)), top + side + 44
    parts = [
        f'<svg class="matrix" width="{full_width}" height="{height}" viewBox="0 0 {full_width} {height}" role="img" '
        f'font-size="{size}" aria-label="{escape(_in_words(matrix, names))}">',
        f'<rect class="ground" x="{left}" y="{top}" width="{side}" height="{side}"/>',
    ]
    parts.append(both(("said →", "预测 →"), f'class="title" x="{left}" y="12"'))
    parts.append(both(("is ↓", "实际 ↓"), f'class="title" x="{left - 8}" y="{top - 6}" text-anchor="end"'))
    totals = matrix.sum(axis=1)
    for k, (name, short) in enumerate(zip(names, shown, strict=True)):
        middle = cell * k + cell / 2
        hint = f"<title>{escape(name)} ({totals[k]:,})</title>" if short != name or n_classes > 10 else ""
        parts.append(
            f'<text x="{left - 8}" y="{top + middle + 0.35 * size:.1f}" text-anchor="end">{escape(short)}{hint}</text>'
        )
        across = f"{left + middle:.1f}"
        where = {
            0: f'x="{across}" y="{top - 7}" text-anchor="middle"',
            45: f'x="{left + middle + 0.3 * size:.1f}" y="{top - 6}" transform="rotate(-45 {across} {top - 6})"',
            90: f'x="{across}" y="{top - 6 + 0.35 * size:.1f}" transform="rotate(-90 {across} {top - 6})"',
        }[turn]
        parts.append(f"<text {where}>{escape(short)}{hint}</text>")
    for row, column in np.argwhere(matrix > 0):
        count = int(matrix[row, column])
        share = count / int(totals[row])
        x, y = left + cell * int(column), top + cell * int(row)
        strength = shade(share)
        said = f"{names[row]} → {names[column]}: {count:,} ({share:.1%})"
        parts.append(
            f'<g><title>{escape(said)}</title><rect class="{"hit" if row == column else "miss"}" x="{x}" y="{y}" '
            f'width="{cell}" height="{cell}" fill-opacity="{strength:.2f}"/>'
            + _number(count, share, x, y, cell, strength)
            + "</g>"
        )
    lines = "".join(
        f"M{left} {top + cell * k}h{side}M{left + cell * k} {top}v{side}" for k in range(n_classes + 1)
    )  # above the cells: neighbours of one colour stay apart
    parts.append(f'<path class="grid" d="{lines}"/>')
    parts += _legend(left, top + side + 18)
    return "".join([*parts, "</svg>"])


def _number(count: int, share: float, x: int, y: int, cell: int, strength: float) -> str:
    """The count inside its cell if there is room, and the share below it if there is more."""
    text = f"{count:,}"
    size = min(17.0, 0.4 * cell, (cell - 3) / (0.62 * len(text)))
    if cell < NUMBER_FROM or size < 8:
        return ""
    kind = "number full" if strength > FULL else "number deep" if strength > DEEP else "number"
    middle, both_fit = x + cell / 2, cell >= 54
    at = y + cell / 2 + 0.35 * size - (0.42 * size if both_fit else 0)
    parts = [f'<text class="{kind}" x="{middle:g}" y="{at:.1f}" font-size="{size:.1f}">{text}</text>']
    if both_fit:
        parts.append(f'<text class="{kind}" x="{middle:g}" y="{at + 16:.1f}" font-size="11">{share:.1%}</text>')
    return "".join(parts)


def _legend(left: int, y: int) -> list[str]:
    parts = [both(("share of the row", "占该行比例"), f'class="title" x="{left}" y="{y + 10}"')]
    for k, share in enumerate(LEGEND):
        x = left + 104 + 40 * k
        for place, kind in enumerate(("hit", "miss")):
            parts.append(
                f'<rect class="{kind}" x="{x + 12 * place}" y="{y}" width="12" height="12" '
                f'fill-opacity="{shade(share):.2f}"/>'
            )
        parts.append(f'<text class="scale" x="{x + 12}" y="{y + 23}" font-size="10">{share:.0%}</text>')
    return parts


def _in_words(matrix: Ints, names: Sequence[str]) -> str:
    """The picture for those who cannot see it."""
    n, hits = int(matrix.sum()), int(np.trace(matrix))
    said = f"Confusion matrix of {len(matrix)} classes: {hits:,} of {n:,} texts are right."
    pairs = [f"{names[row]} taken for {names[column]}, {count:,}" for row, column, count in confused(matrix, 3)]
    return f"{said} Most frequent errors: {'; '.join(pairs)}." if pairs else said


def reliability_picture(table: Reliability, raw: Reliability | None = None) -> str:
    """Share right over confidence, a bar a bin, and how many answers each bin has; `raw` is a line: before calibration.

    The heavy line is the share right; between it and the mean confidence lies the gap, whichever is higher. A bin with
    fewer than ten answers is faint: its share says little.
    """
    left, top, side, gap, low, bottom = 46, 26, 320, 12, 56, 40
    width, height = left + side + 14, top + side + gap + low + bottom
    floor, base = top + side, top + side + gap + low
    n, most = int(table.counts.sum()), int(table.counts.max())

    def x_of(value: float) -> float:
        return round(left + value * side, 1)

    def y_of(value: float) -> float:
        return round(floor - value * side, 1)

    words = (
        f"Reliability diagram of {n:,} answers: expected calibration error {table.error:.1%}; "
        f"mean confidence {_mean(table.confidence, table.counts):.1%}, right {_mean(table.accuracy, table.counts):.1%}."
    )
    parts = [f'<svg class="chart reliability" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">']
    for k in range(6):
        share = k / 5
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y_of(share)}" y2="{y_of(share)}"/>'
            f'<text class="tick" x="{left - 8}" y="{y_of(share) + 4}" text-anchor="end">{share:.0%}</text>'
            f'<text class="tick" x="{x_of(share)}" y="{base + 16}" text-anchor="middle">{share:.0%}</text>'
        )
    for k, count in enumerate(table.counts):
        if not count:
            continue
        begin, end = x_of(float(table.edges[k])), x_of(float(table.edges[k + 1]))
        right, sure = float(table.accuracy[k]), float(table.confidence[k])
        tall = round(low * count / most, 1)
        box = f'x="{begin + 0.5:.1f}" width="{end - begin - 1:.1f}"'
        upper, lower = sorted((y_of(right), y_of(sure)))
        hint = f"{sure:.1%} → {right:.1%} (n = {count:,})"
        parts.append(
            f'<g class="bin{" few" if count < 10 else ""}"><title>{hint}</title>'
            f'<rect class="answers" {box} y="{lower}" height="{floor - lower:.1f}"/>'
            f'<rect class="gap" {box} y="{upper}" height="{lower - upper:.1f}"/>'
            f'<path class="right" d="M{begin} {y_of(right)}H{end}"/>'
            f'<rect class="size" {box} y="{base - tall:.1f}" height="{tall}"/></g>'
        )
    parts.append(f'<path class="ideal" d="M{x_of(0)} {y_of(0)}L{x_of(1)} {y_of(1)}"/>')
    if raw is not None:
        filled = [k for k, count in enumerate(raw.counts) if count]
        spots = [(x_of(float(raw.confidence[k])), y_of(float(raw.accuracy[k]))) for k in filled]
        parts.append(f'<polyline class="line before" points="{" ".join(f"{x},{y}" for x, y in spots)}"/>')
        parts += [f'<circle class="dot before" cx="{x}" cy="{y}" r="2.6"/>' for x, y in spots]
    parts.append(f'<path class="axis" d="M{left} {floor}h{side}M{left} {base}h{side}"/>')
    parts.append(both(("share right", "正确比例"), f'class="unit" x="{left - 36}" y="12"'))
    right_end = left + side
    parts.append(
        both(("confidence", "置信度"), f'class="unit" x="{right_end}" y="{height - 6}" text-anchor="end"')
    )  # fmt: skip
    parts.append(both(("answers", "答案数"), f'class="unit" x="{left - 8}" y="{base - 4}" text-anchor="end"'))
    return "".join([*parts, "</svg>"])


def _mean(values: ArrayLike, counts: Ints) -> float:
    return float(np.nansum(np.asarray(values) * counts) / counts.sum())


def scatter_picture(targets: ArrayLike, predictions: ArrayLike, most: int = 1500) -> str:
    """Predicted over wanted numbers (N,), evenly thinned to `most` points, with the line where both are equal."""
    y, said = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    known = np.isfinite(y) & np.isfinite(said)
    y, said = y[known], said[known]
    if not len(y):
        return ""
    left, top, side, bottom = 46, 26, 320, 40
    low, high = float(min(y.min(), said.min())), float(max(y.max(), said.max()))
    pad = (high - low) * 0.04 or 1.0
    low, high = low - pad, high + pad
    floor, width, height = top + side, left + side + 14, top + side + bottom

    def at(value: float) -> float:
        return round((value - low) / (high - low) * side, 1)

    words = f"Predicted against wanted ratings of {len(y):,} texts"
    parts = [f'<svg class="chart scatter" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">']
    for tick in ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + side}" y1="{floor - at(tick)}" y2="{floor - at(tick)}"/>'
            f'<text class="tick" x="{left - 8}" y="{floor - at(tick) + 4}" text-anchor="end">{plain(tick)}</text>'
            f'<text class="tick" x="{left + at(tick)}" y="{floor + 16}" text-anchor="middle">{plain(tick)}</text>'
        )
    parts.append(f'<path class="ideal" d="M{left} {floor}L{left + side} {top}"/>')
    for k in np.unique(np.linspace(0, len(y) - 1, min(most, len(y))).astype(np.int64)):
        across, up = at(float(y[k])), at(float(said[k]))
        parts.append(f'<circle class="point" cx="{left + across:.1f}" cy="{floor - up:.1f}" r="2.4"/>')
    parts.append(f'<path class="axis" d="M{left} {floor}h{side}"/>')
    parts.append(both(("predicted", "预测"), f'class="unit" x="{left - 36}" y="12"'))
    end = f'class="unit" x="{left + side}" y="{height - 6}" text-anchor="end"'
    parts.append(both(("is", "实际"), end))
    return "".join([*parts, "</svg>"])
