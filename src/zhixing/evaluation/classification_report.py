"""The report of a classifier: one HTML file with what a person needs to trust it, and the same in short for a terminal.

Scores with intervals beside an answer that needs no learning, what is taken for what, each class, whether confidence
means what it says, the most confident mistakes, and what is known of the data. In the frame of every report (page.py).

Of `facts` it reads, besides showing all of it, data.near_duplicates and data.exact_duplicates (test texts that stand in
the training texts too), data.too_long (test texts longer than the context) with data.on_too_long (what was done with
them), and data.no_label: each is a number that belongs beside the score.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zhixing.errors import InputError
from zhixing.evaluation.calibration import Reliability
from zhixing.evaluation.classification import ClassifierScores, confusion_matrix
from zhixing.evaluation.classification_charts import (
    confused,
    confusion_picture,
    reliability_picture,
    scatter_picture,
)
from zhixing.evaluation.classification_result import (
    MAIN_SCORE,
    UNITS,
    ClassificationResult,
    baselines,
    in_units,
    mistakes,
    rating,
    result_reliability,
    result_scores,
)
from zhixing.evaluation.intervals import Score
from zhixing.evaluation.labels import SCORES, Words
from zhixing.evaluation.page import render_page
from zhixing.evaluation.records import RunRecords, number, read_records, visible
from zhixing.evaluation.report import Bar, Row, fact_tables, loss_charts, loss_words, small_charts
from zhixing.evaluation.terminal import bold, columns, faint, fits, pad, wants_colour
from zhixing.files import atomic_write
from zhixing.progress import duration, quantity

TEXT_SHOWN = 300  # characters of a text
MISTAKES_SHOWN = 20
FEW = 10  # texts of a class; with fewer, the bootstrap of a macro score covers less than it says (measured)
PERCENT = frozenset(("accuracy", "subset_accuracy", "ece"))  # shown as shares of 100
BRIEF = {
    "single_label_classification": ("macro_f1", "mcc", "ece"),
    "multi_label_classification": ("macro_f1", "subset_accuracy", "ece"),
    "regression": ("spearman", "mae"),
}
BASELINES: dict[str, Words] = {
    "most frequent label": ("always the most frequent label", "总答最常见的标签"),
    "mean rating": ("always the mean rating", "总答平均分"),
}
LOWER_IS_BETTER = frozenset(("mse", "mae", "hamming_loss", "log_loss", "brier", "ece"))


def write_classification_report(
    target: Path | str,
    result: ClassificationResult,
    *,
    run_dir: Path | str | None = None,
    scores: ClassifierScores | None = None,
) -> Path:
    """Write the page to `target`; returns its path. With `run_dir` the curves, facts and recipe of that run too."""
    path = Path(target)
    atomic_write(path, render_classification_report(result, run_dir=run_dir, scores=scores))
    return path


def render_classification_report(
    result: ClassificationResult,
    *,
    run_dir: Path | str | None = None,
    scores: ClassifierScores | None = None,
) -> str:
    """The page as text; `scores` are those of the result, where they have been computed already."""
    from markupsafe import Markup

    scores = scores or result_scores(result)
    records = _records(run_dir)
    facts = _facts(result, records)
    bars = score_bars(result, scores)
    main = MAIN_SCORE[result.problem_type]
    loss, loss_is_log = loss_charts(records, ("nats a text", "奈特/篇")) if records else ({}, False)
    table, raw = result_reliability(result), None
    if table is not None and result.temperature != 1:
        raw = result_reliability(result, raw=True)
    matrix = confusion_matrix(*_known(result), len(result.labels)) if _has_matrix(result) else None
    rows = score_rows(scores)
    headline = "pearson" if result.graded else main
    values = {
        "name": visible(result.name or (records.name if records else "classifier")),
        "about": about(result, facts),
        "n": f"{scores.n:,}",
        "seed": scores.seed,
        "figure": next(row for row in rows if row.key == headline),
        "no_interval": no_interval(scores),
        "bars": sorted(bars, key=lambda bar: bar.value if main in LOWER_IS_BETTER else -bar.value),
        "bar_limit": 1.0 if main not in LOWER_IS_BETTER else max(bar.high or bar.value for bar in bars) or 1.0,
        "bar_caption": _bar_caption(main),
        "bar_form": _bar_form(main, max(bar.value for bar in bars)),
        "bar_scale": 100 if main in PERCENT else 1,
        "score_rows": rows,
        "score_brief": [row for key in BRIEF[result.problem_type] for row in rows if row.key == key],
        "warnings": warnings(result, facts),
        "loss": {name: Markup(svg) for name, svg in loss.items()},
        "loss_is_log": loss_is_log,
        "loss_words": loss_words(records) if records else None,
        "matrix": Markup(confusion_picture(matrix, result.labels)) if matrix is not None else "",
        "pairs": _pairs(matrix, result.labels) if matrix is not None else [],
        "classes": _class_rows(scores),
        "scatter": Markup(scatter_picture(*_known(result))) if result.graded else "",
        "reliability": Markup(reliability_picture(table, raw)) if table else "",
        "raw": raw is not None,
        "reliability_words": reliability_words(table, raw, result) if table else [],
        "mistakes": _shown_mistakes(result),
        "mistakes_title": ("The farthest off", "偏差最大的文本")
        if result.graded
        else ("Where it was sure and wrong", "最自信的错误"),
        "mistakes_words": (
            "The texts whose predicted rating is farthest from the wanted one.",
            "预测分数与实际相差最大的文本。",
        )
        if result.graded
        else (
            "The wrong answers of the highest confidence. Among them are often wrong labels and texts that say both.",
            "置信度最高的错误答案；其中常有标注错误或自相矛盾的文本。",
        ),
        "small": [(title, Markup(svg)) for title, svg in small_charts(records)] if records else [],
        "tables": fact_tables(facts),
        "recipe_text": visible(records.recipe_text) if records else "",
        "commands": next_commands(result, records.path) if records else [],
        "notes": [note for note in records.notes if not note.endswith("is not there")] if records else [],
    }
    return render_page("classification_report.html.jinja", values)


def _records(run_dir: Path | str | None) -> RunRecords | None:
    """The records of the run, or None where there are none yet."""
    if run_dir is None:
        return None
    try:
        return read_records(run_dir)
    except InputError:
        return None


def _facts(result: ClassificationResult, records: RunRecords | None) -> dict[str, Any]:
    """The facts of the run and of the result, and what the texts themselves tell."""
    facts = {**(records.facts if records else {}), **result.facts}
    data = facts.get("data")
    data = dict(data) if isinstance(data, dict) else {}
    test = data.get("test")
    data["test"] = {**text_facts(result), **(test if isinstance(test, dict) else {})}
    return {**facts, "data": data}


def text_facts(result: ClassificationResult) -> dict[str, Any]:
    """How many texts and classes there are, and how long the texts are in characters."""
    facts: dict[str, Any] = {"documents": len(result.targets)}
    unknown = int((~result.known).sum())
    if unknown:
        facts["no_label"] = unknown
    if result.labels:
        facts["classes"] = len(result.labels)
    if result.texts:
        sizes = np.array([len(text) for text in result.texts])
        facts["empty"] = int((sizes == 0).sum())
        facts["lengths"] = {
            "smallest": int(sizes.min()),
            "median": int(np.median(sizes)),
            "percentile_95": int(np.quantile(sizes, 0.95)),
            "largest": int(sizes.max()),
        }
    return facts


def _known(result: ClassificationResult) -> tuple[Any, Any]:
    return tuple(np.asarray(column)[result.known] for column in (result.targets, result.predictions))  # type: ignore[return-value]


def _has_matrix(result: ClassificationResult) -> bool:
    return not result.several and not result.graded


def about(result: ClassificationResult, facts: dict[str, Any]) -> Words:
    """One sentence: what this model is."""

    def fact(table: str, *keys: str) -> Any:
        rows = facts.get(table)
        return next((rows[key] for key in keys if rows.get(key)), None) if isinstance(rows, dict) else None

    family = fact("model", "family")
    parameters = number(fact("model", "parameters"))
    train, seconds = fact("data", "train"), number(fact("run", "training_seconds", "seconds"))
    texts = number(train.get("documents")) if isinstance(train, dict) else None
    kinds = {
        "single_label_classification": (
            f"that tells {len(result.labels)} classes apart",
            f"区分 {len(result.labels)} 类的",
        ),
        "multi_label_classification": (
            f"for any of {len(result.labels)} labels",
            f"{len(result.labels)} 个标签可多选的",
        ),
        "regression": ("that rates texts", "给文本打分的"),
    }
    english, chinese = "A model", "模型"
    if family:
        article = "An" if str(family)[0] in "aeiou" or family == "lstm" else "A"
        english, chinese = f"{article} {family} model", f"{family} 模型"
    english, chinese = f"{english} {kinds[result.problem_type][0]}", f"{kinds[result.problem_type][1]}{chinese}"
    if parameters:
        english, chinese = f"{english}, {quantity(parameters)} parameters", f"{chinese}，{quantity(parameters)} 参数"
    if texts:
        english, chinese = f"{english}, trained on {texts:,.0f} texts", f"{chinese}，用 {texts:,.0f} 篇文本训练"
    elif seconds:
        english, chinese = f"{english}, trained", f"{chinese}，训练"
    if seconds:
        english, chinese = f"{english} in {duration(seconds)}", f"{chinese}，用时 {duration(seconds)}"
    return visible(english + "."), visible(chinese + "。")


def shown_value(key: str, value: float) -> str:
    """A score for a person: 90.7% or 0.907, – for what is no number. Errors in units of the ratings: four digits."""
    if not math.isfinite(value):
        return "–"
    if key in UNITS:
        return in_units(value)
    return f"{value:.1%}" if key in PERCENT else f"{value:.3f}"


def shown_interval(key: str, score: Score) -> str:
    """Its interval; empty where there is none."""
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return ""
    return f"{shown_value(key, score.low)} – {shown_value(key, score.high)}"


def score_rows(scores: ClassifierScores) -> list[Row]:
    """Each score with its interval. Micro F1 of one label a text is the accuracy and left out."""
    return [
        Row(SCORES[key], shown_value(key, score.value), shown_interval(key, score), key)
        for key, score in scores.scores.items()
        if not (key == "micro_f1" and "accuracy" in scores.scores)
    ]


def no_interval(scores: ClassifierScores) -> Words:
    """Why a score has none."""
    if scores.n < 2:
        return "No interval: there is only one text.", "只有一篇文本，没有区间。"
    return (
        "No interval: the ratings, or the answers, are all the same number, which correlates with nothing.",
        "实际分数或预测分数全部相同，无法计算相关，没有区间。",
    )


def score_bars(result: ClassificationResult, scores: ClassifierScores) -> list[Bar]:
    """The main score of this model (first) and of what it is compared with."""
    own = scores.scores[MAIN_SCORE[result.problem_type]]
    low, high = (end if math.isfinite(end) else None for end in (own.low, own.high))
    bars = [Bar(("this model", "本模型"), own.value, low, high, own=True)]
    for name, value in baselines(result).items():
        if math.isfinite(value) and value >= 0:
            bars.append(Bar(BASELINES.get(name, (visible(name), visible(name))), value, None, None, own=False))
    return bars


def _bar_form(main: str, largest: float) -> str:
    """How the page writes the values of the bars: errors with four digits, large ones to one place."""
    if main in UNITS:
        return "%.4g" if largest < 1e4 else "%.1f"
    return "%.1f%%" if main in PERCENT else "%.3f"


def _bar_caption(main: str) -> Words:
    order = ("lower is better", "越低越好") if main in LOWER_IS_BETTER else ("higher is better", "越高越好")
    name = SCORES[main][0]
    return f"{name[0].upper()}{name[1:]}; {order[0]}.", f"{SCORES[main][1]}，{order[1]}。"


def warnings(result: ClassificationResult, facts: dict[str, Any]) -> list[Words]:
    """What belongs beside the score: repeated, cut and unlabelled texts, and classes of few texts."""
    data = facts["data"]
    n = len(result.targets)
    found: list[Words] = []

    def told(key: str) -> float:
        return _told(data, key) or 0

    near, exact = told("near_duplicates"), told("exact_duplicates")
    if near or exact:
        share = f"{(near + exact) / n:.1%}"
        parts = [f"{exact:,.0f} word for word" if exact else "", f"{near:,.0f} nearly" if near else ""]
        chinese = [f"{exact:,.0f} 篇完全相同" if exact else "", f"{near:,.0f} 篇近似" if near else ""]
        found.append(
            (
                f"Test texts that stand in the training texts too: {', '.join(p for p in parts if p)} "
                f"({share}). The scores count them.",
                f"测试文本与训练文本重复：{'，'.join(p for p in chinese if p)}（{share}），已计入得分。",
            )
        )
    too_long, done = told("too_long"), str(data.get("on_too_long") or data["test"].get("on_too_long") or "")
    if too_long:
        english = {"truncate": "were cut", "split": "were split, their scores pooled"}.get(done, "met a limit")
        chinese_done = {"truncate": "已截断", "split": "已切分并合并得分"}.get(done, "受限")
        found.append(
            (
                f"{too_long:,.0f} texts ({too_long / n:.1%}) are longer than the context and {english}.",
                f"{too_long:,.0f} 篇文本（{too_long / n:.1%}）超出上下文，{chinese_done}。",
            )
        )
    unknown = told("no_label")
    if unknown:
        found.append(
            (f"{unknown:,.0f} texts without a label are not counted.", f"{unknown:,.0f} 篇无标签文本未计入。")
        )  # fmt: skip
    found += _all_alike(result)
    few = _rare_classes(result)
    if few:
        found.append(
            (
                f"{few:,} of {len(result.labels):,} classes have fewer than {FEW} test texts: macro scores rest on "
                "very little there, and their intervals are too narrow.",
                f"{len(result.labels):,} 类中有 {few:,} 类不足 {FEW} 篇测试文本：宏平均得分依据很少，其区间偏窄。",
            )
        )
    return found


def _all_alike(result: ClassificationResult) -> list[Words]:
    """The bootstrap draws what was met. Where all texts are right, or none, its interval is too narrow.

    With no error in n texts the share of errors lies below 1 - 0.025^(1 / n) (Clopper & Pearson 1934), in 95 of 100.
    """
    right = result.right[result.known]
    if result.graded or len(right) < 2 or right.any() != right.all():
        return []
    most = 1 - 0.025 ** (1 / len(right))
    n, share = f"{len(right):,}", f"{1 - most if right.all() else most:.1%}"
    if right.all():
        return [
            (
                f"All {n} texts are right, and the bootstrap draws no error that it has not met: on other texts of "
                f"this kind the accuracy may be as low as {share} (exact binomial, 95 %).",
                f"全部 {n} 篇均正确，自助抽样抽不到未出现过的错误："
                f"同类文本的准确率可能低至 {share}（精确二项区间，95 %）。",
            )
        ]
    return [
        (
            f"None of the {n} texts is right, and the bootstrap draws no hit that it has not met: on other texts of "
            f"this kind the accuracy may be as high as {share} (exact binomial, 95 %).",
            f"{n} 篇无一正确，自助抽样抽不到未出现过的正确答案："
            f"同类文本的准确率可能高至 {share}（精确二项区间，95 %）。",
        )
    ]


def _told(data: dict[str, Any], key: str) -> float | None:
    """What facts.json says of the data or of its test part; None where it says nothing."""
    found = [value for table in (data, data["test"]) if (value := number(table.get(key))) is not None]
    return max(found, default=None)


def _rare_classes(result: ClassificationResult) -> int:
    """How many classes that are met at all have fewer than FEW test texts."""
    if result.graded:
        return 0
    y = np.asarray(result.targets)[result.known]
    counts = (y > 0).sum(axis=0) if result.several else np.bincount(y, minlength=len(result.labels))
    return int(((counts > 0) & (counts < FEW)).sum())


def reliability_words(table: Reliability, raw: Reliability | None, result: ClassificationResult) -> list[Words]:
    """What the diagram says, in a sentence or two."""
    filled = table.counts > 0
    n = table.counts.sum()
    sure = float(table.confidence[filled] @ table.counts[filled] / n)
    right = float(table.accuracy[filled] @ table.counts[filled] / n)
    gap = sure - right
    if abs(gap) < 0.01:
        leaning = ("neither too sure nor too modest in the mean", "总体上不偏不倚")
    elif gap > 0:
        leaning = ("too sure of itself in the mean", "总体上过于自信")
    else:
        leaning = ("too modest in the mean", "总体上过于保守")
    means = (
        f"its mean confidence is {sure:.1%}, and {right:.1%} of its answers are right",
        f"平均置信度 {sure:.1%}，正确率 {right:.1%}",
    )
    if result.several:
        means = (
            f"it gives a label {sure:.1%} in the mean, and {right:.1%} of all labels of all texts are there",
            f"标签平均概率 {sure:.1%}，实际出现 {right:.1%}",
        )
    words: list[Words] = [
        (
            f"It is {leaning[0]}: {means[0]}. "
            f"Within a bin the two are {table.error:.1%} apart (expected calibration error, 15 bins).",
            f"{leaning[1]}：{means[1]}；各区间内平均相差 {table.error:.1%}（期望校准误差，15 个区间）。",
        )
    ]
    if raw is not None:
        words.append(
            (
                f"Its logits are divided by a temperature of {result.temperature:.3g}, fitted on held-out texts; "
                f"before that the error was {raw.error:.1%}. No answer changes by it.",
                f"logits 已除以温度 {result.temperature:.3g}（在留出文本上拟合）；"
                f"校准前误差为 {raw.error:.1%}。校准不改变答案。",
            )
        )
    return words


def _pairs(matrix: Any, labels: Sequence[str]) -> list[dict[str, str]]:
    totals = matrix.sum(axis=1)
    return [
        {
            "target": visible(labels[row]), "answer": visible(labels[column]), "count": f"{count:,}",
            "share": f"{count / int(totals[row]):.1%}",
        }
        for row, column, count in confused(matrix)
    ]  # fmt: skip


def _class_rows(scores: ClassifierScores) -> list[dict[str, Any]]:
    rows = []
    for entry in scores.classes:
        shown = []
        for score in (entry.precision, entry.recall, entry.f1):
            shown.append((f"{score.value:.3f}", _short(score)) if score.n else ("–", ""))
        rows.append(
            {
                "label": visible(entry.label), "support": f"{entry.support:,}", "predicted": f"{entry.predicted:,}",
                "scores": shown,
            }
        )  # fmt: skip
    return rows


def _short(score: Score) -> str:
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return ""
    return f"{score.low:.2f}–{score.high:.2f}"


def cut(text: str, most: int = TEXT_SHOWN) -> str:
    """At most `most` characters of a text on one line, safe to show."""
    line = " ".join(visible(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else line[:most].rstrip() + " …"


def _shown_mistakes(result: ClassificationResult) -> list[dict[str, Any]]:
    return [
        {
            "row": f"{m.row + 1:,}", "text": cut(m.text), "target": visible(m.target), "answer": visible(m.answer),
            "size": f"±{rating(m.size)}" if result.graded else f"{m.size:.1%}",
        }
        for m in mistakes(result, MISTAKES_SHOWN)
    ]  # fmt: skip


def next_commands(result: ClassificationResult, path: Path) -> list[tuple[Words, str]]:
    """What to do with the run, as commands that can be pasted."""
    run = shlex.quote(visible(str(path)))
    words = next((" ".join(visible(text[:200]).split()[:8])[:60] for text in result.texts or [] if text.strip()), "")
    text = shlex.quote(words or "a text")
    return [
        (("ask it", "分类"), f"zhixing classify {run} {text}"),
        (("ask why", "解释"), f"zhixing explain {run} {text}"),
        (("measure it on other texts", "在其他文本上评测"), f"zhixing evaluate {run} my-texts.csv"),
        (("compare it with another run", "与另一次运行比较"), f"zhixing compare {run} another-run my-texts.csv"),
    ]


def text_summary(
    result: ClassificationResult,
    *,
    scores: ClassifierScores | None = None,
    colour: bool | None = None,
    width: int = 90,
    most_classes: int = 60,
) -> str:
    """The result in short for a terminal. Colours where stdout is one, unless NO_COLOR is set."""
    colour = wants_colour(colour)
    scores = scores or result_scores(result)
    facts = _facts(result, None)
    main = MAIN_SCORE[result.problem_type]
    lines = []
    if result.name:
        lines.append(bold(visible(result.name), colour=colour))
    n_labels = f", {len(result.labels)} labels" if result.labels else ""
    lines += [f"{scores.n:,} texts{n_labels}; 95 % intervals by bootstrap over texts, seed {scores.seed}"]
    repeats = [_told(facts["data"], key) for key in ("exact_duplicates", "near_duplicates")]
    lines += ["none of them repeats a training text", ""] if repeats == [0, 0] else [""]  # else a warning says it
    for score in score_rows(scores):
        lines.append(f"  {score.label[0]:<20}{score.value:>8}  {faint(score.exact, colour=colour)}".rstrip())
    bars = score_bars(result, scores)
    if len(bars) > 1:
        order = "lower is better" if main in LOWER_IS_BETTER else "higher is better"
        lines += ["", bold(f"{SCORES[main][0]}, {order}", colour=colour)]
        most = max(bar.value for bar in bars) or 1.0
        for bar in sorted(bars, key=lambda bar: bar.value if main in LOWER_IS_BETTER else -bar.value):
            filled = "█" * max(1, round(bar.value / most * 24))
            lines.append(f"  {pad(fits(bar.label[0], 32), 32)}{shown_value(main, bar.value):>8}  {filled}")
    lines += _class_lines(scores, colour=colour, most=most_classes)
    if _has_matrix(result):
        pairs = confused(confusion_matrix(*_known(result), len(result.labels)), 5)
        if pairs:
            lines += ["", bold("taken for one another", colour=colour)]
            for row, column, count in pairs:
                said = f"{cut(result.labels[row])} → {cut(result.labels[column])}"
                lines.append(f"  {count:>6,}  {fits(said, width - 10)}")
    wrong = mistakes(result, 3)
    if wrong:
        lines += ["", bold("farthest off" if result.graded else "sure and wrong", colour=colour)]
        for m in wrong:
            size = f"±{rating(m.size)}" if result.graded else f"{m.size:.1%}"
            lines.append(f"  {size:>6}  {fits(cut(f'{m.answer}, is {m.target}'), width - 10)}")
            if m.text:
                lines.append("          " + faint(fits(cut(m.text), width - 10), colour=colour))
    notes = [english for english, _ in warnings(result, facts)]
    if notes:
        lines.append("")
    for note in notes:
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    return "\n".join(lines)


def _class_lines(scores: ClassifierScores, *, colour: bool, most: int) -> list[str]:
    """The table of classes; the weakest ones where there are more than `most`."""
    if not scores.classes:
        return []
    entries = list(scores.classes)
    left_out = len(entries) - most
    if left_out > 0:
        kept = set(sorted(range(len(entries)), key=lambda k: entries[k].f1.value)[:most])
        entries = [entry for k, entry in enumerate(entries) if k in kept]
    names = [fits(cut(entry.label), 32) for entry in entries]
    wide = max(5, *(columns(name) for name in names)) + 2
    head = f"  {pad('class', wide)}{'texts':>8}{'precision':>11}{'recall':>9}{'F1':>8}   95 % interval of F1"
    lines = ["", bold(head, colour=colour)]
    for name, row, entry in zip(names, _class_rows(ClassifierScores({}, tuple(entries), 0, 0)), entries, strict=True):
        (precision, _), (recall, _), (f1, between) = row["scores"]
        lines.append(
            f"  {pad(name, wide)}{entry.support:>8,}{precision:>11}{recall:>9}{f1:>8}   {faint(between, colour=colour)}"
        )
    if left_out > 0:
        lines.append(f"  and {left_out} classes with a higher F1")
    return [line.rstrip() for line in lines]
