"""The report of a run: one HTML file with all there is to know, and the same in short for a terminal.

The page (page.py) asks no other host for anything and holds no script. Whatever the model wrote is escaped text.
Language and scale are switched by CSS alone.
"""

from __future__ import annotations

import re
import shlex
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhixing.evaluation.curves import Frame, Point, Series, line_chart, smooth, sparkline
from zhixing.evaluation.labels import LABELS, TABLES, Words
from zhixing.evaluation.page import render_page
from zhixing.evaluation.records import RunRecords, Sample, number, read_records, visible
from zhixing.evaluation.terminal import wants_colour
from zhixing.files import atomic_write
from zhixing.progress import duration, quantity

SAMPLES_SHOWN = 6
SAMPLE_LINES = 6  # of each sample, on a terminal

DATASET_KEYS = frozenset(
    ("name", "title", "licence", "license", "language", "languages", "tier", "package", "version", "parts", "url")
)

SCORE_ROWS: tuple[tuple[str, Words, str], ...] = (
    ("bits_per_byte", ("bits per byte", "每字节比特数"), ".3f"),
    ("loss", ("loss (nats a token)", "损失（奈特/词元）"), ".3f"),
    ("perplexity", ("perplexity", "困惑度"), ".2f"),
    ("accuracy", ("next token right", "下一词元正确率"), ".1%"),
)


@dataclass(frozen=True)
class Bar:
    """A row of the comparison with baselines."""

    label: Words
    value: float
    low: float | None
    high: float | None
    own: bool  # this model, not a baseline


@dataclass(frozen=True)
class Row:
    """A fact: label, value as shown, the exact value where the shown one is rounded, and what it belongs to."""

    label: Words
    value: str
    exact: str = ""
    key: str = ""
    group: Words = ("", "")

    @property
    def full_label(self) -> str:
        """Group and label in English."""
        return f"{self.group[0]} · {self.label[0]}" if self.group[0] else self.label[0]


def write_report(run_dir: Path | str) -> Path:
    """Write RUN/report.html from what is on disk in RUN; returns its path. What is missing is left out, with a note.

    InputError: no such folder, or no record in it.
    """
    records = read_records(run_dir)
    target = records.path / "report.html"
    atomic_write(target, render_report(records))
    return target


def render_report(records: RunRecords) -> str:
    """The page as text; the same records give the same page."""
    from markupsafe import Markup

    bars = score_bars(records)
    loss, loss_is_log = loss_charts(records)
    shown, rest = shown_samples(records.samples)
    values = {
        "name": visible(records.name),
        "about": about(records),
        "score": bars[0] if bars and bars[0].own else None,
        "bars": sorted(bars, key=lambda bar: bar.value),
        "bar_limit": max((bar.high or bar.value for bar in bars), default=0.0) or 1.0,
        "score_rows": score_table(records),
        "score_brief": [row for row in score_table(records) if row.key in ("perplexity", "accuracy")],
        "score_n": number(records.model_scores.get("n")),
        "score_n_bytes": number(records.model_scores.get("n_bytes")),
        "loss": {name: Markup(svg) for name, svg in loss.items()},
        "loss_is_log": loss_is_log,
        "loss_words": loss_words(records),
        "small": [(title, Markup(svg)) for title, svg in small_charts(records)],
        "samples": shown,
        "more_samples": rest,
        "tables": fact_tables(records.facts),
        "recipe_text": visible(records.recipe_text),
        "commands": next_commands(records),
        "notes": records.notes,
    }
    return render_page("report.html.jinja", values)


def about(records: RunRecords) -> Words:
    """One sentence: what this model is."""
    family = records.fact("model", "family") or records.setting("model", "family")
    layout = records.fact("model", "layout") or records.setting("model", "layout")
    parameters = number(records.fact("model", "parameters"))
    train = records.fact("data", "train")
    n_bytes = number(train.get("bytes")) if isinstance(train, dict) else None
    seconds = number(records.fact("run", "training_seconds", "seconds"))
    kind = {"gpt": "GPT", "lstm": "LSTM"}.get(str(family), str(family or ""))
    if family == "gpt" and isinstance(layout, str):
        kind += f" ({layout})"
    english, chinese = "A language model", "语言模型"
    if kind:
        english, chinese = (
            f"A {kind} language model" if kind[0] != "L" else f"An {kind} language model",
            f"{kind} 语言模型",
        )
    if parameters:
        english, chinese = f"{english} of {quantity(parameters)} parameters", f"{quantity(parameters)} 参数的{chinese}"
    parts = []
    if n_bytes:
        parts.append((f"on {quantity(n_bytes, 'B')} of text", f"用 {quantity(n_bytes, 'B')} 文本训练"))
    if seconds:
        parts.append((f"in {duration(seconds)}", f"用时 {duration(seconds)}"))
    if parts:
        english += ", trained " + " ".join(part for part, _ in parts)
        chinese += "，" + "，".join(part for _, part in parts)
    return visible(english + "."), visible(chinese + "。")


def score_bars(records: RunRecords) -> list[Bar]:
    """Bits per byte of this model (first) and of the baselines that have one."""
    bars = []
    own = number(records.model_scores.get("bits_per_byte"))
    if own is not None and own >= 0:
        low, high = (number(records.model_scores.get(key)) for key in ("low", "high"))
        bars.append(Bar(("this model", "本模型"), own, low, high, own=True))
    names = {
        "unigram": ("unigram (token frequencies)", "一元模型（词频）"),
        "xz -9": ("xz -9 (a compressor)", "xz -9（压缩程序）"),
    }
    for name, value in records.baselines.items():
        if value >= 0:
            bars.append(Bar(names.get(name, (visible(name), visible(name))), value, None, None, own=False))
    return bars


def score_table(records: RunRecords) -> list[Row]:
    """Each score with its interval."""
    rows = []
    intervals = records.model_scores.get("intervals")
    for key, label, form in SCORE_ROWS:
        value = number(records.model_scores.get(key))
        if value is None:
            continue
        pair = intervals.get(key) if isinstance(intervals, dict) else None
        if pair is None and key == "bits_per_byte":
            pair = [records.model_scores.get("low"), records.model_scores.get("high")]
        low, high = (number(end) for end in pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
        between = f"{low:{form}} – {high:{form}}" if low is not None and high is not None else ""
        rows.append(Row(label, f"{value:{form}}", between, key))
    return rows


def loss_charts(records: RunRecords, unit: Words = ("nats a token", "奈特/词元")) -> tuple[dict[str, str], bool]:
    """The loss over steps, wide and narrow, linear and logarithmic; and whether the logarithmic one says more.

    A run that is watched over two powers of ten falls mostly in its first hundredth, which a linear axis hides.
    """
    training, heldout = records.series("loss"), records.series("eval_loss")
    series = []
    if len(training) >= 20:
        series.append(Series("", "light", training, light=True))
        series.append(Series("training", "training", smooth(training), name_zh="训练"))
    elif training:
        series.append(Series("training", "training", training, name_zh="训练"))
    if heldout:
        series.append(Series("held-out", "heldout", heldout, dots=True, name_zh="留出"))
    charts = {}
    for size, frame in (("wide", Frame()), ("narrow", Frame(width=360, height=270))):
        for scale in ("linear", "log"):
            svg = line_chart(
                series, label=("Loss over training steps", "损失曲线"), y_unit=unit,
                log_x=scale == "log", frame=frame, css=f"{size} {scale}",
            )  # fmt: skip
            if svg:
                charts[f"{size}_{scale}"] = svg
    steps = [x for x, _ in training or heldout if x > 0]
    return charts, bool(steps) and max(steps) >= 100 * min(steps)


def loss_words(records: RunRecords) -> Words | None:
    """What the curves say, in a sentence: where the held-out loss was lowest, and whether it rose after that."""
    heldout, training = records.series("eval_loss"), records.series("loss")
    if not heldout:
        return None
    best_step, best = min(heldout, key=lambda point: point[1])
    last_step, last = heldout[-1]
    english, chinese = (
        f"Held-out loss is lowest at step {best_step:,.0f}: {best:.3f}.",
        f"留出损失在第 {best_step:,.0f} 步最低：{best:.3f}。",
    )
    if best_step < last_step and last > best * 1.01:
        return f"{english} It rose to {last:.3f} by the end: the model began to learn its text by heart.", (
            f"{chinese}之后升至 {last:.3f}：模型开始死记训练文本。"
        )
    if training and len(heldout) > 2 and heldout[-1][1] < heldout[-2][1] * 0.998:
        return (
            f"{english} It was still falling at the end: longer training would help.",
            f"{chinese}结束时仍在下降：延长训练会更好。",
        )
    return english, chinese


def small_charts(records: RunRecords, counted: Words = ("tokens/s", "词元/秒")) -> list[tuple[Words, str]]:
    """Learning rate, speed (in what the loss is counted in) and gradient norm, and of preferences how far they are
    learnt, one small chart each."""
    frame = Frame(width=330, height=180, left=46, top=26)
    wanted = (
        ("learning_rate", ("Learning rate", "学习率"), ("", ""), True),
        ("tokens_per_second", ("Speed", "速度"), counted, True),
        ("grad_norm", ("Gradient norm", "梯度范数"), ("", ""), False),
        ("eval_rewards/accuracies", ("Reward accuracy", "奖励准确率"), ("", ""), False),
        ("eval_rewards/margins", ("Reward margin", "奖励差"), ("", ""), False),
        ("eval_logps/chosen", ("Log p, preferred", "偏好回复对数概率"), ("nats", "奈特"), False),
        ("eval_logps/rejected", ("Log p, others", "其他回复对数概率"), ("nats", "奈特"), False),
    )
    charts = []
    for key, title, unit, from_zero in wanted:
        points: list[Point] = records.series(key)
        line = Series(title[0], "small", points, name_zh=title[1])
        svg = line_chart([line], label=title, y_unit=unit, from_zero=from_zero, frame=frame)
        if svg and len(points) > 1:
            charts.append((title, svg))
    return charts


def shown_samples(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of the last step first in view, and the others, newest first."""
    if not samples:
        return [], []
    last = max(sample.step or 0 for sample in samples)
    newest = [sample for sample in samples if (sample.step or 0) == last]
    older = sorted((s for s in samples if (s.step or 0) != last), key=lambda s: -(s.step or 0))
    return newest[:SAMPLES_SHOWN], newest[SAMPLES_SHOWN:] + older


def fact_tables(facts: dict[str, Any]) -> list[tuple[Words, list[Row]]]:
    """The tables of facts.json as rows, known ones first; single values at the top level go into the last one."""
    order = [name for name in TABLES if name in facts] + [name for name in facts if name not in TABLES]
    tables, single = [], []
    for name in order:
        rows = _rows(facts[name], ()) if isinstance(facts[name], (dict, list)) else []
        if rows:
            tables.append((TABLES.get(name) or _label(name), rows))
        elif not isinstance(facts[name], (dict, list)):
            single += _rows({name: facts[name]}, ())
    return tables + ([(("More", "其他"), single)] if single else [])


def _rows(value: Any, above: tuple[str, ...]) -> list[Row]:
    """A row for each value inside tables and lists of tables; `above` are the keys that lead here."""
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        value = {name or str(k): rest for k, (name, rest) in enumerate(map(_named, value), 1)}
    if isinstance(value, dict) and len(above) < 6:
        if above[-1:] == ("dataset",):
            value = {key: inner for key, inner in value.items() if key in DATASET_KEYS}
        # what stands by itself goes before what has parts, so that each group is in one piece
        inner = sorted(value.items(), key=lambda item: isinstance(item[1], dict))
        return [row for key, part in inner for row in _rows(part, (*above, str(key)))]
    if value is None or value == [] or value == "":
        return []
    group = [_label(key) for key in above[:-1]]
    shown, exact = _shown(above[-1], value)
    joined = (" · ".join(en for en, _ in group), " · ".join(zh for _, zh in group))
    return [Row(_label(above[-1]), shown, exact, above[-1], joined)]


def _named(value: Any) -> tuple[str, Any]:
    """A table of a list: what it is called, and what else it holds."""
    if isinstance(value, dict):
        for key in ("name", "text", "title"):
            if isinstance(value.get(key), str):
                return value[key], {k: v for k, v in value.items() if k != key}
    return "", value


def _label(key: str) -> Words:
    plain = visible(key.replace("_", " "))
    return LABELS.get(key, (plain, plain))


def _shown(key: str, value: Any) -> tuple[str, str]:
    """A value for a person, and the exact one where that is rounded. The key's ending gives the unit."""
    if isinstance(value, bool):
        return ("yes" if value else "no"), ""
    if isinstance(value, (int, float)):
        if number(value) is None:
            return "not a number", ""
        if key == "bytes" or key.endswith("_bytes"):
            return quantity(value, "B"), f"{value:,} bytes"
        if key.endswith("seconds"):
            return duration(value), f"{value:,} s"
        if isinstance(value, int):
            return (str(value) if key in ("seed", "world", "threads") else f"{value:,}"), ""
        return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"), repr(value)
    if isinstance(value, list):
        return visible(", ".join(str(v) for v in value)), ""
    text = visible(str(value))
    if re.fullmatch("[0-9a-f]{24,}", text):  # a hash
        return f"{text[:12]}…", text
    return text, ""


def brief_facts(records: RunRecords) -> list[tuple[str, str]]:
    """A line each on data, tokenizer, model and run, of the facts that are there."""

    def known(table: str, *wanted: tuple[str, str]) -> str:
        """The facts of a table, each put into its words; a key a.b is b inside a."""
        facts = records.facts.get(table)
        found = _rows(facts, ()) if isinstance(facts, dict) else []
        rows = {f"{row.group[0]}.{row.key}" if row.group[0] else row.key: row.value for row in found}
        return ", ".join(words.format(rows[key]) for key, words in wanted if key in rows)

    lines = {
        "data": known(
            "data", ("source", "{}"), (f"{LABELS['train'][0]}.bytes", "{} to train on"),
            (f"{LABELS['heldout'][0]}.bytes", "{} held out"), (f"{LABELS['dataset'][0]}.licence", "licence: {}"),
        ),
        "tokenizer": known("tokenizer", ("kind", "{}"), ("vocab_size", "{} tokens in the vocabulary")),
        "model": known("model", ("family", "{}"), ("layout", "{} layout"), ("parameters", "{} parameters")),
        "run": known(
            "run", ("steps", "{} steps"), ("tokens", "{} tokens"), ("training_seconds", "{}"),
            ("tokens_per_second", "{} tokens a second"), ("peak_memory_bytes", "{} of memory"), ("dtype", "{}"),
            ("threads", "threads: {}"), ("torch", "torch {}"),
        ),
    }  # fmt: skip
    return [(label, text) for label, text in lines.items() if text]


def _wrap(text: str, width: int) -> list[str]:
    """The lines of a text, broken at `width` columns; Chinese characters take two."""
    lines = []
    for line in text.splitlines():
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in line)
        lines += textwrap.wrap(line, width // 2 if 2 * wide > len(line) else width)
    return lines


def next_commands(records: RunRecords) -> list[tuple[Words, str]]:
    """What to do with the run, as commands that can be pasted."""
    run = shlex.quote(str(records.path))
    prompt = records.samples[0].prompt.strip().splitlines()[:1] if records.samples else []
    words = " ".join((prompt[0] if prompt else "").split()[:6])
    first = visible(words)[:40] or "Once"
    commands = [
        (("have it write", "续写"), f"zhixing generate {run} {shlex.quote(first)} --stream"),
        (("measure it on a text", "在文本上评测"), f"zhixing evaluate {run} my-text.txt"),
    ]
    if records.recipe_text:
        again = shlex.quote(str(records.path / "recipe.toml"))
        commands.append((("train it again", "重新训练"), f"zhixing train {again} --out another-run"))
    commands.append((("give it to transformers", "导出"), f"zhixing export {run} --to transformers out"))
    return commands


def summary(run_dir: Path | str, *, colour: bool | None = None, width: int = 78) -> str:
    """The run in short, for `zhixing show RUN`. Colours on a terminal, unless NO_COLOR is set."""
    colour = wants_colour(colour)
    records = read_records(run_dir)

    def bold(text: str) -> str:
        return f"\033[1m{text}\033[0m" if colour else text

    def faint(text: str) -> str:
        return f"\033[2m{text}\033[0m" if colour else text

    lines = [bold(visible(records.name)), textwrap.fill(about(records)[0], width)]
    bars = sorted(score_bars(records), key=lambda bar: bar.value)
    if bars:
        lines += ["", bold("held-out bits per byte") + faint("  (lower is better; raw text has 8)")]
        most = max(bar.value for bar in bars) or 1.0
        for bar in bars:
            filled = "█" * max(1, round(bar.value / most * 24))
            between = f"  {bar.low:.3f} – {bar.high:.3f}" if bar.low is not None and bar.high is not None else ""
            lines.append(f"  {bar.label[0]:<28}{bar.value:6.3f}  {filled}{faint(between)}")
        more = [f"{row.label[0]} {row.value}" for row in score_table(records) if row.key != "bits_per_byte"]
        if more:
            lines.append("  " + ", ".join(more))
    for key, label in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        values = [value for _, value in records.series(key)]
        if values:
            lines += [""] if key == "loss" else []
            lines.append(f"{label}  {values[0]:6.3f} {sparkline(values)} {values[-1]:.3f}")
    for sample in shown_samples(records.samples)[0][:3]:
        written = _wrap(visible(f"{sample.prompt}│{sample.text}"), width - 2)
        lines += [
            "",
            *(f"  {line}" for line in written[:SAMPLE_LINES]),
            *(["  …"] if len(written) > SAMPLE_LINES else []),
        ]
    facts = brief_facts(records)
    if facts:
        lines.append("")
        for label, text in facts:
            wrapped = textwrap.wrap(text, width - 11) or [""]
            lines += [f"{label:<11}{wrapped[0]}", *(" " * 11 + line for line in wrapped[1:])]
    if records.notes:
        lines += ["", *(faint(f"note: {note}") for note in records.notes)]
    lines += ["", bold("next")]
    report = records.path / "report.html"
    if report.is_file():
        lines.append(f"  look at {report}")
    lines += [f"  {command}" for _, command in next_commands(records)]
    return "\n".join(lines)
