"""Marian, T5 and the LSTM with attention side by side: the same pairs, the same seconds, BLEU on held-out sentences.

    python benchmarks/seq2seq_families.py [--seconds 600] [--rounds 1] [table.key=value ...] [family:table.key=value ...]

prints a line a run and a table at the end. English to Chinese of LibreOffice's help (groups of the test part are not in
training), one byte-level BPE, the sizes of RECIPE below; `lstm:model.n_layers=2` changes one family only. Each family
trains in a process of its own, one after another, in another order each round; the next round has another seed.

The schedule goes by time: the learning rate falls over the last part of the seconds, whatever the steps are by then.
Training alone counts as seconds; tokens are the real ones of both sides. BLEU is sacreBLEU's with tokenizer zh, of what
`Translator.write` writes by beam 4 for a fixed sample; sentences per second are of that. Nothing chooses a best step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from seq2seq_train import batches_of, load, peak_mb, texts_of

FAMILIES = ("marian", "t5", "lstm")
RECIPE = """
[data]
source = "libreoffice-help-en-zh"
source_language = "en"
target_language = "zh"
heldout_fraction = 0.05
[task]
kind = "translation"
[tokenizer]
vocab_size = 4096
[model]
family = "marian"
d_model = 192
n_layers = 3
n_heads = 4
max_len = 160
dropout = 0.1
[train]
max_tokens_per_batch = 2048
optim = "adamw"
learning_rate = 0.001
warmup_steps = 200
decay_fraction = 0.5
label_smoothing_factor = 0.1
"""
OWN = {"marian": [], "t5": ["train.learning_rate=0.002"], "lstm": ["train.learning_rate=0.002"]}  # each family's
MOMENTS = 10_000  # that the schedule divides the seconds into


def prepare(overrides: list[str], folder: Path, most: int, heldout: int) -> None:
    """Leave the tokenizer, the rows of ids and the sample of held-out pairs in `folder`."""
    import random

    from zhixing.recipe import parse_recipe

    recipe = parse_recipe(RECIPE, "seq2seq_families.py", overrides)
    texts = texts_of(recipe, most)
    texts.tokenizer.save(folder)
    sample = random.Random(0).sample(list(texts.heldout), min(heldout, len(texts.heldout)))
    rows = {
        "sources": texts.sources,
        "targets": texts.targets,
        "heldout": [[pair.source, pair.target] for pair in sample],
    }
    (folder / "rows.json").write_text(json.dumps(rows))
    print(f"{len(texts.sources):,} pairs to learn from, {len(sample):,} held out", file=sys.stderr)


def run(family: str, folder: Path, seconds: float, seed: int, overrides: list[str]) -> None:
    """Train a family for so many seconds, translate the sample: one line."""
    from dataclasses import replace

    import torch
    from torch import nn

    from zhixing.evaluation.translation import score_translations
    from zhixing.interchange.seq2seq_directory import StoredSeq2Seq
    from zhixing.recipe import EvalSettings, parse_recipe
    from zhixing.seq2seq import Translator, build_seq2seq
    from zhixing.tokens.batches import IGNORED
    from zhixing.tokens.tokenizer import Tokenizer
    from zhixing.training.loop import heldout_loss
    from zhixing.training.memory import keep_memory
    from zhixing.training.objectives import target_given_source
    from zhixing.training.optimizers import make_optimizers
    from zhixing.training.parallel import Parallel
    from zhixing.training.plan import native_bf16
    from zhixing.training.schedules import trapezoid, warmup

    keep_memory()
    recipe = parse_recipe(RECIPE, "seq2seq_families.py", [*overrides, f'model.family="{family}"'])
    t = replace(recipe.train, seed=seed)
    recipe = replace(recipe, train=t)
    bf16 = native_bf16() if t.bf16 == "auto" else t.bf16
    tokenizer = Tokenizer.load(folder)
    rows = json.loads((folder / "rows.json").read_text())
    pairs = batches_of(rows["sources"], rows["targets"], tokenizer, recipe)
    torch.manual_seed(seed + 1)
    model = build_seq2seq(recipe, tokenizer, torch.Generator().manual_seed(seed))
    objective = target_given_source(t.label_smoothing_factor)
    optimizers = make_optimizers(model, t, torch.bfloat16 if native_bf16() else torch.float32)
    step = tokens = 0
    model.train()
    with load() as training:
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            moment = int(passed / seconds * MOMENTS)
            optimizers.set_factor(
                warmup(step, t.warmup_steps) * trapezoid(moment, MOMENTS, 0, t.decay_fraction, t.min_lr_ratio)
            )
            batch = pairs.batch(step, 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss, count = objective(model, batch)
            torch.autograd.backward(loss / count)
            nn.utils.clip_grad_norm_(model.parameters(), t.max_grad_norm)
            optimizers.step()
            optimizers.zero_grad()
            tokens += int(batch.source_lengths.sum()) + int((batch.targets != IGNORED).sum())
            step += 1
        took = time.perf_counter() - began
    peak = peak_mb()

    sources, references = ([pair[side] for pair in rows["heldout"]] for side in (0, 1))
    longest = recipe.model.max_len
    sides = [[tokenizer.with_ends(ids)[:longest] for ids in tokenizer.encode_batch(s)] for s in (sources, references)]
    heldout = batches_of(sides[0], sides[1], tokenizer, recipe)
    whole = EvalSettings(max_sequences=len(heldout), per_device_eval_batch_size=1)
    nats = heldout_loss(model, objective, heldout, whole, Parallel(), bf16)
    translator = Translator(folder, StoredSeq2Seq(model.eval(), tokenizer, "translation", "en", "zh"))
    translator.write(sources[:2])  # loads what is loaded once
    with load() as decoding:
        began = time.perf_counter()
        outputs = translator.write(sources)
        writing = time.perf_counter() - began
    scores = score_translations(outputs, references, language="zh", with_ter=False, seed=0)
    print(
        json.dumps(
            {
                "bench": "seq2seq-families",
                "family": family,
                "bleu": round(scores.bleu.value, 2),
                "bleu_low": scores.bleu.low,
                "bleu_high": scores.bleu.high,
                "chrf": round(scores.chrf.value, 2),
                "heldout_nats": round(nats, 4),
                "params": sum(p.numel() for p in model.parameters()),
                "seconds": round(took, 1),
                "steps": step,
                "epochs": round(step / len(pairs), 2),
                "tokens_per_second": round(tokens / took, 1),
                "sentences_per_second": round(len(sources) / writing, 2),
                "num_beams": translator.num_beams,
                "precision": "bf16" if bf16 else "fp32",
                "seed": seed,
                "foreign_load": [training.foreign, decoding.foreign],
                "training_peak_rss_mb": peak,
                "peak_rss_mb": peak_mb(),
                "example": [sources[0], references[0], outputs[0]],
            },
            ensure_ascii=False,
        )
    )


COLUMNS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "heldout_nats": "nats",
    "tokens_per_second": "tokens/s",
    "sentences_per_second": "sentences/s",
    "epochs": "epochs",
    "params": "parameters",
    "training_peak_rss_mb": "MB",
}


def table(lines: list[dict[str, Any]], families: list[str]) -> str:
    """A row a family: the mean over rounds, and BLEU's least and greatest behind it where there are several."""
    rows = [f"{'':<8}" + "".join(f"{title:>13}" for title in COLUMNS.values())]
    for family in families:
        own = [line for line in lines if line["family"] == family]
        means = [statistics.mean(line[key] for line in own) for key in COLUMNS]
        row = f"{family:<8}" + "".join(f"{mean:>13,.{0 if mean >= 1000 else 2}f}" for mean in means)
        bleu = [line["bleu"] for line in own]
        rows.append(row + (f"   BLEU {min(bleu)} to {max(bleu)}" if len(own) > 1 else ""))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--heldout", type=int, default=200, help="how many held-out sentences are translated")
    parser.add_argument("--pairs", type=int, default=0, help="only the first so many pairs of the data set")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options, overrides = parser.parse_known_args()
    special = [o for o in overrides if o.split(":")[0] in FAMILIES]
    shared = [o for o in overrides if o not in special]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(shared, Path(folder), options.pairs, options.heldout)
        for number in range(options.rounds):
            turn = number % len(options.families)
            for family in options.families[turn:] + options.families[:turn]:
                own = [o.removeprefix(f"{family}:") for o in special if o.startswith(f"{family}:")]
                settings = (family, folder, str(options.seconds), str(number), *OWN[family], *shared, *own)
                lines.append(peers.ours("seq2seq_families.py", "run", *settings))
                print(json.dumps(lines[-1], ensure_ascii=False), flush=True)
    print(table(lines, options.families))


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), sys.argv[6:])
    else:
        main()
