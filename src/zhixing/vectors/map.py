"""A map of words: their vectors in two dimensions, as one SVG file that needs nothing else.

The plane is that of the two largest principal components of the words drawn (PCA by SVD): it keeps as much of their
spread as a plane can, and the picture says how much that is. Vectors are first made of length 1, since it is angles
that mean something.

Labels do not overlap: each is tried at eight places around its dot, the more important words first, and left out where
none is free; the dot stays, and shows its word when pointed at. Colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.vectors.keyed import KeyedVectors

MOST_WORDS = 5000  # dots of a picture that a browser still moves smoothly
_COLOURS = (  # of groups; each readable on white and on black
    "#2f7ed8",
    "#d9662b",
    "#2e9e5b",
    "#b8479b",
    "#a8841a",
    "#6b6fe0",
    "#c94f4f",
    "#1f9aa8",
)
_WIDTH, _HEIGHT, _MARGIN, _TOP = 960, 720, 40, 64
_FONT = 13  # pixels

_STYLE = """
svg { background: #ffffff; color: #1b1f24; font-family: system-ui, "Noto Sans CJK SC", "PingFang SC", sans-serif; }
text { fill: currentColor; font-size: 13px; } .title { font-size: 18px; font-weight: 600; } .note { opacity: .7; }
.label { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
@media (prefers-color-scheme: dark) {
  svg { background: #14171b; color: #e8eaed; } .label { stroke: #14171b; }
}
""".strip()


@dataclass(frozen=True)
class Plane:
    """points (N, 2) and the share of the words' spread that each axis shows."""

    points: NDArray[np.float64]
    shares: tuple[float, float]


def project(vectors: NDArray[np.float32]) -> Plane:
    """Vectors (N, D) in the plane of their two largest principal components; of each axis the sign is fixed.

    N >= 2. Points that are all the same stay at (0, 0).
    """
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"expected a matrix of two rows or more, got the shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1)
    rows = rows - rows.mean(axis=0)  # (N, D)
    left, sizes, _ = np.linalg.svd(rows, full_matrices=False)
    points = np.zeros((len(rows), 2))
    shares = [0.0, 0.0]
    for axis in range(min(2, len(sizes))):
        if sizes[axis] > 1e-9:
            points[:, axis] = left[:, axis] * sizes[axis]
            if points[np.argmax(np.abs(points[:, axis])), axis] < 0:  # SVD leaves the sign open
                points[:, axis] *= -1
            shares[axis] = float(sizes[axis] ** 2 / (sizes**2).sum())
    return Plane(points, (shares[0], shares[1]))


def draw_map(
    vectors: KeyedVectors, words: Sequence[str], groups: Sequence[str] | None = None, title: str = "Word vectors"
) -> str:
    """The map of `words` as SVG text; `groups` names the group of each, which gives its colour.

    The words that come first get their labels first. InputError for a word without a vector.
    """
    words = list(dict.fromkeys(words)) if groups is None else list(words)
    if groups is not None and len(groups) != len(words):
        raise ValueError(f"expected {len(words)} groups, got {len(groups)}")
    if not 2 <= len(words) <= MOST_WORDS:
        raise InputError(f"a map of {len(words)} words cannot be drawn", mend=f"give 2 to {MOST_WORDS} words")
    plane = project(np.array([vectors.vector(word) for word in words], np.float32))
    places = _fit(plane.points)
    boxes = _place_labels(places, [_text_width(word) for word in words])
    names = list(dict.fromkeys(groups or ()))
    x, y = (f"{share:.0%}" for share in plane.shares)
    note = f"{len(words)} words; the axes show {x} (across) and {y} (up) of their spread"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{_escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_MARGIN}" y="30">{_escape(title)}</text>',
        f'<text class="note" x="{_MARGIN}" y="50">{_escape(note)}</text>',
    ]
    colours = (
        [_COLOURS[names.index(group) % len(_COLOURS)] for group in groups] if groups else [_COLOURS[0]] * len(words)
    )
    for word, (px, py), colour in zip(words, places, colours, strict=True):
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"><title>{_escape(word)}</title></circle>'
        )
    for word, (px, _), box in zip(words, places.tolist(), boxes, strict=True):
        if box is not None:
            # anchored at the dot's side, so that a width guessed wrong leaves no gap
            left, _, right, bottom = box
            anchor, x_at = ("start", left) if left > px else ("end", right) if right < px else ("middle", px)
            parts.append(
                f'<text class="label" x="{x_at:.1f}" y="{bottom - 4:.1f}" text-anchor="{anchor}">{_escape(word)}</text>'
            )
    at = float(_MARGIN)
    for number, name in enumerate(names):
        parts.append(f'<circle cx="{at:.1f}" cy="{_HEIGHT - 16}" r="5" fill="{_COLOURS[number % len(_COLOURS)]}"/>')
        parts.append(f'<text x="{at + 10:.1f}" y="{_HEIGHT - 11}">{_escape(name)}</text>')
        at += _text_width(name) + 30
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _fit(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points in pixels, one scale for both axes, y upwards. (N, 2)"""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array([_WIDTH - 2 * _MARGIN - 60, _HEIGHT - _TOP - _MARGIN - 30])  # labels stand to the right
    scale = float((room / np.maximum(high - low, 1e-12)).min()) if (high > low).any() else 1.0
    middle = np.array([_WIDTH / 2 - 20, (_HEIGHT + _TOP - _MARGIN) / 2])
    return np.asarray(middle + (points - (low + high) / 2) * scale * [1, -1])


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _place_labels(places: NDArray[np.float64], widths: Sequence[float]) -> list[Box | None]:
    """A box for each label that touches no other and no dot; None where there is none."""
    taken = _Grid()
    for x, y in places.tolist():
        taken.add((x - 3, y - 3, x + 3, y + 3))
    boxes: list[Box | None] = []
    for (x, y), width in zip(places.tolist(), widths, strict=True):
        height = _FONT + 4.0
        left, middle, right = x - 6 - width, x - width / 2, x + 6
        above, level, below = y - 6 - height, y - height / 2, y + 6
        tries = (
            (right, level), (left, level), (middle, above), (middle, below),
            (right, above), (right, below), (left, above), (left, below),
        )  # fmt: skip
        box = None
        for begin, top in tries:
            candidate = (begin, top, begin + width, top + height)
            inside = begin >= 4 and top >= _TOP - 8 and begin + width <= _WIDTH - 4 and top + height <= _HEIGHT - 28
            if inside and taken.is_free(candidate):
                box = candidate
                taken.add(candidate)
                break
        boxes.append(box)
    return boxes


class _Grid:
    """Boxes by the cells of a grid that they touch, so that only near ones are compared."""

    def __init__(self, size: float = 48) -> None:
        self.size = size
        self.cells: dict[tuple[int, int], list[Box]] = {}

    def _cells_of(self, box: Box) -> list[tuple[int, int]]:
        left, top, right, bottom = (int(edge // self.size) for edge in box)
        return [(i, j) for i in range(left, right + 1) for j in range(top, bottom + 1)]

    def add(self, box: Box) -> None:
        for cell in self._cells_of(box):
            self.cells.setdefault(cell, []).append(box)

    def is_free(self, box: Box) -> bool:
        left, top, right, bottom = box
        return not any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
            for cell in self._cells_of(box)
            for other in self.cells.get(cell, ())
        )


def _text_width(text: str) -> float:
    """Pixels of a label, a little too many: a full-width character is as wide as it is high."""
    return sum(
        0.0 if unicodedata.combining(c) else _FONT * (1.05 if unicodedata.east_asian_width(c) in "WF" else 0.62)
        for c in text
    )


def _escape(text: str) -> str:
    """Text for XML, without the characters that XML cannot hold."""
    kept = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(kept, quote=True)
