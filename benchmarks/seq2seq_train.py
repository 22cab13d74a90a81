"""Training, real tokens per second beside HF Seq2SeqTrainer: the same Marian, the same pairs, padding not counted.

    python benchmarks/seq2seq_train.py [--rounds 2] [--precisions fp32 bf16] [--steps 25] [table.key=value ...]

prints the pairs, A B A B, and the ratio of each. English to Chinese of LibreOffice's help, a byte-level BPE of both
sides, 6 + 6 layers of 512; other sizes by the keys of a recipe, such as model.n_layers=2 train.max_tokens_per_batch=1024.

Ours is `training.loop.fit` over `PairedTexts`: batches of about equally long pairs, as many as the budget allows. Theirs
is Seq2SeqTrainer as it comes: a fixed number of pairs in random order, padded by DataCollatorForSeq2Seq; so many pairs
that a step holds as many real tokens as ours does on average. --grouped gives it its "group_by_length" sampler.
Both start from the same weights with the same dropout, AdamW, clipping and no smoothing, each in a process of its own.
Real tokens are those of both sides with their ends; the first steps are left out.

seq2seq_decode.py and seq2seq_families.py take their pairs and their tokenizer from here.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peers

if TYPE_CHECKING:
    from zhixing.recipe import Recipe
    from zhixing.text.pairs import Pairs
    from zhixing.tokens.paired import PairBatch, PairedTexts
    from zhixing.tokens.tokenizer import Tokenizer

SKIPPED = 5  # first steps, which allocate and warm up
RECIPE = """
[data]
source = "libreoffice-help-en-zh"
source_language = "en"
target_language = "zh"
heldout_fraction = 0.05
[task]
kind = "translation"
[tokenizer]
vocab_size = 8192
[model]
family = "marian"
d_model = 512
n_layers = 6
n_heads = 8
d_ff = 2048
max_len = 160
dropout = 0.1
[train]
max_tokens_per_batch = 4096
optim = "adamw"
learning_rate = 3e-4
adam_beta2 = 0.999
warmup_steps = 50
"""


@dataclass(frozen=True)
class Texts:
    """What all sides learn from: ids with their ends, and the pairs that nothing learns from."""

    tokenizer: Tokenizer
    sources: list[list[int]]
    targets: list[list[int]]
    heldout: Pairs


def texts_of(recipe: Recipe, most: int = 0) -> Texts:
    """The recipe's pairs (the first `most`, 0: all), split as a run splits them, and a tokenizer of both sides."""
    from zhixing.seq2seq import encode_pairs, pair_settings
    from zhixing.text.pairs import read_pairs, split_pairs
    from zhixing.tokens.tokenizer import train_tokenizer

    pairs = read_pairs(recipe.data.source, pair_settings(recipe))
    if most:
        pairs = pairs.pick(range(min(most, len(pairs))))
    train, heldout, _ = split_pairs(pairs, recipe.data.heldout_fraction, recipe.train.seed)
    assert isinstance(recipe.tokenizer.vocab_size, int)
    sides = [side for pair in train for side in (pair.source, pair.target)]
    tokenizer = train_tokenizer(sides, recipe.tokenizer.kind, recipe.tokenizer.vocab_size)
    tokenizer.end_texts()
    sources, targets, _ = encode_pairs(train, tokenizer, recipe.model.max_len, cut_sources=False)
    return Texts(tokenizer, sources, targets, heldout)


def batches_of(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], tokenizer: Tokenizer, recipe: Recipe
) -> PairedTexts:
    from zhixing.tokens.paired import PairedTexts

    return PairedTexts(
        sources,
        targets,
        start_id=tokenizer.pad_id,
        pad_id=tokenizer.pad_id,
        budget=recipe.train.max_tokens_per_batch,
        seed=recipe.train.seed,
    )


def load() -> Any:
    """What other processes take while we run, as the peers' scripts measure it."""
    sys.path.insert(0, str(peers.PEERS))
    return importlib.import_module("_common").Load()


def peak_mb() -> int:
    """The most memory of this program. ru_maxrss also counts what the process that started it held before."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def prepare(recipe: Recipe, folder: Path, most: int) -> None:
    """Leave the recipe, the model's first weights, the tokenizer and the rows of ids in `folder`."""
    import torch

    from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, write_seq2seq
    from zhixing.seq2seq import build_seq2seq

    texts = texts_of(recipe, most)
    model = build_seq2seq(recipe, texts.tokenizer, torch.Generator().manual_seed(recipe.train.seed))
    write_seq2seq(folder, StoredSeq2Seq(model, texts.tokenizer, "translation", "en", "zh"))
    (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    rows = {"sources": texts.sources, "targets": texts.targets}
    batches = batches_of(texts.sources, texts.targets, texts.tokenizer, recipe)
    per_step = batches.n_tokens / len(batches)
    rows_a_step = max(1, round(per_step * len(texts.sources) / batches.n_tokens))
    (folder / "rows.json").write_text(json.dumps({**rows, "rows_a_step": rows_a_step}))
    print(
        f"{len(texts.sources):,} pairs of {batches.n_tokens / len(texts.sources):.1f} tokens; ours {per_step:,.0f} real"
        f" tokens a step, {batches.budget.padding:.1%} padding; theirs {rows_a_step} pairs a step",
        file=sys.stderr,
    )


def learn(folder: Path, recipe: Recipe, steps: int, *, bf16: bool) -> tuple[Any, list[float], list[int], list[int]]:
    """Train the model of `folder`; it, and of each step when it began, its real tokens and its places."""
    from zhixing.interchange.seq2seq_directory import read_seq2seq
    from zhixing.recipe import EvalSettings, TrainSettings
    from zhixing.tokens.batches import IGNORED
    from zhixing.training.loop import fit
    from zhixing.training.memory import keep_memory
    from zhixing.training.objectives import target_given_source
    from zhixing.training.optimizers import make_optimizers

    keep_memory()
    stored = read_seq2seq(folder)
    rows = json.loads((folder / "rows.json").read_text())
    pairs = batches_of(rows["sources"], rows["targets"], stored.tokenizer, recipe)
    began: list[float] = []
    real: list[int] = []
    places: list[int] = []

    class Watched:
        """The pairs' batches, each noted as the loop takes it at the beginning of a step."""

        def __len__(self) -> int:
            return len(pairs)

        def batch(self, first: int, count: int) -> PairBatch:
            began.append(time.perf_counter())
            batch = pairs.batch(first, count)
            real.append(int(batch.source_lengths.sum()) + int((batch.targets != IGNORED).sum()))
            places.append(batch.sources.numel() + batch.targets.numel())
            return batch

        sequential = pairs.sequential

    t = recipe.train
    settings = TrainSettings(
        max_steps=steps,
        per_device_train_batch_size=1,  # a sample is a whole batch
        optim=t.optim,
        learning_rate=t.learning_rate,
        adam_learning_rate=t.adam_learning_rate,
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        weight_decay=t.weight_decay,
        warmup_steps=t.warmup_steps,
        decay_fraction=t.decay_fraction,
        logging_steps=10,
        eval_steps=steps,
        save_steps=steps,
        seed=t.seed,
    )
    with tempfile.TemporaryDirectory() as run_dir:
        fit(
            stored.model,
            target_given_source(t.label_smoothing_factor),
            make_optimizers(stored.model, settings),
            Watched(),
            Watched(),
            settings,
            EvalSettings(max_sequences=1, per_device_eval_batch_size=1),
            Path(run_dir),
            {},
            bf16=bf16,
        )
    return stored, began, real, places


def report(marks: list[float], real: list[int], places: list[int], **more: Any) -> None:
    """One line: of the steps between SKIPPED and the last mark, tokens and seconds. marks[i]: step i begins."""
    last = len(marks) - 1
    assert last > SKIPPED, f"{last} steps leave none to measure"

    def speed(begin: int, end: int) -> float:
        return round(sum(real[begin:end]) / (marks[end] - marks[begin]), 1)

    cuts = sorted({SKIPPED + (last - SKIPPED) * i // 4 for i in range(5)})
    blocks = [speed(a, b) for a, b in itertools.pairwise(cuts)]
    print(
        json.dumps(
            {
                "bench": "seq2seq-train",
                "unit": "real tokens/s",
                "median": speed(SKIPPED, last),  # of all steps together: batches differ in length and in speed
                "min": min(blocks),
                "max": max(blocks),
                "steps": last - SKIPPED,
                "real_tokens_a_step": round(sum(real[SKIPPED:last]) / (last - SKIPPED)),
                "padding": round(1 - sum(real[SKIPPED:last]) / sum(places[SKIPPED:last]), 3),
                "seconds_a_step": round((marks[last] - marks[SKIPPED]) / (last - SKIPPED), 3),
                **more,
                "peak_rss_mb": peak_mb(),
            }
        )
    )


def run(folder: Path, precision: str, steps: int) -> None:
    """One line of ours."""
    from zhixing.recipe import parse_recipe

    recipe = parse_recipe((folder / "recipe.toml").read_text(encoding="utf-8"), "recipe.toml")
    with load() as watched:
        stored, began, real, places = learn(folder, recipe, steps, bf16=precision == "bf16")
    parameters = sum(p.numel() for p in stored.model.parameters())
    began, real, places = began[:steps], real[:steps], places[:steps]
    report(began, real, places, params=parameters, foreign_load=watched.foreign, ours=precision)


def trainer(folder: Path, precision: str, steps: int, sampling: str) -> None:
    """One line of theirs, by the peers' Python."""
    import torch
    from transformers import (  # type: ignore[attr-defined, unused-ignore]
        DataCollatorForSeq2Seq,
        MarianMTModel,
        PreTrainedTokenizerFast,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    rows = json.loads((folder / "rows.json").read_text())
    model: Any = MarianMTModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    pad: Any = DataCollatorForSeq2Seq(tokenizer, model=model)
    marks: list[float] = []
    real: list[int] = []
    places: list[int] = []

    def collate(features: list[dict[str, Any]]) -> Any:
        batch = pad(features)
        real.append(int(batch["attention_mask"].sum()) + int((batch["labels"] != -100).sum()))
        places.append(batch["input_ids"].numel() + batch["labels"].numel())
        return batch

    class Marks(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    data = [
        {"input_ids": s, "attention_mask": [1] * len(s), "labels": t}
        for s, t in zip(rows["sources"], rows["targets"], strict=True)
    ]
    with tempfile.TemporaryDirectory() as out, load() as watched:
        arguments = Seq2SeqTrainingArguments(
            output_dir=out,
            per_device_train_batch_size=rows["rows_a_step"],
            max_steps=steps,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=precision == "bf16",
            disable_tqdm=True,
            learning_rate=3e-4,
            remove_unused_columns=False,
            train_sampling_strategy=sampling,
        )
        Seq2SeqTrainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[Marks()]).train()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    report(marks, real, places, params=parameters, foreign_load=watched.foreign, peer=f"{sampling} {precision}")


def main() -> None:
    from zhixing.recipe import parse_recipe

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=int(os.environ.get("STEPS", "25")))
    parser.add_argument("--pairs", type=int, default=0, help="only the first so many pairs of the data set")
    parser.add_argument("--grouped", action="store_true", help="the peer groups pairs by length")
    options, overrides = parser.parse_known_args()
    recipe = parse_recipe(RECIPE, "seq2seq_train.py", overrides)
    sampling = "group_by_length" if options.grouped else "random"
    with tempfile.TemporaryDirectory() as folder:
        prepare(recipe, Path(folder), options.pairs)
        for precision in options.precisions:
            shared = (folder, precision, str(options.steps))
            found: list[dict[str, Any]] = []

            def noted(result: dict[str, Any], found: list[dict[str, Any]] = found) -> dict[str, Any]:
                found.append(result)
                return result

            peers.pairs(
                f"seq2seq training, {precision}, ours over HF Seq2SeqTrainer ({sampling})",
                lambda s=shared, n=noted: n(peers.last_json([peers.PYTHON, __file__, "trainer", *s, sampling])),
                lambda s=shared, n=noted: n(peers.ours("seq2seq_train.py", "run", *s)),
                options.rounds,
            )
            for result in found:
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:2] == ["trainer"]:
        trainer(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        main()
