"""Translating sentences per second beside HF `generate` and CTranslate2: the same weights, fp32, beam 4, batches of 16.

    python benchmarks/seq2seq_decode.py [--rounds 2] [--run RUN | --train-steps N] [table.key=value ...]

prints the pairs, A B A B, and the ratio of each; then each side's line. The model is Marian's layout, 6 + 6 layers of
512, 8 heads, vocabulary 8192 (other sizes by the keys of a recipe); what is read are English sentences held out from
LibreOffice's help, batches as they come, the same ones on all sides, ids in and ids out.

    --run RUN          a trained run: its own test sentences, texts end where it ends them
    --train-steps N    train so many steps first (--out FOLDER keeps the model: --run FOLDER measures it again)
    neither            random weights, which never write the end: every text is --new-tokens long (max = min) on all sides

HF: MarianMTModel from our folder, early_stopping, length_penalty and max_new_tokens as ours. CTranslate2's converter
takes pad's row away and starts from a zero embedding, as OPUS-MT's files want it; our models learn an embedding to start
from, so its loader for BART, of the same layers, is given the Marian model, and ids stand for tokens. Its search ends a
little otherwise than HF's, so some of its texts differ. Tokens are those of the best text with its end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from seq2seq_train import RECIPE, learn, load, peak_mb, texts_of

BEAMS, BATCH = 4, 16
REPEATS = int(os.environ.get("REPS", "3"))

Batches = list[list[list[int]]]


def prepare(options: argparse.Namespace, overrides: list[str], folder: Path) -> None:
    """Leave a model and task.json, what is read and how it is written, in `folder`."""
    import random

    import torch

    from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, read_seq2seq, write_seq2seq
    from zhixing.recipe import parse_recipe
    from zhixing.seq2seq import build_seq2seq, load_seq2seq

    recipe = parse_recipe(RECIPE, "seq2seq_decode.py", overrides)
    if options.run:
        run = load_seq2seq(options.run)
        stored, length_penalty = run.stored, run.length_penalty
        own = (Path(options.run) / "data" / "test.jsonl").exists()
        sentences = [pair.source for pair in (run.read(None) if own else texts_of(recipe, options.pairs).heldout)]
    else:
        texts, length_penalty = texts_of(recipe, options.pairs), 1.0
        sentences = [pair.source for pair in texts.heldout]
        model = build_seq2seq(recipe, texts.tokenizer, torch.Generator().manual_seed(recipe.train.seed))
        stored = StoredSeq2Seq(model, texts.tokenizer, "translation", "en", "zh")
    write_seq2seq(folder, stored, num_beams=BEAMS, length_penalty=length_penalty)
    if options.train_steps and not options.run:
        (folder / "rows.json").write_text(json.dumps({"sources": texts.sources, "targets": texts.targets}))
        stored, *_ = learn(folder, recipe, options.train_steps, bf16=False)
        write_seq2seq(folder, stored, num_beams=BEAMS, length_penalty=length_penalty)
    stored = read_seq2seq(folder)
    ids = [stored.tokenizer.with_ends(row) for row in stored.tokenizer.encode_batch(sentences)]
    ids = [row for row in ids if len(row) <= stored.model.longest_source]
    ids = random.Random(0).sample(ids, min(len(ids), BATCH * options.batches))
    ends = bool(options.run or options.train_steps)
    task = {
        "batches": [ids[first : first + BATCH] for first in range(0, len(ids), BATCH)],
        "most": min(options.max_new_tokens if ends else options.new_tokens, stored.model.settings.max_len - 1),
        "least": 0 if ends else options.new_tokens,
        "length_penalty": length_penalty,
        "start": stored.model.settings.start_id,
        "end": stored.tokenizer.eos_id,
        "pad": stored.tokenizer.pad_id,
        "vocab_size": stored.model.settings.vocab_size,
    }
    (folder / "task.json").write_text(json.dumps(task))


def measure(name: str, batches: Batches, write: Callable[[list[list[int]]], list[list[int]]], most: int) -> None:
    """Write all batches a few times after one that warms up; one line. `write` gives ids without start and end."""
    write(batches[0])
    seconds = []
    with load() as watched:
        for _ in range(REPEATS):
            began = time.perf_counter()
            written = [ids for batch in batches for ids in write(batch)]
            seconds.append(time.perf_counter() - began)
    speeds = sorted(len(written) / s for s in seconds)
    tokens = sum(min(len(ids) + 1, most) for ids in written)  # with its end, where there was room for one
    print(
        json.dumps(
            {
                "bench": "seq2seq-decode",
                "side": name,
                "unit": "sentences/s",
                "median": round(speeds[len(speeds) // 2], 2),
                "min": round(speeds[0], 2),
                "max": round(speeds[-1], 2),
                "tokens_per_second": round(tokens / sorted(seconds)[len(seconds) // 2], 1),
                "sentences": len(written),
                "ended": sum(len(ids) < most for ids in written),
                "tokens_a_sentence": round(tokens / len(written), 1),
                "foreign_load": watched.foreign,
                "peak_rss_mb": peak_mb(),
                "ids": written,
            }
        )
    )


def ours(folder: Path) -> None:
    from zhixing.decoding.beam import beam_search
    from zhixing.decoding.settings import DecodingSettings
    from zhixing.interchange.seq2seq_directory import read_seq2seq

    task = json.loads((folder / "task.json").read_text())
    model = read_seq2seq(folder).model
    settings = DecodingSettings(
        max_new_tokens=task["most"],
        min_new_tokens=task["least"],
        num_beams=BEAMS,
        length_penalty=task["length_penalty"],
        early_stopping=True,
        eos_ids=(task["end"],),
    )

    def write(batch: list[list[int]]) -> list[list[int]]:
        return [best[0].ids for best in beam_search(model, batch, settings, batch_size=BATCH * BEAMS)]

    measure("ours", task["batches"], write, task["most"])


def theirs(folder: Path) -> None:
    """HF's line, by the peers' Python."""
    import torch
    from transformers import MarianMTModel

    task = json.loads((folder / "task.json").read_text())
    model: Any = MarianMTModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    end, pad = task["end"], task["pad"]

    def write(batch: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, batch))
        found = model.generate(
            input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in batch]),
            attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch]),
            num_beams=BEAMS,
            do_sample=False,
            early_stopping=True,
            length_penalty=task["length_penalty"],
            max_new_tokens=task["most"],
            min_new_tokens=task["least"] or None,
        )
        rows = [row[1:] for row in found.tolist()]  # without the start
        return [row[: row.index(end)] if end in row else row for row in rows]

    measure("HF generate", task["batches"], write, task["most"])


def convert(folder: Path) -> None:
    """Leave CTranslate2's files in folder/ctranslate2: a process of its own, so that its memory is not counted."""
    import torch
    from transformers import MarianMTModel

    loader = importlib.import_module("ctranslate2.converters.transformers").BartLoader()
    task = json.loads((folder / "task.json").read_text())
    names = [str(i) for i in range(task["vocab_size"])]
    model: Any = MarianMTModel.from_pretrained(folder, dtype=torch.float32)
    model.config.normalize_before = model.config.normalize_embedding = False
    with torch.no_grad():
        spec = loader.get_model_spec(model)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.bos_token = spec.config.decoder_start_token = names[task["start"]]
    spec.config.eos_token, spec.config.unk_token = names[task["end"]], names[task["pad"]]
    spec.validate()
    spec.optimize(quantization=None)
    (folder / "ctranslate2").mkdir(exist_ok=True)
    spec.save(str(folder / "ctranslate2"))
    print(json.dumps({"converted": str(folder)}))


def converted(folder: Path) -> None:
    """CTranslate2's line, by the peers' Python."""
    ctranslate2 = importlib.import_module("ctranslate2")
    task = json.loads((folder / "task.json").read_text())
    names = [str(i) for i in range(task["vocab_size"])]
    threads = int(os.environ["OMP_NUM_THREADS"])
    translator = ctranslate2.Translator(
        str(folder / "ctranslate2"), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
    )

    def write(batch: list[list[int]]) -> list[list[int]]:
        found = translator.translate_batch(
            [[names[i] for i in row] for row in batch],
            beam_size=BEAMS,
            length_penalty=task["length_penalty"],
            max_input_length=0,
            max_decoding_length=task["most"],
            min_decoding_length=task["least"],
        )
        return [[int(name) for name in result.hypotheses[0]] for result in found]

    measure("CTranslate2 float32", task["batches"], write, task["most"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4, help=f"how many batches of {BATCH}")
    parser.add_argument("--run", default="")
    parser.add_argument("--train-steps", type=int, default=0)
    parser.add_argument("--out", default="", help="keep the model there")
    parser.add_argument("--new-tokens", type=int, default=32, help="of every text, where nothing is trained")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of a text, where the model is trained")
    parser.add_argument("--pairs", type=int, default=0, help="only the first so many pairs of the data set")
    parser.add_argument("--peers", nargs="+", choices=["hf", "ctranslate2"], default=["hf", "ctranslate2"])
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.out or temporary)
        prepare(options, overrides, folder)
        if not (options.run or options.train_steps):
            print(f"random weights: every text is {options.new_tokens} tokens long on all sides", file=sys.stderr)
        for side in options.peers:
            if side == "ctranslate2":
                peers.last_json([peers.PYTHON, __file__, "convert", str(folder)])
            lines: list[dict[str, Any]] = []

            def peer(side: str = side, lines: list[dict[str, Any]] = lines) -> dict[str, Any]:
                lines.append(peers.last_json([peers.PYTHON, __file__, side, str(folder)]))
                return lines[-1]

            def mine(lines: list[dict[str, Any]] = lines) -> dict[str, Any]:
                result = peers.ours("seq2seq_decode.py", "ours", str(folder))
                texts = result["ids"]
                same = sum(a == b for a, b in zip(texts, lines[-1]["ids"], strict=True))
                result["equal_ids"] = f"{same} of {len(texts)} texts"
                lines.append(result)
                return result

            peers.pairs(f"translating, beam {BEAMS}, ours over {side} fp32", peer, mine, options.rounds)
            for line in lines:
                print(json.dumps({key: value for key, value in line.items() if key != "ids"}), flush=True)


SIDES = {"ours": ours, "hf": theirs, "convert": convert, "ctranslate2": converted}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        SIDES[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
