"""Which pieces of the source a model read for each piece that it wrote: a heat map, and a page of them.

Weights (T, S) have a row for each of T pieces written and a column for each of S pieces read, as cross-attention gives
them. They say where the model looked, not why it wrote what it wrote.

The picture is an <svg> that needs nothing else: its colours are attributes, which the style sheet of a report
overrides, so it follows light and dark there and stands alone in a file. A cell is as dark as its weight beside the
largest one; the largest of a row has a frame, so colour is not the only sign, and a description has those in words.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from zhixing.errors import InputError
from zhixing.evaluation.records import visible
from zhixing.evaluation.terminal import columns, fits

if TYPE_CHECKING:
    import jinja2

WIDE = 620  # pixels that the cells of few columns fill
SMALLEST, LARGEST = 20, 36  # pixels of a cell: labels turned by 45 degrees do not meet from 20 on
LETTERS = 12  # pixels
LABEL_COLUMNS = 18  # of a terminal; longer labels are cut, the whole one shows when pointed at
DRAWN_FROM = 0.02  # of the largest weight; less could not be seen
TOLD = 60  # rows that the description names
LEGEND = (0.25, 0.5, 0.75, 1.0)  # of the largest weight

_PAGE = """{% extends "page.html.jinja" %}
{% from "pieces.html.jinja" import say %}
{% block main %}
<section><p class="aside">{{ say((
  "A row is a piece that was written, a column a piece that was read for it. The darker, the more; the frame has the most of its row. Point at a cell for its number. This shows where the model looked, not why it wrote it.",
  "行为写出的片段，列为所读原文的片段。颜色越深权重越大，方框为该行最大者；指向格子可见数值。图示模型看了哪里，并不说明为何这样写。")) }}</p></section>
{% for source, output, picture in pictures %}
<section>
<h2>{{ say(("Text " ~ loop.index, "第 " ~ loop.index ~ " 段")) }}</h2>
<div class="examples"><dl>
<dt>{{ say(("source", "原文")) }}</dt><dd class="given" dir="auto">{{ source }}</dd>
<dt class="written">{{ say(("output", "输出")) }}</dt><dd dir="auto">{{ output }}</dd>
</dl></div>
<div class="scroll">{{ picture }}</div>
</section>
{% endfor %}
{% endblock %}
"""  # noqa: E501 -- sentences of the page


def alignment_picture(source_tokens: Sequence[str], output_tokens: Sequence[str], weights: ArrayLike) -> str:
    """The weights (T, S) as an <svg> of its own size: T output tokens down, S source tokens across.

    Empty text where a side is empty. ValueError: another shape, or a weight that is negative or no finite number.
    """
    shape = len(output_tokens), len(source_tokens)
    table = np.asarray(weights, np.float64)
    if not all(shape):
        return ""
    if table.shape != shape:
        raise ValueError(f"expected weights of shape {shape} (output, source), got {table.shape}")
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError("expected weights of 0 or more, got one that is negative or not finite")
    most = float(table.max()) or 1.0
    across, down = [_shown(token) for token in source_tokens], [_shown(token) for token in output_tokens]
    cell = max(SMALLEST, min(LARGEST, WIDE // shape[1]))
    wide_across, wide_down = (max(_width(fits(name, LABEL_COLUMNS)) for name in names) for names in (across, down))
    turned = wide_across > cell - 4
    rise = round(0.71 * (wide_across + LETTERS)) if turned else LETTERS
    left, top = max(wide_down, 84) + 12, 28 + rise
    width, height = cell * shape[1], cell * shape[0]
    right = max(8, round(0.71 * wide_across) - cell // 2 + 12) if turned else 8
    full = left + max(width + right, 92 + 48 * len(LEGEND)), top + height + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="matrix alignment" width="{full[0]}" height="{full[1]}" '
        f'viewBox="0 0 {full[0]} {full[1]}" role="img" font-size="{LETTERS}" font-family="sans-serif" '
        f'fill="currentColor" aria-label="{escape(_name(shape))}">',
        f"<desc>{escape(_in_words(across, down, table))}</desc>",
        f'<rect class="ground" x="{left}" y="{top}" width="{width}" height="{height}" fill="#fffefb"/>',
        f'<text class="title" x="{left}" y="12">source 原文 →</text>',
        f'<text class="title" x="{left - 8}" y="{top - 6}" text-anchor="end">output 输出 ↓</text>',
    ]
    for k, name in enumerate(across):
        middle = left + cell * k + cell / 2
        where = f'x="{middle:g}" y="{top - 7}" text-anchor="middle"'
        if turned:
            where = f'x="{middle + 0.3 * LETTERS:.1f}" y="{top - 6}" transform="rotate(-45 {middle:g} {top - 6})"'
        parts.append(f"<text {where}>{_cut(name)}</text>")
    for k, name in enumerate(down):
        y = top + cell * k + cell / 2 + 0.35 * LETTERS
        parts.append(f'<text x="{left - 8}" y="{y:.1f}" text-anchor="end">{_cut(name)}</text>')
    for row, column in np.argwhere(table >= DRAWN_FROM * most):
        weight = float(table[row, column])
        said = f"{down[row]} ← {across[column]}: {weight:.3f}"
        parts.append(
            f'<g><title>{escape(said)}</title><rect class="hit" x="{left + cell * int(column)}" '
            f'y="{top + cell * int(row)}" width="{cell}" height="{cell}" fill="#41657f" '
            f'fill-opacity="{weight / most:.2f}"/></g>'
        )
    grid = [f"M{left} {top + cell * k}h{width}" for k in range(shape[0] + 1)]
    grid += [f"M{left + cell * k} {top}v{height}" for k in range(shape[1] + 1)]
    parts.append(f'<path class="grid" fill="none" stroke="#e6e0d5" d="{"".join(grid)}"/>')
    strongest = table.argmax(axis=1)  # the first of equal ones
    frames = [
        f"M{left + cell * int(column) + 1} {top + cell * row + 1}h{cell - 2}v{cell - 2}h{2 - cell}z"
        for row, column in enumerate(strongest)
        if table[row, column] >= DRAWN_FROM * most
    ]
    parts.append(f'<path class="strongest" fill="none" stroke="#b03a2a" stroke-width="1.5" d="{"".join(frames)}"/>')
    return "".join([*parts, *_legend(left, top + height + 16, most), "</svg>"])


def alignment_page(pictures: Sequence[tuple[str, str, str]]) -> str:
    """The page of (source, output, svg), in the frame of every report; the same pictures give the same page.

    svg is what `alignment_picture` gave and is taken as it is; the texts are escaped. InputError: no pictures.
    """
    from markupsafe import Markup

    if not pictures:
        raise InputError("there is no alignment to show")
    n = len(pictures)
    template, style = _template()
    return template.render(
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        name="alignment 对齐",
        about=(
            f"What was read for what was written, of {n:,} text{'' if n == 1 else 's'}.",
            f"{n:,} 段文本的读写对应。",
        ),
        notes=[],
        pictures=[(visible(source), visible(output), Markup(svg)) for source, output, svg in pictures],
    )


@cache
def _template() -> tuple[jinja2.Template, str]:
    """The page and the style sheet of the reports. Jinja is loaded here: a picture does without it."""
    import jinja2

    def read(name: str) -> str:
        return _PAGE if name == "alignment" else (folder / name).read_text(encoding="utf-8")

    folder = resources.files("zhixing.evaluation")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(read),
    )
    return environment.get_template("alignment"), read("report.css")


def _shown(token: str) -> str:
    """A token as a label: one line, with a sign where there would be nothing to see.

    >>> _shown("▁the"), _shown(" "), _shown(""), _shown("a\\n")
    ('the', '␣', '∅', 'a⏎')
    """
    text = visible(token).replace("\n", "⏎").replace("\t", "⇥").replace("▁", " ")  # U+2581, a blank's sign
    return text.strip() or ("␣" if text else "∅")


def _width(label: str) -> int:
    """Pixels that a label takes, or somewhat more: a column is half a Chinese character."""
    return round(0.62 * LETTERS * columns(label))


def _cut(name: str) -> str:
    short = fits(name, LABEL_COLUMNS)
    return escape(short) + (f"<title>{escape(name)}</title>" if short != name else "")


def _name(shape: tuple[int, int]) -> str:
    return f"Alignment: {shape[0]:,} pieces written (rows), {shape[1]:,} pieces read (columns)"


def _in_words(across: Sequence[str], down: Sequence[str], table: np.ndarray) -> str:
    """What was read most for each piece written."""
    rows = [
        f"{name} ← {across[column]} ({table[row, column]:.2f})"
        for row, (name, column) in enumerate(zip(down, table.argmax(axis=1), strict=True))
    ]
    rest = f"; and {len(rows) - TOLD:,} more" if len(rows) > TOLD else ""
    return f"What was read most for each piece written: {'; '.join(rows[:TOLD])}{rest}."


def _legend(left: int, y: int, most: float) -> list[str]:
    parts = [f'<text class="title" x="{left}" y="{y + 10}">weight 权重</text>']
    for k, share in enumerate(LEGEND):
        x = left + 92 + 48 * k
        parts.append(
            f'<rect class="hit" x="{x}" y="{y}" width="24" height="12" fill="#41657f" fill-opacity="{share}"/>'
            f'<text class="scale" x="{x + 12}" y="{y + 23}" text-anchor="middle" font-size="10">'
            f"{share * most:.2g}</text>"
        )
    return parts
