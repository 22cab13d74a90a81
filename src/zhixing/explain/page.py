"""Explanations as one HTML page that needs nothing else.

It asks no host for anything and holds no script: its Content-Security-Policy allows one thing, the style sheet with
this SHA-256. Texts, labels and neighbours are escaped text, whatever they say. Colour is never the only sign: words
that speak for the label are underlined, those against it have a wavy line, and a table has the weightiest in numbers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from zhixing.errors import InputError
from zhixing.evaluation.records import visible
from zhixing.explain.explanation import Explanation, Method

if TYPE_CHECKING:
    import jinja2

Words = tuple[str, str]  # English, Chinese

TOP_WORDS = 12
NEIGHBOUR_SHOWN = 600  # characters of a training text

METHODS: dict[Method, Words] = {
    "integrated_gradients": ("integrated gradients", "积分梯度"),
    "contributions": ("exact contributions", "精确贡献"),
    "rollout": ("attention rollout", "注意力展开"),
}


@dataclass(frozen=True)
class Piece:
    """A stretch of the text: shade is "" for none, f1 .. f5 for the label, a1 .. a5 against it."""

    text: str
    shade: str
    title: str


@dataclass(frozen=True)
class Row:
    """A word of the table; length is 0 .. 100 of the largest."""

    word: str
    weight: str
    times: int
    length: float
    side: str  # f or a


@dataclass(frozen=True)
class Like:
    """A training text near to the explained one."""

    text: str
    labels: str
    similarity: str


@dataclass(frozen=True)
class View:
    """An explanation as the page shows it."""

    number: int
    label: str
    answer: str
    method: Words
    rollout: bool
    pieces: list[Piece]
    beginning: str
    rows: list[Row]
    notes: list[Words]
    warnings: list[Words]
    like: list[Like]


def page(explanations: Sequence[Explanation], title: str = "") -> str:
    """The page as text; the same explanations give the same page. An InputError if there is none."""
    from markupsafe import Markup

    if not explanations:
        raise InputError("there is no explanation to show")
    template, style = _template()
    return template.render(
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=visible(title),
        views=[_view(number, explanation) for number, explanation in enumerate(explanations, 1)],
    )


@cache
def _template() -> tuple[jinja2.Template, str]:
    """The page and its style sheet. Jinja is loaded here: an explanation on a terminal does without it."""
    import jinja2

    folder = resources.files("zhixing.explain")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    return template, (folder / "page.css").read_text(encoding="utf-8")


def _view(number: int, explanation: Explanation) -> View:
    top = explanation.top_words(TOP_WORDS)
    most = max((abs(row.weight) for row in top), default=1.0)
    rows = [
        Row(visible(t.word), _signed(t.weight), t.times, abs(t.weight) / most * 100, "f" if t.weight > 0 else "a")
        for t in top
    ]
    value = f"{explanation.score:.3f}" if explanation.probability is None else f"{explanation.probability:.1%}"
    return View(
        number=number,
        label=visible(explanation.label),
        answer=value,
        method=METHODS[explanation.method],
        rollout=explanation.method == "rollout",
        pieces=_pieces(explanation),
        beginning=_shortened(explanation.text, 90),
        rows=rows,
        notes=_notes(explanation),
        warnings=_warnings(explanation),
        like=[
            Like(_shortened(n.text, NEIGHBOUR_SHOWN), visible(", ".join(n.labels)), f"{n.similarity:.2f}")
            for n in explanation.nearest
        ],
    )


def _pieces(explanation: Explanation) -> list[Piece]:
    """The text in order; stretches without a shade are one piece, so that long texts stay small pages."""
    pieces: list[Piece] = []
    at = 0  # where the unshaded stretch begins
    for word in explanation.words:
        level = explanation.level(word.weight)
        if not level:
            continue
        if word.start > at:
            pieces.append(Piece(visible(explanation.text[at : word.start]), "", ""))
        shade = f"{'f' if level > 0 else 'a'}{abs(level)}"
        pieces.append(Piece(visible(explanation.text[word.start : word.end]), shade, _signed(word.weight)))
        at = word.end
    return [*pieces, Piece(visible(explanation.text[at:]), "", "")] if at < len(explanation.text) else pieces


def _notes(explanation: Explanation) -> list[Words]:
    if explanation.method == "rollout":
        return [
            (
                "Shares of attention: from which words what the model reads has come. Neither for nor against.",
                "注意力所占份额：模型读到的内容来自哪些词。既非支持，也非反对。",
            )
        ]
    start, rest = explanation.baseline_score, explanation.rest
    end = explanation.score
    averaged = (
        f"An average of {explanation.members} models: what is shown is the weighted mean of their scores and of each "
        "word's part in them; the answer's probability is that of their mean probabilities.",
        f"{explanation.members} 个模型的平均：所示为各模型得分及每个词份额的加权平均；答案的概率来自各模型概率的平均。",
    )
    return [averaged] * (explanation.members > 1) + [
        (
            f"The score of the label goes from {start:+.2f} with nothing read to {end:+.2f}; a weight is a word's part "
            f"of the way. {rest:+.2f} belong to no word.",
            f"未读任何词时标签得分为 {start:+.2f}，读后为 {end:+.2f}；权重为每个词的份额。{rest:+.2f} 不属于任何词。",
        ),
        (
            f"Checked: the weights add up to the change, within {explanation.gap:.1g} ({explanation.nodes} nodes).",
            f"已核对：权重之和等于得分变化，误差 {explanation.gap:.1g}（{explanation.nodes} 个节点）。",
        ),
    ][: 2 if explanation.complete else 1]


def _warnings(explanation: Explanation) -> list[Words]:
    found: list[Words] = []
    if not explanation.complete:
        found.append(
            (
                f"The weights miss the change of the score by {explanation.gap:.3g} after {explanation.nodes} nodes: "
                "take them with caution.",
                f"经过 {explanation.nodes} 个节点，权重之和与得分变化仍相差 {explanation.gap:.3g}：请谨慎看待。",
            )
        )
    if explanation.lopsided:
        lean = explanation.lean or 0.0
        english, chinese = ("towards", "偏向") if lean > 0 else ("away from", "偏离")
        found.append(
            (
                f"The model leans {english} this label before it reads a word, by {abs(lean):.2f}: the weights say "
                "only what the words add to that.",
                f"未读任何词时模型已{chinese}这个标签（{abs(lean):.2f}）：权重只说明各词在此之外的作用。",
            )
        )
    if explanation.left_out:
        found.append(
            (
                f"The text is too long: the model did not read its last {explanation.left_out:,} tokens.",
                f"文本过长：模型未读最后 {explanation.left_out:,} 个词元。",
            )
        )
    return found


def _signed(weight: float) -> str:
    return f"{weight:+.3f}".replace("-", "−")


def _shortened(text: str, limit: int) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: 4 * limit].split())
    return visible(line if len(line) <= limit and len(text) <= 4 * limit else line[:limit] + "…")
