"""A run, from text to a model that writes: `train`, `load`, `Run`. The command line calls these and nothing else.

A run directory is an ordinary transformers model directory that also holds how it came to be:

    config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json README.md
    recipe.toml facts.json metrics.jsonl scores.json samples.jsonl report.html MANIFEST.json data/ checkpoints/
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import re
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zhixing import __version__
from zhixing.cores import default_threads, usable_cores
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.evaluation.baselines import count_ids, unigram_bits_per_byte, xz_bits_per_byte
from zhixing.evaluation.card import write_card
from zhixing.evaluation.language import LanguageScores, language_scores
from zhixing.evaluation.report import summary, write_report
from zhixing.files import MANIFEST, atomic_dir, atomic_write, remove_tree, verify_manifest, write_manifest
from zhixing.interchange.classifier_directory import is_classifier
from zhixing.interchange.import_export import export_model, import_model
from zhixing.interchange.model_directory import read_model_directory, write_model_directory
from zhixing.interchange.seq2seq_directory import is_seq2seq
from zhixing.interchange.word_vector_files import read_word_vectors
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings
from zhixing.progress import Progress, duration, quantity, say
from zhixing.recipe import (
    PAIR_TASKS,
    DataSettings,
    ModelSettings,
    Recipe,
    check_recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
    toml_value,
)
from zhixing.tasks.generation import Completion, generate, stream
from zhixing.tasks.scoring import score_sequences
from zhixing.text.catalogue import names as dataset_names
from zhixing.text.catalogue import show_dataset
from zhixing.text.readers import Documents, read_documents
from zhixing.text.splits import split_documents
from zhixing.tokens.batches import Batch, PackedSequences
from zhixing.tokens.report import render_report, tokenizer_report
from zhixing.tokens.shards import Shards, open_shards, write_shards
from zhixing.tokens.tokenizer import Tokenizer, auto_vocab_size, train_tokenizer
from zhixing.training.loop import FitResult, fit, take_best
from zhixing.training.memory import give_back, keep_memory
from zhixing.training.objectives import next_token
from zhixing.training.optimizers import make_optimizers
from zhixing.training.parallel import Parallel, parallel_from_environment
from zhixing.training.plan import (
    compiler_state,
    d_ff,
    matmul_speed,
    memory_available,
    n_kv_heads,
    native_bf16,
    plan_run,
    step_count,
)
from zhixing.training.runlock import die_with_parent, run_lock

MOST_STEPS = 100_000  # that "auto" comes to, where epochs say how long
COMPILE_SECONDS = 40  # what torch.compile costs before the first step
DEMO = {"austen": (600, 104.0), "tang": (180, 23.0)}  # recipes: the most steps, and seconds that they may take
MACHINE_KEYS = ("threads", "bf16", "compile")  # may differ when a run goes on elsewhere


# ---- training ------------------------------------------------------------------------------------------------------


def train(source: str, *overrides: str, out: str | None = None, resume: bool = False) -> Run:
    """Train a language model and return it, at its best step.

    `source` is a recipe's name or file, or a file or folder of text; overrides are ``table.key=value``. `out` is the
    folder to make (runs/NAME if not given); with `resume` the run in it goes on from its newest good checkpoint.
    InputError says what cannot be used and how to mend it.
    """
    with started(source, out, resume, *overrides) as (run_dir, parallel):
        keep_memory()
        return _train(asked_recipe(source, list(overrides)), run_dir, resume, parallel)


@contextlib.contextmanager
def started(source: str, out: str | None, resume: bool, *overrides: str) -> Iterator[tuple[Path, Parallel]]:
    """The folder of a run that is about to be trained, locked by the first process, and the processes."""
    with parallel_from_environment() as parallel, contextlib.ExitStack() as stack:
        if parallel.world > 1:
            die_with_parent()
        _refuse_unwritable(source, out or "", *overrides)
        run_dir = _run_dir(source, out, resume)
        parallel.barrier()  # the others must have looked at the folder before the first one writes into it
        if parallel.main:
            stack.enter_context(run_lock(run_dir))
        yield run_dir, parallel


def _refuse_unwritable(*texts: str) -> None:
    """The run's files are UTF-8, and they name the text, the folder and the settings."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise InputError(
                f"{shown} is not UTF-8", why="a run writes its names down", mend="rename it, or link to it by a name"
            ) from None


def asked_recipe(source: str, overrides: list[str]) -> Recipe:
    path = Path(source)
    if source in recipe_names() or (path.suffix == ".toml" and not path.is_dir()):
        return load_recipe(source, overrides)
    if not os.path.lexists(path) and source not in dataset_names():
        raise InputError(
            f"there is nothing called {source!r}",
            mend=f"give a file or folder of text, a .toml recipe, or one of the recipes {', '.join(recipe_names())}",
        )
    text = f"[data]\nsource = {toml_value(source)}\n"
    recipe = parse_recipe(text, source, overrides)
    if recipe.task.kind == "preference":  # what suits a network from nothing would undo one that has learnt
        return load_recipe("dpo", [f"data.source={toml_value(source)}", *overrides])
    size = _text_size(path) if os.path.lexists(path) else 0
    if 0 < size < 300_000 and recipe.task.kind not in (
        *PAIR_TASKS,
        "dialogue",
    ):  # so little text needs, and can teach, only a very small model
        small = [
            "model.d_model=128",
            "model.n_layers=2",
            "model.n_heads=2",
            "model.max_len=128",
            "train.per_device_train_batch_size=8",
        ]
        recipe = parse_recipe(text, source, small + overrides)
    return recipe


def _text_size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _run_dir(source: str, out: str | None, resume: bool) -> Path:
    run_dir = (
        Path(out)
        if out
        else Path("runs") / (re.sub(r"\W+", "-", Path(source).stem or Path(source).name).strip("-") or "run")
    )
    begun = (run_dir / "recipe.toml").exists() or (run_dir / "config.json").exists()
    if resume and not begun and run_dir.exists() and _holds_files(run_dir) and not (run_dir / "data").exists():
        raise InputError(
            f"{run_dir} is not a run, so there is nothing to resume", mend="give the folder of a run with --out"
        )
    if not resume and _holds_files(run_dir):
        if out:
            raise InputError(
                f"{run_dir} is not empty",
                mend="take another --out, or add --resume to go on with the run that is there",
            )
        number = 2
        while (numbered := run_dir.with_name(f"{run_dir.name}-{number}")).exists():
            number += 1
        run_dir = numbered
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not out:
        raise InputError("several processes need one folder", mend="give it with --out")
    return run_dir


def _holds_files(folder: Path) -> bool:
    """Whether there is more than what a trainer leaves that was killed before it had prepared its data."""
    beginnings = re.compile(r"run\.lock|quarantine(\d*|-test)\.jsonl|\..*")
    return folder.exists() and any(not beginnings.fullmatch(path.name) for path in folder.iterdir())


def _train(asked: Recipe, run_dir: Path, resume: bool, parallel: Parallel) -> Run:
    torch.set_num_threads(threads_of(asked, parallel))
    began = time.perf_counter()
    if parallel.main:
        _refuse_early(asked, run_dir)
        _prepare_data(asked, run_dir)
    parallel.barrier()
    data_facts = json.loads((run_dir / "data" / "facts.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(run_dir / "data" / "tokenizer")
    shards, heldout_shards = open_shards(run_dir / "data" / "train"), open_shards(run_dir / "data" / "heldout")
    recipe = _resolve(asked, tokenizer, shards, parallel)
    recipe = as_begun(recipe, asked, run_dir) if resume else recipe
    max_len = recipe.model.max_len
    sequences = PackedSequences(shards, max_len, seed=recipe.train.seed)
    heldout = PackedSequences(heldout_shards, max_len, seed=0)
    bf16, compiled = recipe.train.bf16 is True, recipe.train.compile is True
    plan = plan_run(
        recipe,
        tokenizer.vocab_size,
        shards.n_tokens,
        processes=parallel.world,
        bf16=bf16,
        available=memory_available(),
        flops_per_second=matmul_speed("bfloat16" if bf16 else "float32"),
    )
    plan.check_fits()
    _refuse_long_prompts(recipe, tokenizer)
    if parallel.main and asked.train.compile == "auto" and not (run_dir / "recipe.toml").exists():
        compiled = compiled and plan.seconds is not None and plan.seconds[0] > 8 * COMPILE_SECONDS
    compiled = parallel.any(parallel.main and compiled)  # a timing decides: the first process's, for all
    recipe = replace(recipe, train=replace(recipe.train, compile=compiled))
    if parallel.main:
        (run_dir / MANIFEST).unlink(missing_ok=True)  # nothing is refused any more
        atomic_write(run_dir / "recipe.toml", recipe.to_toml())
        say(plan.text())
        say(precision_line(asked, bf16, compiled))

    torch.manual_seed(
        recipe.train.seed + 1 + parallel.rank
    )  # dropout's noise; initialisation has a generator of its own
    model = build_model(recipe, tokenizer, torch.Generator().manual_seed(recipe.train.seed))
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": tokenizer.fingerprint(),
        "data": data_facts["fingerprint"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world": parallel.world,
        "dtype": "bfloat16" if bf16 else "float32",
        "compiled": compiled,
        "processor": platform.processor() or platform.machine(),
    }
    optimizers = make_optimizers(model, recipe.train, torch.bfloat16 if native_bf16() else torch.float32)
    result = fit(
        model,
        next_token(recipe.train.label_smoothing_factor),
        optimizers,
        sequences,
        heldout,
        recipe.train,
        recipe.eval,
        run_dir,
        facts,
        parallel,
        resume=resume,
        bf16=bf16,
        compiled=compiled,
        bytes_per_token=heldout.n_bytes / heldout.n_targets,
    )
    result = take_best(model, result, run_dir, parallel)
    run = Run(run_dir, model.eval(), tokenizer)
    if parallel.main:
        _finish(
            run, recipe, plan.parameters, facts, data_facts, result, sequences, heldout, time.perf_counter() - began
        )
    parallel.barrier()
    return run


def _refuse_early(asked: Recipe, run_dir: Path) -> None:
    """What cannot work whatever the text is, before time goes into the text."""
    if asked.model.embeddings and not Path(asked.model.embeddings).is_file():
        raise InputError(
            "there is no file of word vectors", where=asked.model.embeddings, mend="check model.embeddings"
        )
    size = asked.tokenizer.vocab_size
    plan_run(asked, 256 if size == "auto" else max(1, size), 1, available=memory_available()).check_fits()


def _refuse_long_prompts(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """A prompt that leaves no room to write is refused before the training, not after it."""
    if recipe.model.family == "lstm":  # it forgets instead of filling up
        return
    context = recipe.model.max_len
    for number, prompt in enumerate(recipe.eval.prompts, 1):
        size = len(tokenizer.encode(prompt))
        if size >= context:
            raise InputError(
                f"prompt {number} has {size} tokens, the model's context is {context}",
                where="eval.prompts",
                why="prompt and new tokens together must fit into the context",
                mend=f"shorten it to {context - 1} tokens or fewer, or raise model.max_len",
            )


def threads_of(recipe: Recipe, parallel: Parallel) -> int:
    if recipe.train.threads != "auto":
        return recipe.train.threads
    # torchrun sets OMP_NUM_THREADS to 1 on its own, so that says nothing there
    return default_threads() if parallel.world == 1 else max(1, usable_cores() // parallel.world)


def _resolve(asked: Recipe, tokenizer: Tokenizer, shards: Shards, parallel: Parallel) -> Recipe:
    """Every "auto" as a value, so that the saved recipe says what was done."""
    m, t = asked.model, asked.train
    model = replace(m, n_kv_heads=n_kv_heads(m), d_ff=d_ff(m))
    steps = step_count(t, m.max_len, shards.n_tokens, parallel.world)
    often = max(1, math.ceil(steps / 20))
    compiler, _ = compiler_state()
    resolved = replace(
        t,
        max_steps=steps,
        eval_steps=min(often, steps) if t.eval_steps == "auto" else t.eval_steps,
        save_steps=min(often, steps) if t.save_steps == "auto" else t.save_steps,
        bf16=native_bf16() if t.bf16 == "auto" else t.bf16,
        compile=bool(compiler) and m.family == "gpt" if t.compile == "auto" else t.compile,
        threads=threads_of(asked, parallel),
    )
    recipe = replace(
        asked,
        model=model,
        train=resolved,
        tokenizer=replace(asked.tokenizer, kind=tokenizer.kind, vocab_size=tokenizer.vocab_size),
    )
    check_recipe(recipe)
    return recipe


def recipe_hash(recipe: Recipe) -> str:
    values = recipe.to_dict()
    for key in MACHINE_KEYS:
        del values["train"][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def as_begun(recipe: Recipe, asked: Recipe, run_dir: Path) -> Recipe:
    """The recipe to resume with: it must be the run's own; what "auto" chose for the machine stays as it was."""
    path = run_dir / "recipe.toml"
    if not path.exists():
        return recipe
    begun = parse_recipe(path.read_text(encoding="utf-8"), str(path))
    stored = begun.to_dict()
    for table, values in recipe.to_dict().items():
        for key, value in values.items():
            if stored[table][key] != value and key not in MACHINE_KEYS:
                raise InputError(
                    f"the run was begun with {table}.{key} = {stored[table][key]!r}, now it is {value!r}",
                    where=str(path),
                    why="a run can only go on with its own recipe",
                    mend="give the same settings, or train into another --out",
                )
    t = recipe.train
    if asked.train.compile == "auto":
        t = replace(t, compile=begun.train.compile)
    if asked.train.bf16 == "auto" and not (begun.train.bf16 and not native_bf16()):
        t = replace(t, bf16=begun.train.bf16)
    return replace(recipe, train=t)


def precision_line(asked: Recipe, bf16: bool, compiled: bool) -> str:
    if bf16:
        numbers = "bf16 with fp32 weights"
    elif asked.train.bf16 == "auto":
        numbers = "fp32 (this processor has no bf16 products of its own)"
    else:
        numbers = "fp32"
    if compiled:
        return f"numbers {numbers}; torch.compile on: the first step takes up to {COMPILE_SECONDS} s"
    return f"numbers {numbers}; torch.compile off" + (
        " (not worth its first step here)" if asked.train.compile == "auto" else ""
    )


def build_model(recipe: Recipe, tokenizer: Tokenizer, generator: torch.Generator | None = None) -> GPT | LSTM:
    """The recipe's model with fresh parameters."""
    m, vocab_size = recipe.model, tokenizer.vocab_size
    if m.family == "lstm":
        model = LSTM(LSTMSettings(vocab_size, m.d_model, m.n_layers, m.max_len, m.dropout, m.tie_embeddings), generator)
        if m.embeddings:
            words = [tokenizer.decode([i]).strip() for i in range(vocab_size)]
            matrix, found = read_word_vectors(Path(m.embeddings), words)
            if matrix.shape[1] != m.d_model:
                raise InputError(
                    f"the word vectors have {matrix.shape[1]} dimensions, model.d_model is {m.d_model}",
                    where=m.embeddings,
                    mend=f"set model.d_model={matrix.shape[1]}",
                )
            say(f"word vectors for {int(found.sum())} of {vocab_size} entries from {m.embeddings}")
            model.load_embeddings(matrix, found)
        return model
    return GPT(gpt_settings(m, vocab_size), generator)


def gpt_settings(m: ModelSettings, vocab_size: int) -> GPTSettings:
    return GPTSettings(
        vocab_size,
        m.layout,
        m.d_model,
        m.n_layers,
        m.n_heads,
        n_kv_heads(m),
        d_ff(m),
        m.max_len,
        m.dropout,
        m.tie_embeddings,
        m.rope_theta,
        m.norm_eps,
    )


# ---- data ------------------------------------------------------------------------------------------------------------


def _prepare_data(asked: Recipe, run_dir: Path) -> None:
    """RUN/data: tokenizer, train and held-out shards, facts; made once, whole or not at all."""
    target = run_dir / "data"
    made_with = {
        "data": dataclasses.asdict(asked.data),
        "tokenizer": dataclasses.asdict(asked.tokenizer),
        "seed": asked.train.seed,
    }
    if target.exists():
        try:
            verify_manifest(target)
        except (ValueError, OSError) as error:
            raise InputError(
                "the prepared text of this run is damaged",
                where=str(target),
                why=str(error),
                mend=f"remove {target}: it is made anew from the text, and the run goes on if that has not changed",
            ) from None
        made = json.loads((target / "facts.json").read_text(encoding="utf-8"))
        if (run_dir / "recipe.toml").exists() or made.get("made_with", made_with) == made_with:
            return
        remove_tree(target)  # killed before it began to train, and now begun with other settings
    if not asked.data.source:
        raise InputError("the recipe names no text", mend='set data.source = "a folder, a file or a data set"')
    say(f"reading {asked.data.source}")
    documents = read_documents(asked.data.source, asked.data, quarantine=run_dir / "quarantine.jsonl")
    split = split_documents(documents, asked.data.heldout_fraction, asked.train.seed)
    with atomic_dir(target) as folder:
        if asked.tokenizer.path:
            tokenizer = Tokenizer.load(Path(asked.tokenizer.path))
        else:
            asked_size = asked.tokenizer.vocab_size
            size = auto_vocab_size(documents.total_bytes) if asked_size == "auto" else asked_size
            say(f"training a {asked.tokenizer.kind} tokenizer")
            tokenizer = train_tokenizer(split.train, asked.tokenizer.kind, size)
        tokenizer.save(folder / "tokenizer", model_max_length=asked.model.max_len)
        shards = write_shards(split.train, tokenizer, folder / "train")
        heldout = write_shards(split.heldout, tokenizer, folder / "heldout")
        report = tokenizer_report(tokenizer, {"held-out text": split.heldout})
        facts = {
            "source": asked.data.source,
            "made_with": made_with,
            "dataset": _dataset_facts(asked.data.source),
            "fingerprint": documents.fingerprint(),
            "counts": documents.counts.to_dict(),
            "split": dataclasses.asdict(split.report),
            "tokenizer": report,
            "train": {"documents": shards.n_documents, "tokens": shards.n_tokens, "bytes": shards.n_bytes},
            "heldout": {
                "documents": heldout.n_documents,
                "tokens": heldout.n_tokens,
                "bytes": heldout.n_bytes,
                "xz_bits_per_byte": xz_bits_per_byte("".join(split.heldout).encode()),
            },
        }
        atomic_write(folder / "facts.json", json.dumps(facts, ensure_ascii=False, indent=1))
    counts = documents.counts
    if counts.bad_records or counts.skipped_files:
        say(f"left out: bad records {counts.bad_records}, files {counts.skipped_files}")
        for line in [*counts.bad_places, *(f"{name}: {reason}" for name, reason in documents.skipped[:5])]:
            say(f"  {line}")
    say(split.report.summary())
    say(
        f"{quantity(shards.n_bytes, 'B')} to train on, {quantity(heldout.n_bytes, 'B')} held out;"
        f" vocabulary of {tokenizer.vocab_size}, {shards.n_bytes / max(1, shards.n_tokens):.2f} bytes a token"
    )


def _dataset_facts(source: str) -> dict[str, Any] | None:
    """Title, licence and origin, if the source is a data set of the catalogue."""
    return dataclasses.asdict(show_dataset(source)) if source in dataset_names() else None


# ---- the end of a run --------------------------------------------------------------------------------------------


def _finish(
    run: Run,
    recipe: Recipe,
    parameters: int,
    facts: dict[str, Any],
    data_facts: dict[str, Any],
    result: FitResult,
    sequences: PackedSequences,
    heldout: PackedSequences,
    seconds: float,
) -> None:
    """Measure the best model, have it write, and leave the run directory complete."""
    run_dir = run.path
    peak = peak_memory()  # before measuring, which takes memory of its own
    scores = _scores(run, heldout, recipe.train.seed)
    counts = [count_ids(_chunks(shards), run.tokenizer.vocab_size) for shards in (sequences.shards, heldout.shards)]
    baselines = {
        "unigram": unigram_bits_per_byte(counts[0], counts[1], heldout.shards.n_bytes),
        "xz -9": data_facts["heldout"]["xz_bits_per_byte"],
    }
    atomic_write(run_dir / "scores.json", json.dumps({"model": scores.to_dict(), "baselines": baselines}, indent=1))

    samples = []
    for number, prompt in enumerate(recipe.eval.prompts or _heldout_prompts(run, heldout)):
        written = run.generate(
            prompt, max_new_tokens=recipe.eval.max_new_tokens, temperature=0.8, top_p=0.95, seed=number
        )
        samples.append({"prompt": prompt, "text": written, "step": result.best_step, "seed": number})
    atomic_write(run_dir / "samples.jsonl", "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
    tokens = result.tokens
    known = {
        "data": {k: data_facts[k] for k in ("source", "dataset", "counts", "split", "train", "heldout")},
        "tokenizer": data_facts["tokenizer"],
        "model": {"family": recipe.model.family, "layout": recipe.model.layout, "parameters": parameters},
        "run": {
            **facts,
            "zhixing": __version__,
            "python": platform.python_version(),
            "steps": result.step,
            "best_step": result.best_step,
            "ended": result.ended,
            "tokens": tokens,
            "training_seconds": round(result.seconds, 1),
            "tokens_per_second": round(tokens / max(result.seconds, 1e-9)),
            "total_seconds": round(seconds, 1),
            "peak_memory_bytes": peak,
            "seed": recipe.train.seed,
        },
    }
    atomic_write(run_dir / "facts.json", json.dumps(known, ensure_ascii=False, indent=1))
    write_model_directory(run_dir, run.model, run.tokenizer)
    write_card(run_dir)
    write_report(run_dir)
    write_manifest(run_dir, {"kind": "run", "step": result.best_step, "facts": facts})
    bits, low, high = scores.bits_per_byte.value, scores.bits_per_byte.low, scores.bits_per_byte.high
    say(
        f"held-out text: {bits:.3f} bits per byte (95 % interval {low:.3f} to {high:.3f}),"
        f" perplexity {scores.perplexity.value:.2f}"
    )
    say("  beside it: " + ", ".join(f"{name} {value:.3f}" for name, value in baselines.items()))
    say(f"done in {duration(seconds)}; look at {run_dir / 'report.html'}")
    prompt = shlex.quote(str(samples[0]["prompt"]).strip())
    say(f"next:  zhixing generate {shlex.quote(str(run_dir))} {prompt} --stream")


def _scores(run: Run, sequences: PackedSequences, seed: int) -> LanguageScores:
    with Progress("measuring", len(sequences)) as progress:
        sums = score_sequences(run.model, sequences, watch=progress.update)
    return language_scores(sums.nll, sums.targets, sums.n_bytes, sums.correct, seed=seed)


def _chunks(shards: Shards, size: int = 1 << 20) -> Iterator[NDArray[np.int64]]:
    return (shards.read(start, min(size, shards.n_tokens - start)) for start in range(0, shards.n_tokens, size))


def _heldout_prompts(run: Run, heldout: PackedSequences, count: int = 3) -> list[str]:
    """Beginnings of held-out documents: the first dozen tokens each, fewer in a very small context; or ""."""
    shards, context = heldout.shards, run._max_len()
    step = max(1, shards.n_documents // count)
    size = min(12, max(1, context // 2))
    beginnings = (run.tokenizer.decode(shards.document(i)[:size].tolist()) for i in range(0, shards.n_documents, step))
    texts = (text.strip("\ufffd") for text in beginnings)
    good = (text for text in texts if text.strip() and len(run.tokenizer.encode(text)) < context)
    return list(itertools.islice(good, count)) or [""]


def peak_memory() -> int:
    """Most bytes this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- using a run -------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A model with its tokenizer, and the folder they came from."""

    path: Path
    model: nn.Module
    tokenizer: Tokenizer

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 200,
        min_new_tokens: int = 0,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> Any:
        """What comes after the prompt: a str for a str, a list for a list. temperature 0 takes the likeliest token.

        For several samples a prompt, log-probabilities and the reason why it ended, see `complete`.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        answers = self.complete(
            prompts,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
            num_beams=num_beams,
            length_penalty=length_penalty,
        )
        texts = [completions[0].text for completions in answers]
        return texts[0] if isinstance(prompt, str) else texts

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 200,
        min_new_tokens: int = 0,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        n: int = 1,
        seed: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        logprobs: int | None = None,
    ) -> list[list[Completion]]:
        """n completions of each prompt: text, ids, finish_reason ("stop", "length"), if asked log-probabilities."""
        settings = DecodingSettings(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            n=n,
            seed=seed,
            num_beams=num_beams,
            length_penalty=length_penalty,
            logprobs=logprobs,
        )
        return generate(self.decoder, self.tokenizer, list(prompts), settings)

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The continuation in pieces, as it comes; a character is never broken."""
        settings = DecodingSettings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
        )
        return stream(self.decoder, self.tokenizer, prompt, settings)

    def evaluate(self, data: str | None = None) -> LanguageScores:
        """Loss, perplexity, bits per byte and next-token accuracy on a text, or on the run's held-out part."""
        if data is None:
            folder = self.path / "data" / "heldout"
            if not folder.exists():
                raise InputError(
                    "this run has no held-out text of its own",
                    where=str(self.path),
                    mend="name a file or folder of text",
                )
            return _scores(self, PackedSequences(open_shards(folder), self._max_len(), seed=0), seed=0)
        import tempfile

        documents = read_documents(data, self._data_settings())
        with tempfile.TemporaryDirectory() as folder_name:
            shards = write_shards(documents, self.tokenizer, Path(folder_name) / "shards")
            return _scores(self, PackedSequences(shards, self._max_len(), seed=0), seed=0)

    def show(self) -> str:
        """What the run is and how it went, for a terminal."""
        return summary(self.path)

    @cached_property
    def decoder(self) -> Any:
        """The model in its fastest form for writing."""
        model: Any = self.model
        decoder = model.for_decoding()
        give_back()
        return decoder

    def _data_settings(self) -> DataSettings:
        """Other text is read as the run's own was: from the same column, with the same normal form."""
        path = self.path / "recipe.toml"
        if not path.exists():
            return DataSettings()
        own = load_recipe(str(path)).data
        return DataSettings(text_column=own.text_column, normalize=own.normalize)

    def _max_len(self) -> int:
        settings: Any = self.model.settings
        return int(settings.max_len)


def resolve_batches(recipe: Recipe, batches: int) -> Recipe:
    """Every "auto" of [train] as a value; an epoch has so many batches, of as many texts as their lengths allow."""
    t = recipe.train
    wanted = math.ceil(t.num_train_epochs * batches / t.gradient_accumulation_steps)
    steps: int = min(MOST_STEPS, max(20, wanted)) if t.max_steps == "auto" else t.max_steps
    often = max(1, math.ceil(steps / 20))
    return replace(
        recipe,
        train=replace(
            t,
            max_steps=steps,
            warmup_steps=min(t.warmup_steps, steps // 5),  # else a small set would be over before it is warm
            eval_steps=often if t.eval_steps == "auto" else t.eval_steps,
            save_steps=often if t.save_steps == "auto" else t.save_steps,
            bf16=native_bf16() if t.bf16 == "auto" else t.bf16,
            compile=False,
            threads=torch.get_num_threads(),
        ),
    )


def finished_folder(path: str | Path) -> Path:
    """The folder of a run. InputError where there is none, or where its training has not come to its end."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"there is no run {str(path)!r}", mend="give the folder that `zhixing train` printed")
    begun = (folder / "recipe.toml").exists() or (folder / "checkpoints").exists()
    if begun and not (folder / "config.json").exists():
        mend = f"go on with it: zhixing train ... --out {folder} --resume"
        raise InputError("this run is not finished", where=str(folder), mend=mend)
    return folder


def load(path: str | Path) -> Run:
    """A trained run, or any transformers folder in a layout we know (gpt2, llama, qwen3)."""
    folder = finished_folder(path)
    if is_classifier(folder):
        mend = f"zhixing classify {folder} TEXT"
        raise InputError("this run is a classifier, it writes no text", where=str(folder), mend=mend)
    if is_seq2seq(folder):
        mend = f"zhixing translate {folder} TEXT, or zhixing summarize"
        raise InputError(
            "this run writes a text from another, it does not go on with one", where=str(folder), mend=mend
        )
    torch.set_num_threads(default_threads())
    model, tokenizer, _ = read_model_directory(folder)
    return Run(folder, model.eval(), tokenizer)


def export_run(run: Run, out: str, max_shard_size: str | None = None) -> None:
    """Write the model for transformers and check that it says the same there, before the folder appears."""
    export_model(run.path, Path(out), max_shard_size=_bytes(max_shard_size) if max_shard_size else None)


def import_run(source: str, out: str) -> Run:
    """Read a transformers folder (gpt2, llama, qwen3) into a run directory of ours."""
    import_model(Path(source), Path(out))
    return load(out)


def _bytes(size: str) -> int:
    """100MB, 2GB or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGkmg]?)i?[bB]?\s*", size)
    if not match:
        raise InputError(f"{size!r} is not a size", mend="write for example 100MB or 2GB")
    return int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2].lower()])


def train_tokenizer_command(source: str, out: str, kind: Any = "bpe", vocab_size: int | None = None) -> Tokenizer:
    """Train a tokenizer on a text and save it."""
    if kind not in ("bpe", "char", "word"):
        raise InputError(f"there is no tokenizer of kind {kind!r}", mend="the kinds are bpe, char and word")
    target = Path(out)
    if (target / "tokenizer.json").exists():
        raise InputError(
            f"{out} holds a tokenizer already",
            why="a model that was trained with it could not be used any more",
            mend="give another folder",
        )
    documents = read_documents(source, Recipe().data)
    size = auto_vocab_size(documents.total_bytes) if vocab_size is None else vocab_size
    tokenizer = train_tokenizer(documents, kind, size)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(target)
    return tokenizer


def tokenizer_report_command(path: str, texts: Sequence[str]) -> str:
    """What a tokenizer makes of texts (files, folders or data sets), each a row."""
    tokenizer = Tokenizer.load(Path(path))
    documents: dict[str, Documents] = {name: read_documents(name, Recipe().data) for name in texts}
    return render_report(tokenizer_report(tokenizer, documents))


# ---- the demonstration -------------------------------------------------------------------------------------------


def demo_settings(name: str, a_step: float) -> tuple[str, ...]:
    """A recipe of the demo where a step takes `a_step` seconds: as many steps as its time allows, a third at least."""
    most, seconds = DEMO[name]
    steps = min(most, max(most // 3, round(seconds / a_step)))
    return f"train.max_steps={steps}", f"train.eval_steps={math.ceil(steps / 3)}"


def step_seconds(recipe: Recipe) -> float:
    """Seconds of a training step of the recipe's GPT on tokens drawn by chance; the first, which compiles, not counted.

    The recipe names its vocabulary's size.
    """
    vocab_size = recipe.tokenizer.vocab_size
    assert isinstance(vocab_size, int)
    generator = torch.Generator().manual_seed(0)
    model = GPT(gpt_settings(recipe.model, vocab_size), generator).train()
    dtype = torch.bfloat16 if native_bf16() else torch.float32
    optimizers, objective = make_optimizers(model, recipe.train, dtype), next_token()
    shape = (recipe.train.per_device_train_batch_size, recipe.model.max_len + 1)
    ids = torch.randint(vocab_size, shape, generator=generator)
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):
            loss, count = objective(model, Batch(ids[:, :-1], ids[:, 1:]))
        torch.autograd.backward(loss / count)
        optimizers.step()
        optimizers.zero_grad()
        taken.append(time.perf_counter() - began)
    return sorted(taken[1:])[3]


def demo(out: str = "runs") -> None:
    """Train on the shipped English novels and Chinese poems, measure, and write: a few minutes on two cores."""
    began = time.perf_counter()
    runs = []
    torch.set_num_threads(default_threads())
    keep_memory()
    say("timing a step")
    a_step = step_seconds(load_recipe("austen"))
    for name in DEMO:
        run_dir = Path(out) / f"demo-{name}"
        number = 1
        while run_dir.exists():
            number += 1
            run_dir = Path(out) / f"demo-{name}-{number}"
        say(f"\n== {name} ==")
        runs.append(train(name, *demo_settings(name, a_step), out=str(run_dir)))
    print()
    for run in runs:
        scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))
        rows = {"this model": scores["model"]["bits_per_byte"], **scores["baselines"]}
        print(f"{run.path}: held-out bits per byte")
        for label, value in rows.items():
            print(f"  {label:<12} {value:6.3f}  {'█' * round(value * 8)}")
        for line in (run.path / "samples.jsonl").read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            print(f"\n  {sample['prompt']}│{sample['text']}")
        print()
    print(f"done in {duration(time.perf_counter() - began)}. Look at:")
    for run in runs:
        print(f"  {(run.path / 'report.html').resolve()}")
    print("Next:")
    for run, prompt in zip(runs, ("It is a truth", "春"), strict=True):
        print(f"  .venv/bin/zhixing generate {run.path} {json.dumps(prompt, ensure_ascii=False)} --stream")
    print("  .venv/bin/zhixing train YOUR_FOLDER --out runs/mine")
