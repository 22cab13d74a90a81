"""The model card: README.md of a run directory, as Hugging Face's hub reads it (Mitchell et al. 2019).

Written from the run's records alone, so that it says what was done and no more. What the model wrote stands inside
fences, everything else that came from outside is escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zhixing.evaluation.labels import LABELS
from zhixing.evaluation.records import RunRecords, number, read_records, visible
from zhixing.evaluation.report import about, fact_tables, score_bars, score_table, shown_samples
from zhixing.files import atomic_write

HUB_LICENCES = {"pddl-1.0": "pddl", "odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "gfdl-1.3": "gfdl"} | {
    name: name
    for name in (
        "mit", "apache-2.0", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
        "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    )
}  # fmt: skip


def write_card(run_dir: Path | str) -> Path:
    """Write RUN/README.md from the records in RUN; returns its path. InputError: no such folder, or no record in it."""
    records = read_records(run_dir)
    target = records.path / "README.md"
    atomic_write(target, render_card(records))
    return target


def render_card(records: RunRecords) -> str:
    """The card as Markdown with its YAML front matter; the same records give the same card."""
    parts = [
        _front_matter(records),
        f"# {escaped(records.name)}",
        escaped(about(records)[0]) + " It was trained from scratch with zhixing (知行).",
        _data(records),
        _scores(records),
        _samples(records),
        _use(records),
        _limits(records),
        _personal_data(records),
        _run(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(records: RunRecords) -> str:
    """The hub's fields. A JSON value is a YAML value, so each line is written as JSON."""
    dataset = records.fact("data", "dataset")
    languages = dataset.get("languages", dataset.get("language")) if isinstance(dataset, dict) else None
    languages = [languages] if isinstance(languages, str) else languages
    family = _word(records.fact("model", "family") or records.setting("model", "family"))
    layout = _word(records.fact("model", "layout") or records.setting("model", "layout")) if family == "gpt" else ""
    fields: dict[str, Any] = {}
    if isinstance(languages, list) and languages:
        fields["language"] = [visible(str(language)) for language in languages]
    licence = _licence(records)
    if licence:
        known = HUB_LICENCES.get(licence.lower())
        fields["license"] = known or "other"
        if known is None:
            fields["license_name"] = "that-of-the-training-text"
    fields["library_name"] = "transformers" if family == "gpt" else "zhixing"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = [tag for tag in ("zhixing", "trained-from-scratch", family, layout) if tag]
    source = records.fact("data", "source")
    values = {"bits_per_byte": "bits per byte", "perplexity": "perplexity", "accuracy": "next-token accuracy"}
    metrics = [
        {"type": key, "name": name, "value": round(value, 4)}
        for key, name in values.items()
        if (value := number(records.model_scores.get(key))) is not None
    ]
    if metrics:
        where = {"type": "text", "name": f"held-out part of {visible(str(source)) if source else 'the training text'}"}
        result = {"task": {"type": "text-generation"}, "dataset": where, "metrics": metrics}
        fields["model-index"] = [{"name": visible(records.name), "results": [result]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _licence(records: RunRecords) -> str:
    dataset = records.fact("data", "dataset")
    found = dataset.get("licence", dataset.get("license")) if isinstance(dataset, dict) else None
    return visible(found) if isinstance(found, str) else ""


def _data(records: RunRecords) -> str:
    rows = next((rows for title, rows in fact_tables({"data": records.facts.get("data")}) if title[0] == "Data"), [])
    licence = _licence(records)
    said = f"Licence of the text: {escaped(licence)}." if licence else "The licence of the text is not recorded."
    kept = [row for row in rows if row.group[0] != f"{LABELS['counts'][0]} · {LABELS['personal_data'][0]}"]
    return "\n\n".join(["## Data", said, markdown_table([(row.full_label, row.value) for row in kept])]).strip()


def _scores(records: RunRecords) -> str:
    rows = score_table(records)
    if not rows:
        return "## Scores\n\nThe model has not been scored."
    n, n_bytes = (number(records.model_scores.get(key)) for key in ("n", "n_bytes"))
    size = f" of {n:,.0f} passages" if n else ""
    size += f" ({n_bytes:,.0f} bytes)" if n_bytes else ""
    lines = [
        "## Scores",
        f"On the held-out part of its text{size}, which it has not seen; 95 % intervals by bootstrap over passages.",
        markdown_table([(row.label[0], row.value, row.exact) for row in rows], ("", "score", "95 % interval")),
    ]
    bars = score_bars(records)
    if len(bars) > 1:
        lines.append("Bits per byte beside what needs no learning (lower is better, raw text has 8):")
        lines.append(
            markdown_table([(bar.label[0], f"{bar.value:.3f}") for bar in sorted(bars, key=lambda bar: bar.value)])
        )
    return "\n\n".join(lines)


def _samples(records: RunRecords) -> str:
    shown = shown_samples(records.samples)[0][:3]
    if not shown:
        return ""
    texts = [_fenced(f"{visible(s.prompt)}│{visible(s.text)}") for s in shown]
    return "\n\n".join(["## What it writes", "The prompt ends at the bar; no sample was chosen.", *texts])


def _use(records: RunRecords) -> str:
    prompt = next((visible(s.prompt.strip().splitlines()[0][:40]) for s in records.samples if s.prompt.strip()), "Once")
    name, said = (json.dumps(text, ensure_ascii=False) for text in (visible(records.name), prompt))
    lines = [
        "## How to use",
        _fenced(f"zhixing generate {shlex.quote(visible(records.name))} {shlex.quote(prompt)} --stream", "sh"),
        _fenced(f"import zhixing\n\nrun = zhixing.load({name})\nprint(run.generate({said}))", "python"),
    ]
    if (records.fact("model", "family") or records.setting("model", "family")) == "gpt":
        lines += ["With transformers:", _fenced(_TRANSFORMERS.format(folder=name, prompt=said), "python")]
    return "\n\n".join(lines)


_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModelForCausalLM.from_pretrained({folder})
ids = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100, do_sample=True)[0]))"""


def _limits(records: RunRecords) -> str:
    max_len = number(records.setting("model", "max_len"))
    lines = [
        "It continues text; it has not been taught to follow instructions, to answer, or to refuse.",
        "What it writes sounds like its training text and need not be true.",
        "It knows its training text only. The scores are of the same source and say nothing of other text.",
        "It may repeat passages of its training text word for word, and what is one-sided in that text.",
    ]
    if max_len and records.setting("model", "family") != "lstm":
        lines.insert(3, f"It looks back over {max_len:,.0f} tokens at most.")
    return "\n".join(["## Limits", "", *(f"* {line}" for line in lines)])


def _personal_data(records: RunRecords) -> str:
    setting = records.setting("data", "personal_data")
    counts = records.fact("data", "counts")
    found = counts.get("personal_data") if isinstance(counts, dict) else None
    rows = (
        [(str(kind), f"{n:,.0f}") for kind, n in found.items() if number(n) is not None]
        if isinstance(found, dict)
        else []
    )
    if setting == "keep" or (setting is None and not rows):
        return "## Personal data\n\nThe text was not searched for personal data."
    done = {"mask": "What was found was masked before training.", "report": "What was found was counted and left in."}
    searched = "The text was searched for mail addresses, phone numbers, IP addresses, card numbers and keys."
    said = f"{searched} {done.get(str(setting), '')}".strip()
    return "\n\n".join(["## Personal data", said, markdown_table(rows) if rows else "Nothing was found."])


def _run(records: RunRecords) -> str:
    keys = ("zhixing", "torch", "python", "processor", "threads", "world", "dtype", "compiled", "steps", "best_step",
            "tokens", "training_seconds", "peak_memory_bytes", "seed")  # fmt: skip
    run = records.facts.get("run")
    tables = fact_tables({"run": {key: run[key] for key in keys if key in run}}) if isinstance(run, dict) else []
    rows = [(row.full_label, row.value) for _, found in tables for row in found]
    more = "Curves, samples and all facts: `report.html`. The recipe that makes this run again: `recipe.toml`."
    return "\n\n".join(["## Training", *([markdown_table(rows)] if rows else []), more])


def markdown_table(rows: Sequence[tuple[str, ...]], heading: tuple[str, ...] | None = None) -> str:
    """Rows of cells, each escaped; empty where there are none."""
    if not rows:
        return ""
    heading = heading or ("",) * len(rows[0])
    lines = [heading, ("---",) * len(heading)]
    cells = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(cells + ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows])


def escaped(text: str) -> str:
    """Text that Markdown takes as it is: on one line, with every mark of Markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&!])", r"\\\1", " ".join(visible(text).split()))


def _fenced(text: str, language: str = "text") -> str:
    """Text between fences longer than any run of backticks in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[a-z0-9-]{1,32}", value) else ""
