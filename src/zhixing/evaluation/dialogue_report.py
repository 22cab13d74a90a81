"""The report of a run that replies: one HTML file with what a person needs to trust it.

Hits at 1 of 10 beside TF-IDF's on the same candidates (of a run that was tuned by preferences first the share of these
that it learnt to reward), what speaks against the run in words, the loss, replies to test
statements at even distances in the file (none chosen by hand), every score with its interval and what the given replies
have. In the frame of every report (page.py).

Read from RUN: scores.json, examples.jsonl (an exchange a line), facts.json, metrics.jsonl and recipe.toml. What is
missing is left out.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from zhixing.evaluation.classification_report import cut
from zhixing.evaluation.dialogue import PREFERENCE, RULES
from zhixing.evaluation.labels import Words
from zhixing.evaluation.page import render_page
from zhixing.evaluation.records import RunRecords, number, read_records, visible
from zhixing.evaluation.report import Bar, Row, fact_tables, loss_charts, loss_words, small_charts
from zhixing.files import atomic_write
from zhixing.progress import duration, quantity

EXAMPLES_SHOWN = 12
TEXT_SHOWN = 600
BASELINES: dict[str, Words] = {
    "tfidf": ("TF-IDF of statement and reply", "语句与回复的 TF-IDF"),
    "tfidf_nearest": ("TF-IDF, reply to the nearest statement", "最近语句之回复的 TF-IDF"),
}
SCORES: dict[str, tuple[Words, str]] = {
    "hits_at_1": (("hits at 1 of 10", "十选一命中率"), ".3f"),
    "perplexity": (("perplexity of replies", "回复困惑度"), ".2f"),
    "distinct_1": (("distinct words", "不同词比例（distinct-1）"), ".3f"),
    "distinct_2": (("distinct pairs of words", "不同词对比例（distinct-2）"), ".3f"),
    "length": (("words a reply", "每条回复词数"), ".2f"),
    "repeated": (("repeat themselves", "自我重复"), ".1%"),
    "bleu": (("BLEU", "BLEU"), ".2f"),
}
FACTS: dict[str, Words] = {
    "conversations": ("conversations", "对话"),
    "replies": ("replies", "回复"),
    "how": ("how it came about", "划分方式"),
    "task": ("task", "任务"),
    "reply_tokens_per_second": ("reply tokens learnt per second", "每秒学习的回复词元"),
    "read": ("read", "读入"),
    "kept": ("kept", "保留"),
    "repeated": ("repeated", "重复"),
    "unknown_role": ("of an unknown role", "角色不明"),
    "wrong_order": ("roles out of order", "角色次序有误"),
    "empty_content": ("an empty message", "空消息"),
    "no_reply": ("no reply at the end", "末尾无回复"),
    "same_reply": ("both replies the same", "两条回复相同"),
    "preferences": ("preferences", "偏好"),
    "pairs_per_second": ("preferences learnt per second", "每秒学习的偏好"),
    "bad_records": ("lines that hold none", "无内容的行"),
    "bad_places": ("where", "位置"),
}


def write_dialogue_report(run_dir: Path) -> Path:
    """Write RUN/report.html from what is on disk in RUN; returns its path. InputError: no such folder, no record."""
    path = Path(run_dir)
    target = path / "report.html"
    atomic_write(target, render_dialogue_report(path))
    return target


def render_dialogue_report(run_dir: Path) -> str:
    """The page as text; the same records give the same page."""
    from markupsafe import Markup

    path = Path(run_dir)
    records = read_records(path)
    notes = [note for note in records.notes if not note.startswith("samples.jsonl")]  # a run of replies writes none
    scores = records.model_scores
    bars = _bars(records)
    tuned = "pairs" in scores
    unit = ("nats a preference", "奈特/偏好") if tuned else ("nats a reply token", "奈特/回复词元")
    counted = ("pairs/s", "对/秒") if tuned else ("tokens/s", "词元/秒")
    loss, loss_is_log = loss_charts(records, unit)
    rows = [row for key in SCORES if (row := _score_row(scores, key))]
    values = {
        "name": visible(records.name),
        "about": _about(records),
        "figure": _figure(scores),
        "bars": sorted(bars, key=lambda bar: -bar.value),
        "bar_limit": max((bar.high or bar.value for bar in bars), default=0.0) or 1.0,
        "bar_caption": ("hits at 1 of 10; higher is better.", "十选一命中率，越高越好。"),
        "preference_rows": [row for key in PREFERENCE if (row := _preference_row(scores, key))],
        "score_rows": rows,
        "signature": _signature(scores),
        "rule_rows": _rules(scores),
        "warnings": _warnings(scores, bars),
        "examples": _examples(path / "examples.jsonl", notes),
        "decoding": visible(str(scores.get("decoding", ""))),
        "loss": {name: Markup(svg) for name, svg in loss.items()},
        "loss_is_log": loss_is_log,
        "loss_words": loss_words(records),
        "small": [(title, Markup(svg)) for title, svg in small_charts(records, counted)],
        "tables": [(title, [_known(row) for row in rows]) for title, rows in fact_tables(records.facts)],
        "recipe_text": visible(records.recipe_text),
        "commands": _commands(records),
        "notes": notes,
    }
    return render_page("dialogue_report.html.jinja", values)


def _about(records: RunRecords) -> Words:
    """One sentence: what this model is."""
    family = str(records.fact("model", "family") or records.setting("model", "family") or "")
    english, chinese = f"A {family} model that replies", f"能对话的 {family} 模型"
    if parameters := number(records.fact("model", "parameters")):
        english, chinese = f"{english}, {quantity(parameters)} parameters", f"{chinese}，{quantity(parameters)} 参数"
    train = records.fact("data", "train")
    if isinstance(train, dict) and (count := number(train.get("conversations"))):
        english = f"{english}, trained on {count:,.0f} conversations"
        chinese = f"{chinese}，用 {count:,.0f} 段对话训练"
    pairs = records.fact("data", "preferences")
    if isinstance(pairs, dict) and (count := number(pairs.get("train"))):
        english, chinese = f"{english} with {count:,.0f} preferences", f"{chinese}（{count:,.0f} 条偏好）"
    if seconds := number(records.fact("run", "training_seconds")):
        english, chinese = f"{english} in {duration(seconds)}", f"{chinese}，用时 {duration(seconds)}"
    return visible(english + "."), visible(chinese + "。")


def _score(scores: dict[str, Any], key: str) -> tuple[float | None, float | None, float | None]:
    found = scores.get(key)
    if isinstance(found, dict):
        value, low, high = (number(found.get(name)) for name in ("value", "low", "high"))
        return (value, low, high) if low is not None and high is not None else (value, None, None)
    return number(found), None, None


def _figure(scores: dict[str, Any]) -> dict[str, Any] | None:
    """The score that stands first, large, and what it says."""
    rewarded, n = number(scores.get("pairs")) is not None, number(scores.get("pairs") or scores.get("n")) or 0
    value, low, high = _score(scores, "reward_accuracy" if rewarded else "hits_at_1")
    if value is None:
        return None
    english, chinese = (
        "How often the true reply is ranked first among ten, nine of which were said to something else; by chance 0.1.",
        "真实回复在十个候选（其余九个来自其他对话）中排第一的比例；随机为 0.1。",
    )
    if rewarded:
        english = "Of how many test preferences the preferred reply gained more on the start's log p; by chance 0.5."
        chinese = "在多少测试偏好中，偏好回复相对起始模型的对数概率增益更大；随机为 0.5。"
    if low is not None and high is not None:
        english += f" 95 % interval {low:.3f} – {high:.3f}, {n:,.0f} {'preferences' if rewarded else 'exchanges'}."
        chinese += f"95 % 区间 {low:.3f} – {high:.3f}，{n:,.0f} {'条偏好' if rewarded else '次对答'}。"
    label = PREFERENCE["reward_accuracy"] if rewarded else SCORES["hits_at_1"][0]
    return {"value": f"{value:.3f}", "label": label, "said": (english, chinese)}


def _bars(records: RunRecords) -> list[Bar]:
    """This model's hits (first), and those of what it is compared with."""
    value, low, high = _score(records.model_scores, "hits_at_1")
    if value is None:
        return []
    bars = [Bar(("this model", "本模型"), value, low, high, own=True)]
    try:
        known = json.loads((records.path / "scores.json").read_text(encoding="utf-8")).get("baselines", {})
    except (OSError, ValueError, AttributeError):
        known = {}
    for name, row in known.items() if isinstance(known, dict) else ():
        value, low, high = _score(row, "hits_at_1") if isinstance(row, dict) else (None, None, None)
        if value is not None:
            bars.append(Bar(BASELINES.get(name, (visible(name), visible(name))), value, low, high, own=False))
    return [*bars, Bar(("by chance", "随机"), 0.1, None, None, own=False)]


def _score_row(scores: dict[str, Any], key: str) -> dict[str, Any] | None:
    label, form = SCORES[key]
    value, low, high = _score(scores, key)
    if value is None:
        return None
    given = number(scores.get(f"given_{key}"))
    between = "" if low is None or high is None else f"{low:{form}} – {high:{form}}"
    return {"label": label, "value": f"{value:{form}}", "between": between,
            "given": "" if given is None else f"{given:{form}}"}  # fmt: skip


def _preference_row(scores: dict[str, Any], key: str) -> dict[str, Any] | None:
    """A score of preferences, and what the start had."""
    value, low, high = _score(scores, key)
    if value is None:
        return None
    first, _, _ = _score(scores, f"start_{key}")
    between = "" if low is None or high is None else f"{low:.3f} – {high:.3f}"
    return {"label": PREFERENCE[key], "value": f"{value:.3f}", "between": between,
            "start": "" if first is None else f"{first:.3f}"}  # fmt: skip


def _signature(scores: dict[str, Any]) -> str:
    found = scores.get("signatures")
    return visible(str(found.get("bleu", ""))) if isinstance(found, dict) else ""


def _rules(scores: dict[str, Any]) -> list[dict[str, Any]]:
    found = scores.get("hits_by_rule")
    rows = found.items() if isinstance(found, dict) else []
    return [
        {"label": RULES[name][0], "value": f"{value:.3f}", "own": name == scores.get("rule")}
        for name, value in rows
        if name in RULES and number(value) is not None
    ]


def _warnings(scores: dict[str, Any], bars: list[Bar]) -> list[Words]:
    """What belongs beside the score, in words: whatever makes it say less than it seems to."""
    found: list[Words] = []
    own = bars[0] if bars else None
    for bar in bars[1:]:
        assert own is not None
        if bar.value >= own.value:
            said = f"{bar.value:.3f}", f"{own.value:.3f}"
            found.append(
                (
                    f"A baseline is as good or better: “{bar.label[0]}” has {said[0]}, this model {said[1]}.",
                    f"基线不逊于本模型：“{bar.label[1]}”为 {said[0]}，本模型为 {said[1]}。",
                )
            )
        elif own.low is not None and bar.value >= own.low:
            found.append(
                (
                    f"Not surely better than “{bar.label[0]}”: its {bar.value:.3f} lies within this model's interval.",
                    f"未必优于“{bar.label[1]}”：其 {bar.value:.3f} 落在本模型的区间内。",
                )
            )
    fell, stood = _score(scores, "log_p_chosen")[2], _score(scores, "start_log_p_chosen")[1]
    if fell is not None and stood is not None and fell < stood:
        found.append(
            (
                "What is preferred became less probable than it was at the start, as what is not did still more: a "
                "lower learning rate, fewer steps or a higher beta stay nearer to the start.",
                "偏好回复的概率低于起始模型（其他回复降得更多）：降低学习率、减少步数或提高 beta 可更接近起始模型。",
            )
        )
    written, given = number(scores.get("distinct_2")), number(scores.get("given_distinct_2"))
    if written is not None and given is not None and written < given / 2:
        found.append(
            (
                "It says few different things: of its pairs of words less than half as many are different as of the "
                "given replies'.",
                "回复较为单调：不同词对的比例不到真实回复的一半。",
            )
        )
    n = number(scores.get("n"))
    if n is not None and n < 100:
        found.append(
            (
                f"{n:,.0f} test exchanges only: another sample of such conversations may well say something else.",
                f"仅有 {n:,.0f} 次测试对答：换一批对话结果可能不同。",
            )
        )
    return found


def _examples(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Exchanges at even distances, as the page takes them, and a note on what could not be read."""
    if not path.is_file():
        notes.append(f"{path.name} is not there")
        return []
    good, bad = [], 0
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = {key: row[key] for key in ("statement", "reference", "output")}
        except (ValueError, TypeError, KeyError, RecursionError):
            bad += 1
            continue
        if all(isinstance(text, str) for text in texts.values()):
            before = row.get("before")
            shown = {key: cut(text, TEXT_SHOWN) for key, text in texts.items()}
            good.append({**shown, "before": before if isinstance(before, int) else 0})
        else:
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} lines hold no exchange and were left out")
    step = max(1, len(good) // EXAMPLES_SHOWN)
    return good[::step][:EXAMPLES_SHOWN]


def _known(row: Row) -> Row:
    """A fact under the name it has here."""
    return replace(row, label=FACTS.get(row.key, row.label))


def _commands(records: RunRecords) -> list[tuple[Words, str]]:
    """What to do with the run, as commands that can be pasted."""
    path = shlex.quote(visible(str(records.path)))
    commands: list[tuple[Words, str]] = [
        (("talk with it", "对话"), f"zhixing chat {path}"),
        (("measure it on other conversations", "在其他对话上评测"), f"zhixing evaluate {path} my-conversations.jsonl"),
    ]
    if records.recipe_text:
        again = shlex.quote(visible(str(records.path / "recipe.toml")))
        commands.append((("train it again", "重新训练"), f"zhixing train {again} --out another-run"))
    return commands
