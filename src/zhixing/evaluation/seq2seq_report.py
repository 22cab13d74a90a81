"""The report of a run that translates or summarizes: one HTML file with what a person needs to trust it.

The main score (BLEU, or ROUGE-L) beside answers that need no learning, every other score with its interval and its
signature, what speaks against the run in words, the loss, and what it wrote: the best, the middle and the worst of the
test pairs by their own score. A translator of several directions has all of this for each, and a table of them first.
No example is chosen by hand, and equal scores stand in the order of the file, so the same records give the same page.
In the frame of every report (page.py).

Read from RUN: scores.json, examples.jsonl (a pair a line: source, reference, output, group, direction), facts.json,
metrics.jsonl and recipe.toml. What is missing is left out.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zhixing.evaluation.classification_report import cut
from zhixing.evaluation.labels import Words
from zhixing.evaluation.page import render_page
from zhixing.evaluation.records import RunRecords, number, read_records, visible
from zhixing.evaluation.report import Bar, Row, fact_tables, loss_charts, loss_words, small_charts
from zhixing.evaluation.rouge import rouge_l, rouge_words
from zhixing.evaluation.translation import is_untranslated, repeats_itself
from zhixing.files import atomic_write
from zhixing.progress import Progress, duration, quantity

Task = Literal["translation", "summarization"]

TEXT_SHOWN, GROUP_SHOWN = 600, 60  # characters of a side of an example, and of the name of its group
EXAMPLES_SHOWN = 10  # of each kind
FEW_PAIRS = 100
FEW_GROUPS = 10  # with fewer, sentences that hang together decide the score
CHANCE = 0.01  # a share that is no more than this above another says nothing, where no interval tells
FAR_FROM_ONE = 0.1  # of the logarithm of the ratio of lengths: shorter than 0.90 or longer than 1.11 times

MAIN_SCORE: dict[Task, str] = {"translation": "bleu", "summarization": "rougeL"}
BRIEF: dict[Task, tuple[str, ...]] = {"translation": ("chrf", "ter"), "summarization": ("rouge1", "rouge2")}
SCORES: dict[str, Words] = {
    "bleu": ("BLEU", "BLEU"),
    "chrf": ("chrF", "chrF"),
    "ter": ("TER (lower is better)", "TER（越低越好）"),
    "rouge1": ("ROUGE-1", "ROUGE-1"),
    "rouge1_precision": ("ROUGE-1 precision", "ROUGE-1 精确率"),
    "rouge1_recall": ("ROUGE-1 recall", "ROUGE-1 召回率"),
    "rouge2": ("ROUGE-2", "ROUGE-2"),
    "rouge2_precision": ("ROUGE-2 precision", "ROUGE-2 精确率"),
    "rouge2_recall": ("ROUGE-2 recall", "ROUGE-2 召回率"),
    "rougeL": ("ROUGE-L", "ROUGE-L"),
    "rougeL_precision": ("ROUGE-L precision", "ROUGE-L 精确率"),
    "rougeL_recall": ("ROUGE-L recall", "ROUGE-L 召回率"),
    "length_ratio": ("length, of the references'", "与参考答案长度之比"),
    "untranslated": ("left as the source is", "照抄原文"),
    "repeated": ("repeat themselves", "自我重复"),
    "repeated_references": ("references that repeat themselves", "自我重复的参考答案"),
}
PERCENT = frozenset(("bleu", "chrf", "ter"))  # from 0 to 100
SHARES = frozenset(("untranslated", "repeated", "repeated_references"))  # shown as shares of 100
BASELINES: dict[str, Words] = {
    "copy": ("the source, copied", "照抄原文"),
    "translation memory": ("translation of the nearest training text", "最相近训练文本的译文"),
    "lead sentence": ("the first sentence", "首句"),
    "TextRank": ("TextRank's sentence", "TextRank 选句"),
    "nearest text's": ("summary of the nearest training text", "最相近训练文本的摘要"),
}
LANGUAGES: dict[str, Words] = {
    "en": ("English", "英语"), "zh": ("Chinese", "中文"), "ja": ("Japanese", "日语"), "ko": ("Korean", "韩语"),
    "de": ("German", "德语"), "fr": ("French", "法语"), "es": ("Spanish", "西班牙语"), "ru": ("Russian", "俄语"),
    "it": ("Italian", "意大利语"), "pt": ("Portuguese", "葡萄牙语"), "ar": ("Arabic", "阿拉伯语"),
}  # fmt: skip
FAMILIES = {"marian": "Marian", "t5": "T5"}
FACTS: dict[str, Words] = {  # beyond those that every report knows
    "pairs": ("pairs", "文本对"),
    "how": ("how it came about", "划分方式"),
    "task": ("task", "任务"),
    "padding": ("padding", "填充"),
    "written_tokens_per_second": ("written tokens learnt per second", "每秒学习的目标词元"),
    "sentences_per_second": ("texts written per second", "每秒写出文本"),
    "num_beams": ("beams", "束宽"),
    "read": ("pairs read", "读入"),
    "kept": ("pairs kept", "保留"),
    "empty_side": ("a side is empty", "一侧为空"),
    "identical": ("both sides are the same", "两侧相同"),
    "length_ratio": ("lengths too different", "长度相差过大"),
    "wrong_script": ("written in another script", "文字不符"),
    "repeated": ("repeated pairs", "重复文本对"),
    "bad_places": ("where", "位置"),
}


@dataclass(frozen=True)
class Example:
    """A test pair and what the model wrote for it; score is its own chrF (0 to 100) or ROUGE-L (0 to 1)."""

    row: int
    source: str
    reference: str
    output: str
    group: str
    score: float = math.nan
    direction: str = ""


@dataclass(frozen=True)
class _Run:
    """The records of a run, and what only a run of pairs leaves; of several directions those of one, such as en>zh."""

    records: RunRecords
    task: Task
    scores: dict[str, Any]
    baselines: dict[str, dict[str, Any]]
    examples: list[Example]
    notes: list[str] = field(default_factory=list)
    direction: str = ""

    @property
    def languages(self) -> tuple[Any, Any]:
        """What is read and what is written, as the recipe says."""
        source, _, target = self.direction.partition(">")
        data = [self.records.setting("data", f"{side}_language") for side in ("source", "target")]
        return (source, target) if self.direction else (data[0], data[1])

    @property
    def main(self) -> str:
        return MAIN_SCORE[self.task]

    @property
    def n(self) -> int:
        """How many pairs were scored; 0 where nothing says so."""
        return int(number(self.scores.get("n")) or len(self.examples))


def write_seq2seq_report(run_dir: Path) -> Path:
    """Write RUN/report.html from what is on disk in RUN; returns its path. What is missing is left out.

    InputError: no such folder, or no record in it.
    """
    path = Path(run_dir)
    target = path / "report.html"
    atomic_write(target, render_seq2seq_report(path))
    return target


def render_seq2seq_report(run_dir: Path) -> str:
    """The page as text; the same records give the same page."""
    from markupsafe import Markup

    run, directions = _read_run(Path(run_dir))
    records = run.records
    loss, loss_is_log = loss_charts(records, ("nats a written token", "奈特/写出词元"))
    values = {
        "name": visible(records.name),
        "about": about(run, directions),
        "parts": [part_values(part) for part in directions or [run]],
        "compared": _compared(directions),
        "loss": {name: Markup(svg) for name, svg in loss.items()},
        "loss_is_log": loss_is_log,
        "loss_words": loss_words(records),
        "example_score": "chrF" if run.task == "translation" else "ROUGE-L",
        "example_limit": "100" if run.task == "translation" else "1",
        "small": [(title, Markup(svg)) for title, svg in small_charts(records)],
        "tables": [(title, [_known(row) for row in rows]) for title, rows in fact_tables(records.facts)],
        "recipe_text": visible(records.recipe_text),
        "commands": next_commands(run),
        "notes": run.notes,
    }
    return render_page("seq2seq_report.html.jinja", values)


def part_values(run: _Run) -> dict[str, Any]:
    """What the page takes of a run, or of one of its directions."""
    bars, rows = score_bars(run), score_rows(run)
    source, target = run.languages
    return {
        "title": _title(run.direction),
        "figure": next((row for row in rows if row["key"] == run.main), None),
        "n": f"{run.n:,}" if run.n else "",
        "seed": _whole(run.scores.get("seed")),
        "bars": sorted(bars, key=lambda bar: -bar.value),
        "bar_limit": max((bar.high or bar.value for bar in bars), default=0.0) or 1.0,
        "bar_form": "%.1f" if run.main in PERCENT else "%.3f",
        "bar_caption": (f"{SCORES[run.main][0]}; higher is better.", f"{SCORES[run.main][1]}，越高越好。"),
        "score_rows": rows,
        "score_brief": [row for key in BRIEF[run.task] for row in rows if row["key"] == key],
        "baseline_names": [BASELINES.get(name, _same(name)) for name in run.baselines],
        "signatures": _signatures(run.scores),
        "warnings": warnings(run),
        "kinds": shown_examples(run),
        "source_language": _code(source),
        "target_language": _code(target),
    }


def _title(direction: str) -> Words | None:
    """English to Chinese, for en>zh."""
    source, arrow, target = direction.partition(">")
    names = _language(source), _language(target)
    if not arrow or names[0] is None or names[1] is None:
        return None if not direction else _same(direction)
    return visible(f"{names[0][0]} to {names[1][0]}"), visible(f"{names[0][1]}译{names[1][1]}")


def _compared(directions: Sequence[_Run]) -> dict[str, Any]:
    """The main score of each direction and of its baselines, as a table; scores of different languages are no race."""
    if not directions:
        return {}
    names = list(dict.fromkeys(name for run in directions for name in run.baselines))
    rows = []
    for run in directions:
        others = [shown_value(run.main, _score(run.baselines.get(name, {}), run.main)[0]) for name in names]
        value = shown_value(run.main, _score(run.scores, run.main)[0])
        rows.append({"title": _title(run.direction), "value": value, "others": others})
    shown = [BASELINES.get(name, _same(name)) for name in names]
    return {"rows": rows, "names": shown, "label": SCORES[directions[0].main]}


# ---- reading


def _read_run(path: Path) -> tuple[_Run, list[_Run]]:
    """The run, and each of its directions where it has several."""
    records = read_records(path)
    scores = _json(_text_of(path / "scores.json"))
    baselines = scores.get("baselines") if isinstance(scores, dict) else None
    known = (
        {name: row for name, row in baselines.items() if isinstance(row, dict)} if isinstance(baselines, dict) else {}
    )
    notes = [note for note in records.notes if not note.startswith("samples.jsonl")]  # a run of pairs writes none
    task = _task(records)
    examples = [replace(e, score=s) for e, s in _scored(_examples(path / "examples.jsonl", notes), task)]
    run = _Run(records, task, records.model_scores, known, examples, notes)
    given = scores.get("directions") if isinstance(scores, dict) else None
    directions = []
    for name, found in given.items() if isinstance(given, dict) else ():
        model, beside = (found.get(key) if isinstance(found, dict) else None for key in ("model", "baselines"))
        own = [example for example in examples if example.direction == name]
        rows = beside.items() if isinstance(beside, dict) else ()
        directions.append(
            replace(
                run, direction=name, examples=own, scores=model if isinstance(model, dict) else {},
                baselines={label: row for label, row in rows if isinstance(row, dict)},
            )
        )  # fmt: skip
    return run, directions


def _task(records: RunRecords) -> Task:
    """What facts.json or the recipe says; else what has been measured."""
    for said in (records.fact("model", "task"), records.setting("task", "kind")):
        if said in ("translation", "summarization"):
            return "summarization" if said == "summarization" else "translation"
    return "summarization" if "rougeL" in records.model_scores else "translation"


def _examples(path: Path, notes: list[str]) -> list[Example]:
    """The pairs of examples.jsonl, and a note on what of it could not be read."""
    if not path.is_file():
        notes.append(f"{path.name} is not there")
        return []
    rows = [_json(line) for line in _text_of(path).split("\n") if line.strip()]
    good = []
    for place, row in enumerate(rows, 1):
        sides = [row.get(key) for key in ("source", "reference", "output")] if isinstance(row, dict) else []
        texts = [side for side in sides if isinstance(side, str)]
        if len(texts) == 3:
            group, direction = (said if isinstance(said := row.get(key), str) else "" for key in ("group", "direction"))
            good.append(Example(place, texts[0], texts[1], texts[2], group, direction=direction))
    if len(good) < len(rows):
        notes.append(f"{path.name}: {len(rows) - len(good)} of {len(rows)} lines hold no pair and were left out")
    return good


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _code(value: Any) -> str:
    """A language's code if it is one: it becomes the lang of a text, by which a browser chooses its letters."""
    return value if isinstance(value, str) and re.fullmatch("[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", value) else ""


def _same(text: str) -> Words:
    return visible(text), visible(text)


# ---- scores


def about(run: _Run, directions: Sequence[_Run] = ()) -> Words:
    """One sentence: what this model is."""
    records = run.records
    family = str(records.fact("model", "family") or records.setting("model", "family") or "")
    family = FAMILIES.get(family, family)
    parameters = number(records.fact("model", "parameters"))
    train = records.fact("data", "train")
    pairs = number(train.get("pairs")) if isinstance(train, dict) else None
    seconds = number(records.fact("run", "training_seconds", "seconds"))
    english, chinese = (f"A {family} model", f"{family} 模型") if family else ("A model", "模型")
    source, target = map(_language, run.languages)
    titles = [title for part in directions if (title := _title(part.direction))]
    if run.task == "summarization":
        english, chinese = f"{english} that says a text in fewer words", f"写摘要的{_spaced(chinese)}"
    elif titles:
        english, chinese = (
            f"{english} that translates {', '.join(title[0] for title in titles)}",
            f"一个{_spaced(chinese)}，{'、'.join(title[1] for title in titles)}",
        )
    elif source and target:
        english, chinese = (
            f"{english} that translates {source[0]} into {target[0]}",
            (f"把{source[1]}译成{target[1]}的{_spaced(chinese)}"),
        )
    else:
        english, chinese = f"{english} that translates", f"翻译文本的{_spaced(chinese)}"
    if parameters:
        english, chinese = f"{english}, {quantity(parameters)} parameters", f"{chinese}，{quantity(parameters)} 参数"
    if pairs:
        english, chinese = f"{english}, trained on {pairs:,.0f} pairs", f"{chinese}，用 {pairs:,.0f} 对文本训练"
    elif seconds:
        english, chinese = f"{english}, trained", f"{chinese}，训练"
    if seconds:
        english, chinese = f"{english} in {duration(seconds)}", f"{chinese}，用时 {duration(seconds)}"
    return visible(english + "."), visible(chinese + "。")


def _spaced(chinese: str) -> str:
    """A blank before Latin letters that follow Chinese ones."""
    return f" {chinese}" if chinese[:1].isascii() else chinese


def _language(code: Any) -> Words | None:
    if not isinstance(code, str) or not code:
        return None
    return LANGUAGES.get(code.lower().replace("_", "-").split("-")[0], (code, _spaced(code) + " "))


def _score(scores: dict[str, Any], key: str) -> tuple[float | None, float | None, float | None]:
    """Value and interval of a score: each None where it is not there."""
    found = scores.get(key)
    if isinstance(found, dict):
        value, low, high = (number(found.get(name)) for name in ("value", "low", "high"))
        return (value, low, high) if low is not None and high is not None else (value, None, None)
    return number(found), None, None


def shown_value(key: str, value: float | None) -> str:
    """A score for a person: 24.3, 1.02 or 0.5 %; – for what is no number."""
    if value is None:
        return "–"
    if key in SHARES:
        return f"{value:.1%}"
    return f"{value:.2f}" if key == "length_ratio" else f"{value:.1f}" if key in PERCENT else f"{value:.3f}"


def score_rows(run: _Run) -> list[dict[str, Any]]:
    """Each score with its interval, and that of each baseline."""
    measured = [key for key in run.scores if key not in ("n", "seed") and _score(run.scores, key)[0] is not None]
    order = [key for key in SCORES if key in measured] + [key for key in measured if key not in SCORES]
    rows = []
    for key in order:
        value, low, high = _score(run.scores, key)
        others = [
            "" if key == "repeated_references" else shown_value(key, _score(row, key)[0])
            for row in run.baselines.values()
        ]
        between = "" if low is None else f"{shown_value(key, low)} – {shown_value(key, high)}"
        rows.append(
            {
                "key": key, "label": SCORES.get(key) or _same(key.replace("_", " ")), "value": shown_value(key, value),
                "between": between, "others": others,
            }
        )  # fmt: skip
    return rows


def score_bars(run: _Run) -> list[Bar]:
    """The main score of this model (first) and of what it is compared with."""
    value, low, high = _score(run.scores, run.main)
    bars = [] if value is None else [Bar(("this model", "本模型"), value, low, high, own=True)]
    for name, row in run.baselines.items():
        value, low, high = _score(row, run.main)
        if value is not None and value >= 0:
            bars.append(Bar(BASELINES.get(name, _same(name)), value, low, high, own=False))
    return bars


def _signatures(scores: dict[str, Any]) -> list[tuple[Words, str]]:
    found = scores.get("signatures")
    rows = found.items() if isinstance(found, dict) else []
    names = SCORES | {"ter": ("TER", "TER")}
    return [(names.get(key, _same(key)), visible(text)) for key, text in rows if isinstance(text, str)]


def warnings(run: _Run) -> list[Words]:
    """What belongs beside the score, in words: whatever makes it say less than it seems to."""
    found = [*_beaten(run), *_lengths(run), *_faults(run)]
    if 0 < run.n < FEW_PAIRS:
        found.append(
            (
                f"{_count(run.n, 'test pair')} only: another sample of such pairs may well say something else.",
                f"仅有 {run.n:,} 对测试文本：换一批文本结果可能不同。",
            )
        )
    groups = {example.group for example in run.examples}
    if run.examples and "" not in groups and len(groups) < min(FEW_GROUPS, len(run.examples)):
        found.append(
            (
                f"All test pairs come from {_count(len(groups), 'group')}, and texts of one group are alike: the "
                "intervals, drawn over pairs, are too narrow for texts from elsewhere.",
                f"测试文本仅来自 {len(groups)} 组，同组文本彼此相似：按文本对抽样的区间对其他来源的文本偏窄。",
            )
        )
    return found


def _beaten(run: _Run) -> list[Words]:
    """Baselines that are better, or that lie within the model's interval."""
    own, low, _ = _score(run.scores, run.main)
    name, found = SCORES[run.main][0], list[Words]()
    for bar in score_bars(run):
        if bar.own or own is None:
            continue
        said = shown_value(run.main, bar.value), shown_value(run.main, own)
        if bar.value >= own:
            found.append(
                (
                    f"A baseline is as good or better: “{bar.label[0]}” has {name} {said[0]}, this model {said[1]}.",
                    f"基线不逊于本模型：“{bar.label[1]}”的 {name} 为 {said[0]}，本模型为 {said[1]}。",
                )
            )
        elif low is not None and bar.value >= low:
            found.append(
                (
                    f"Not surely better than “{bar.label[0]}”: its {name} {said[0]} lies within this model's interval.",
                    f"未必优于“{bar.label[1]}”：其 {name} {said[0]} 落在本模型的区间内。",
                )
            )
    return found


def _lengths(run: _Run) -> list[Words]:
    ratio, low, high = _score(run.scores, "length_ratio")
    if ratio is None and run.examples:  # ROUGE comes without it
        said, meant = (
            sum(len(rouge_words(text)) for text in texts)
            for texts in ((e.output for e in run.examples), (e.reference for e in run.examples))
        )
        ratio = said / meant if meant else None
    if ratio is None or ratio <= 0 or abs(math.log(ratio)) <= FAR_FROM_ONE:
        return []
    if low is not None and high is not None and low <= 1 <= high:
        return []
    english, chinese = (
        ("longer than the references: something is said twice or made up", "偏长：可能重复或编造")
        if ratio > 1
        else ("shorter than the references: something is left out", "偏短：可能有遗漏")
    )
    return [
        (
            f"The outputs are {english}. Their length is {ratio:.2f} times the references'.",
            f"输出{chinese}。长度为参考答案的 {ratio:.2f} 倍。",
        )
    ]


def _faults(run: _Run) -> list[Words]:
    """Outputs that repeat themselves or are the source, where references do so surely less."""
    language = str(run.languages[1] or run.scores.get("language") or "")

    def share(hits: Iterable[bool]) -> float:
        return sum(hits) / len(run.examples) if run.examples else 0.0

    wanted = number(run.scores.get("repeated_references"))
    if wanted is None:
        wanted = share(repeats_itself(e.reference, language) for e in run.examples)
    repeated, untranslated = (_score(run.scores, key) for key in ("repeated", "untranslated"))
    if repeated[0] is None and run.examples:  # ROUGE comes without it
        repeated = share(repeats_itself(e.output, language) for e in run.examples), None, None
    found = []
    for (value, low, _), reference, english, chinese in (
        (repeated, wanted, "of the outputs repeat themselves", "的输出自我重复"),
        (
            untranslated,
            share(is_untranslated(e.reference, e.source) for e in run.examples),
            "of the outputs are the source unchanged",
            "的输出照抄原文",
        ),
    ):
        if value is not None and (value - CHANCE if low is None else low) > reference:
            found.append(
                (
                    f"{value:.1%} {english}; of the references {reference:.1%}.",
                    f"{value:.1%} {chinese}，参考答案中为 {reference:.1%}。",
                )
            )
    return found


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


# ---- examples


def text_scores(examples: Sequence[Example], task: Task) -> list[float]:
    """How good each output is by itself: chrF by sacreBLEU (0 to 100), of a summary the F1 of ROUGE-L (0 to 1)."""
    each: Callable[[str, str], float]
    if task == "translation":
        from sacrebleu.metrics.chrf import CHRF

        metric = CHRF()

        def each(output: str, reference: str) -> float:
            return float(metric.sentence_score(output, [reference]).score)
    else:

        def each(output: str, reference: str) -> float:
            return rouge_l(output, reference).f1

    scores = []
    with Progress("scoring each example", total=len(examples), unit="texts") as progress:
        for count, example in enumerate(examples, 1):
            scores.append(each(example.output, example.reference))
            progress.update(count)
    return scores


def _scored(examples: list[Example], task: Task) -> list[tuple[Example, float]]:
    return list(zip(examples, text_scores(examples, task), strict=True)) if examples else []


def best_median_worst(
    examples: Sequence[Example], most: int = EXAMPLES_SHOWN
) -> tuple[list[Example], list[Example], list[Example]]:
    """The best (best first), those in the middle (better first) and the worst (worst first), at most `most` of each.

    No pair is in two of them; equal scores stand in the order of the file. With fewer than three pairs all are best.
    """
    order = sorted(examples, key=lambda example: (-example.score, example.row))
    if len(order) < 3:
        return order[:most], [], []
    k = min(most, len(order) // 3)
    middle = (len(order) - k) // 2
    worst = sorted(order[-k:], key=lambda example: (example.score, example.row))
    return order[:k], order[middle : middle + k], worst


def shown_examples(run: _Run) -> list[tuple[Words, list[dict[str, str]]]]:
    """The three kinds with their titles, as the page takes them."""
    titles: tuple[Words, ...] = (("The best", "最好的"), ("In the middle", "居中的"), ("The worst", "最差的"))
    kinds = zip(titles, best_median_worst(run.examples), strict=True)
    form = ".1f" if run.task == "translation" else ".3f"
    return [(title, [_shown_example(example, form) for example in kind]) for title, kind in kinds if kind]


def _shown_example(example: Example, form: str) -> dict[str, str]:
    sides = {key: cut(getattr(example, key), TEXT_SHOWN) for key in ("source", "reference", "output")}
    return {
        "score": f"{example.score:{form}}",
        "row": f"{example.row:,}",
        "group": cut(example.group, GROUP_SHOWN),
        **sides,
    }


# ---- facts and commands


def _known(row: Row) -> Row:
    """A fact under the name it has here."""
    label = FACTS.get(row.key, row.label)
    share = number(_json(row.exact)) if row.key == "padding" and row.exact else None
    return replace(row, label=label, value=row.value if share is None else f"{share:.1%}")


def next_commands(run: _Run) -> list[tuple[Words, str]]:
    """What to do with the run, as commands that can be pasted."""
    path = shlex.quote(visible(str(run.records.path)))
    text, pairs = shlex.quote(_first_words(run.examples) or "Open the file."), "my-pairs.tsv"
    direction = run.examples[0].direction if run.examples else ""
    if run.task == "translation":
        to = f" --to {shlex.quote(visible(direction.partition('>')[2]))}" if direction else ""
        pairs = shlex.quote(visible(f"{direction} {pairs}")) if direction else pairs
        commands = [
            (("translate a text", "翻译"), f"zhixing translate {path} {text}{to}"),
            (("see other translations", "查看其他译法"), f"zhixing translate {path} {text}{to} --n-best 4"),
        ]
    else:
        commands = [(("summarize a text", "写摘要"), f"zhixing summarize {path} my-text.txt")]
    commands.append((("measure it on other pairs", "在其他文本对上评测"), f"zhixing evaluate {path} {pairs}"))
    if run.records.recipe_text:
        again = shlex.quote(visible(str(run.records.path / "recipe.toml")))
        commands.append((("train it again", "重新训练"), f"zhixing train {again} --out another-run"))
    return commands


def _first_words(examples: Sequence[Example]) -> str:
    """The beginning of a source for the command line; one that looks like an option would be taken for one."""
    for example in examples:
        words = " ".join(visible(example.source[:300]).split()[:8])[:60]
        if words and not words.startswith("-"):
            return words
    return ""
