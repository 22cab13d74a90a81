"""An explanation on a terminal: the text with its words coloured, and the words that weigh most.

Blue speaks for the label and orange against it, which people who tell red from green badly can tell apart. Without
colours (NO_COLOR, a pipe) the words that weigh are marked: +for+ and -against-.
"""

from __future__ import annotations

import os
import sys

from rich.cells import cell_len

from zhixing.evaluation.records import visible
from zhixing.explain.explanation import Explanation

# 256-colour background and foreground of levels 1 .. 5; both are given, so that they fit dark and light terminals
FOR = ((153, 16), (117, 16), (75, 16), (32, 231), (25, 231))
AGAINST = ((223, 16), (216, 16), (209, 16), (166, 231), (130, 231))
MARKED = 2  # the lowest level that is marked where there are no colours

SHOWN = 6000  # characters of a text
NEIGHBOUR_SHOWN = 200  # characters of a training text
BAR = 16  # cells


def terminal(explanation: Explanation, *, colour: bool | None = None, top: int = 10) -> str:
    """The explanation as lines of text. Colours on a terminal, unless NO_COLOR is set; `colour` decides otherwise."""
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    lines = [_answer(explanation, colour), "", *_text(explanation, colour).splitlines(), ""]
    lines += [*_table(explanation, colour, top), "", *_notes(explanation)]
    for neighbour in explanation.nearest:
        labels = ", ".join(neighbour.labels) or "no label"
        text = " ".join(neighbour.text[: 2 * NEIGHBOUR_SHOWN].split())
        cut = text[:NEIGHBOUR_SHOWN] + ("…" if len(text) > NEIGHBOUR_SHOWN else "")
        lines.append(f"like it ({neighbour.similarity:.2f}, {visible(labels)}): {visible(cut)}")
    return "\n".join(lines)


def _answer(explanation: Explanation, colour: bool) -> str:
    label = visible(explanation.label) or "value"
    label = f"\033[1m{label}\033[0m" if colour else label
    if explanation.probability is None:
        return f"{label} {explanation.score:.3f}"
    return f"{label} {explanation.probability:.1%}"


def _text(explanation: Explanation, colour: bool) -> str:
    text = explanation.text
    shown: list[str] = []
    at = 0
    for word in explanation.words:
        if word.end > SHOWN:
            break
        level = explanation.level(word.weight)
        shown += [visible(text[at : word.start]), _marked(visible(text[word.start : word.end]), level, colour)]
        at = word.end
    if len(text) > SHOWN:
        shown.append(f" … ({len(text) - at:,} more characters)")
    else:
        shown.append(visible(text[at:]))
    return "".join(shown)


def _marked(word: str, level: int, colour: bool) -> str:
    if colour and level:
        background, ink = (FOR if level > 0 else AGAINST)[abs(level) - 1]
        return f"\033[48;5;{background};38;5;{ink}m{word}\033[0m"
    if abs(level) < MARKED:
        return word
    sign = "+" if level > 0 else "-"
    return f"{sign}{word}{sign}"


def _table(explanation: Explanation, colour: bool, top: int) -> list[str]:
    rows = explanation.top_words(top)
    if not rows:
        return ["no word weighs anything"]
    most = max(abs(row.weight) for row in rows)
    words = [visible(row.word) for row in rows]
    width = max(map(cell_len, words))
    lines = []
    for row, word in zip(rows, words, strict=True):
        bar = "█" * max(1, round(abs(row.weight) / most * BAR))
        if colour:
            bar = f"\033[38;5;{32 if row.weight > 0 else 166}m{bar}\033[0m"
        blank = " " * (width - cell_len(word))
        times = f"  ({row.times} times)" if row.times > 1 else ""
        lines.append(f"  {word}{blank}  {row.weight:+.3f}  {bar}{times}")
    return lines


def _notes(explanation: Explanation) -> list[str]:
    """How to read the numbers, and how far they can be trusted."""
    lines = []
    if explanation.method == "rollout":
        lines.append("attention rollout: the share of each word in what the model reads; not for or against")
    else:
        name = explanation.method.replace("_", " ")
        start = explanation.baseline_score
        lines.append(
            f"{name}: + speaks for {visible(explanation.label) or 'a higher value'}, - against it; the score goes from "
            f"{start:+.2f} (nothing read) to {explanation.score:+.2f}, {explanation.rest:+.2f} of it by no word"
        )
        if explanation.members > 1:
            lines.append(
                f"an average of {explanation.members} models: what is shown is the weighted mean of their scores and of"
                " each word's part in them; the answer's probability is that of their mean probabilities"
            )
        if not explanation.complete:
            lines.append(
                f"careful: the weights miss the score by {explanation.gap:.3g}, after {explanation.nodes} nodes"
            )
    if explanation.lopsided:
        lines.append(
            f"careful: the model leans {'towards' if (explanation.lean or 0) > 0 else 'away from'} this label before it"
            f" reads a word, by {abs(explanation.lean or 0):.2f}; the weights say only what the words add to that"
        )
    if explanation.left_out:
        lines.append(f"careful: {explanation.left_out:,} tokens at the end were not read; the text is too long")
    return lines
