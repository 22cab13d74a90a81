"""A text from another, from data to a model that answers: `train_seq2seq`, `load_seq2seq`, `Translator`, `Summarizer`.

A run directory is an ordinary transformers model directory (`AutoModelForSeq2SeqLM` loads it, but for an LSTM's) that
also holds how it came to be, and the pairs it is measured on:

    config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json README.md
    recipe.toml facts.json metrics.jsonl scores.json examples.jsonl report.html MANIFEST.json data/ checkpoints/

Pairs are split by their groups (a file, a package): the test part is looked at once, at the end, and a share of the
rest chooses the best step.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from zhixing import __version__
from zhixing.cores import default_threads
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.evaluation.rouge import score_summaries
from zhixing.evaluation.seq2seq_report import write_seq2seq_report
from zhixing.evaluation.text_baselines import TranslationMemory, copy, lead_sentence, text_rank
from zhixing.evaluation.translation import score_translations
from zhixing.files import MANIFEST, atomic_write, write_manifest
from zhixing.interchange.seq2seq_directory import (
    Seq2Seq,
    StoredSeq2Seq,
    Task,
    is_seq2seq,
    read_seq2seq,
    write_seq2seq,
)
from zhixing.models.lstm_translator import LSTMTranslator, LSTMTranslatorSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.t5 import T5, T5Settings
from zhixing.progress import Progress, duration, quantity, say
from zhixing.recipe import Recipe, pair_set, pair_sets, parse_recipe
from zhixing.run import (
    as_begun,
    finished_folder,
    peak_memory,
    precision_line,
    recipe_hash,
    resolve_batches,
    threads_of,
)
from zhixing.tasks.rewriting import OnTooLong, Written, fit_sources, summarize, translate, write_each
from zhixing.text.pairs import (
    SIDES,
    Pairs,
    PairSettings,
    Side,
    languages_of,
    read_directions,
    read_pairs,
    repeated_pairs,
    split_pairs,
)
from zhixing.tokens.paired import PairedTexts
from zhixing.tokens.tokenizer import Tokenizer, auto_vocab_size, train_tokenizer
from zhixing.training.checkpoint import list_steps
from zhixing.training.loop import FitResult, fit, take_best
from zhixing.training.memory import keep_memory
from zhixing.training.objectives import target_given_source
from zhixing.training.optimizers import make_optimizers
from zhixing.training.parallel import Parallel
from zhixing.training.plan import d_ff, expected_seconds, matmul_speed, native_bf16
from zhixing.training.spans import CorruptedTexts, span_counts

MOST_NEW_TOKENS = 512
LANGUAGES_SHOWN = 20
SENTINELS = 100  # of a t5, behind the tokenizer's ids: what stands for a span that is left out


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What is learnt from, what chooses the best step, and what measures."""

    train: Pairs
    validation: Pairs
    test: Pairs
    split: str  # how the test part came about


def pair_settings(recipe: Recipe) -> PairSettings:
    """How the recipe reads pairs."""
    d = recipe.data
    return PairSettings(
        source_column=d.source_column,
        target_column=d.target_column,
        source_language=d.source_language,
        target_language=d.target_language,
        max_ratio=d.max_ratio,
        on_bad_record=d.on_bad_record,
        normalize=d.normalize,
    )


def prepare(recipe: Recipe, run_dir: Path) -> Parts:
    """Read, clean and split the pairs; says what it did."""
    sets = pair_sets(recipe)
    if not recipe.data.source and not sets:
        raise InputError("the recipe names no pairs", mend='set data.source = "a file, two files A,B or a data set"')
    settings, seed, quarantine = pair_settings(recipe), recipe.train.seed, run_dir / "quarantine.jsonl"
    sides: tuple[Side, ...] = ("source",) if recipe.task.kind == "summarization" else SIDES
    if sets:
        pairs = read_directions(sets, settings, quarantine=quarantine)
    else:
        pairs = read_pairs(recipe.data.source, settings, quarantine=quarantine)
    if recipe.task.test:
        train, test = pairs, read_pairs(recipe.task.test, settings)
        repeats, near = repeated_pairs(train, test, sides)
        how = (
            f"{len(test):,} test pairs from {recipe.task.test}; {len(repeats):,} repeat a training text on one side,"
            f" {len(near):,} nearly"
        )
    else:
        train, test, report = split_pairs(pairs, recipe.data.heldout_fraction, seed, sides)
        how = report.summary()
    say(how)
    train, validation, _ = split_pairs(train, recipe.task.validation_fraction, seed + 1, sides)
    say(f"{len(train):,} pairs to learn from, {len(validation):,} choose the best step, {len(test):,} to test")
    parts = Parts(train, validation, test, how)
    for direction, counts in _directions(parts).items():
        say(f"  {direction}: {counts['train']:,} to learn from, {counts['test']:,} to test")
    return parts


def _directions(parts: Parts) -> dict[str, dict[str, int]]:
    """How many pairs of each direction each part has; nothing where there is only one direction."""
    names = ("train", "validation", "test")
    of_each = {name: getattr(parts, name).directions() for name in names}
    return {
        direction: {name: len(of_each[name].get(direction, ())) for name in names}
        for direction in {d: None for found in of_each.values() for d in found if d}
    }


def encode_pairs(
    pairs: Pairs, tokenizer: Tokenizer, max_len: int, *, cut_sources: bool
) -> tuple[list[list[int]], list[list[int]], int]:
    """Ids of both sides with their ends, for pairs of which neither side is longer than max_len; how many are not here.

    A source begins with the tag of the language that is to be written, where the pairs say it. With cut_sources it is
    cut to max_len instead: of a long text the beginning may do for a summary, where half a sentence does not for its
    translation.
    """
    readers = {language: tokenizer.for_language(language) for language in {pair.target_language for pair in pairs}}
    rooms = {language: max_len - len(reader.with_ends([])) for language, reader in readers.items()}
    languages = [pair.target_language for pair in pairs]
    room = max_len - len(tokenizer.with_ends([]))
    plain = tokenizer.for_language("")
    sources = plain.encode_batch([pair.source for pair in pairs])
    targets = plain.encode_batch([pair.target for pair in pairs])
    rows = [
        (readers[language].with_ends(s[: rooms[language]]), tokenizer.with_ends(t))
        for language, s, t in zip(languages, sources, targets, strict=True)
        if len(t) <= room and (cut_sources or len(s) <= rooms[language])
    ]
    return [s for s, _ in rows], [t for _, t in rows], len(pairs) - len(rows)


# ---- training --------------------------------------------------------------------------------------------------------


def train_seq2seq(asked: Recipe, run_dir: Path, resume: bool, parallel: Parallel) -> Translator | Summarizer:
    """Train what the recipe says into run_dir; called by `zhixing.train`, under the run's lock."""
    torch.set_num_threads(threads_of(asked, parallel))
    keep_memory()
    began = time.perf_counter()
    if parallel.world > 1:
        raise InputError(
            "pairs are learnt by one process", mend="start it without torchrun; it uses every core by itself"
        )
    recipe = as_begun(asked, asked, run_dir) if resume else asked
    parts = prepare(recipe, run_dir)
    (run_dir / MANIFEST).unlink(missing_ok=True)
    atomic_write(run_dir / "recipe.toml", recipe.to_toml())
    seed = recipe.train.seed
    tokenizer = _tokenizer(recipe, parts, run_dir)
    sides = [
        _batches(pairs, tokenizer, recipe, name)
        for pairs, name in ((parts.train, "to learn from"), (parts.validation, "that choose the best step"))
    ]
    torch.manual_seed(seed + 1)  # dropout's noise; initialisation has a generator of its own
    model = build_seq2seq(recipe, tokenizer, torch.Generator().manual_seed(seed))
    recipe = resolve_batches(recipe, len(sides[0]))
    bf16 = recipe.train.bf16 is True
    say(_plan(model, recipe, sides[0], bf16))
    say(precision_line(asked, bf16, compiled=False))
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": tokenizer.fingerprint(),
        "data": parts.train.fingerprint()[:16],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": "bfloat16" if bf16 else "float32",
    }
    if recipe.task.pretrain_steps and not list_steps(run_dir):  # else the checkpoint has what came of it
        _pretrain(model, tokenizer, recipe, parts, run_dir, bf16)
    result = fit(
        model,
        target_given_source(recipe.train.label_smoothing_factor),
        make_optimizers(model, recipe.train, torch.bfloat16 if native_bf16() else torch.float32),
        sides[0],
        sides[1],
        replace(recipe.train, per_device_train_batch_size=1),  # of the loop's samples, which are whole batches
        replace(recipe.eval, max_sequences=len(sides[1]), per_device_eval_batch_size=1),
        run_dir,
        facts,
        resume=resume,
        bf16=bf16,
        unit="written tokens",
    )
    result = take_best(model, result, run_dir)
    task: Task = "summarization" if recipe.task.kind == "summarization" else "translation"
    stored = StoredSeq2Seq(model.eval(), tokenizer, task, *languages_of(recipe.data.source, pair_settings(recipe)))
    run = _kind(task)(run_dir, stored, recipe.task.on_too_long)
    _finish(run, recipe, parts, sides[0], result, time.perf_counter() - began)
    return run


def _pretrain(model: Seq2Seq, tokenizer: Tokenizer, recipe: Recipe, parts: Parts, run_dir: Path, bf16: bool) -> None:
    """Span corruption on both sides of the training pairs, each a text by itself (Raffel et al. 2020, 3.1.4)."""
    steps, seed = recipe.task.pretrain_steps, recipe.train.seed
    say(f"first {steps:,} steps of filling in spans that are left out of the training texts")
    folder = run_dir / "pretraining"
    longest = recipe.model.max_len - 1
    while longest > 2 and span_counts(longest)[1] >= SENTINELS:  # one more stands at the end
        longest -= 1
    sides = []
    for pairs in (parts.train, parts.validation):
        ids = tokenizer.encode_batch([side for pair in pairs for side in (pair.source, pair.target)])
        rows = [row[:longest] for row in ids if len(row) > 1]
        if not rows:
            raise InputError("no text is long enough to leave a span out", mend="set task.pretrain_steps = 0")
        sides.append(
            CorruptedTexts(
                rows,
                first_sentinel_id=model.settings.vocab_size - 1,
                eos_id=tokenizer.eos_id,
                start_id=tokenizer.pad_id,
                pad_id=tokenizer.pad_id,
                budget=recipe.train.max_tokens_per_batch,
                seed=seed,
            )
        )
    settings = replace(
        recipe.pretraining(), eval_steps=max(1, steps // 10), save_steps=max(1, steps // 4),
        per_device_train_batch_size=1,
    )  # fmt: skip
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": tokenizer.fingerprint(),
        "data": parts.train.fingerprint()[:16],
    }
    result = fit(
        model, target_given_source(),
        make_optimizers(model, settings, torch.bfloat16 if native_bf16() else torch.float32), sides[0], sides[1],
        settings,
        replace(recipe.eval, max_sequences=min(32, len(sides[1])), per_device_eval_batch_size=1), folder, facts,
        resume=(folder / "checkpoints").exists(), bf16=bf16, unit="written tokens",
    )  # fmt: skip
    if result.ended == "signal":
        say(f"go on with:  zhixing train ... --out {run_dir} --resume")
        raise SystemExit(result.exit_code)


def _batches(pairs: Pairs, tokenizer: Tokenizer, recipe: Recipe, name: str) -> PairedTexts:
    cut_sources = recipe.task.kind == "summarization"
    sources, targets, too_long = encode_pairs(pairs, tokenizer, recipe.model.max_len, cut_sources=cut_sources)
    if too_long:
        say(f"left out: {too_long:,} pairs {name}, of which a side has more than {recipe.model.max_len} tokens")
    if not sources:
        raise InputError(
            f"no pair {name} is short enough",
            why=f"all have more than {recipe.model.max_len} tokens on a side",
            mend="raise model.max_len, or split the texts",
        )
    return PairedTexts(
        sources,
        targets,
        start_id=tokenizer.pad_id,
        pad_id=tokenizer.pad_id,
        budget=recipe.train.max_tokens_per_batch,
        seed=recipe.train.seed,
    )


def _tokenizer(recipe: Recipe, parts: Parts, run_dir: Path) -> Tokenizer:
    """The run's own from an earlier start, one by path, or a new one of both sides."""
    folder = run_dir / "data" / "tokenizer"
    if (folder / "tokenizer_config.json").exists():  # the last file that is written
        return Tokenizer.load(folder)
    t = recipe.tokenizer
    if t.path:
        tokenizer = Tokenizer.load(Path(t.path))
    else:
        texts = [side for pair in parts.train for side in (pair.source, pair.target)]
        if recipe.data.directions:  # a text of several directions counts once, else most of what is learnt is English
            texts = list(dict.fromkeys(texts))
        size = auto_vocab_size(sum(len(text.encode()) for text in texts)) if t.vocab_size == "auto" else t.vocab_size
        tokenizer = train_tokenizer(texts, t.kind, size, lowercase=t.lowercase)
    if not tokenizer.with_ends([]):
        tokenizer.end_texts()
    tokenizer.add_languages(sorted(_written_languages(recipe)))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    return tokenizer


def _written_languages(recipe: Recipe) -> set[str]:
    """Those of several directions: the model is told by a tag which one to write."""
    sets = pair_sets(recipe)
    return {s.target_language for s in sets} | {s.source_language for s in sets if s.both_ways}


def build_seq2seq(recipe: Recipe, tokenizer: Tokenizer, generator: torch.Generator | None = None) -> Seq2Seq:
    """The recipe's model with fresh parameters."""
    m, vocab_size, start_id = recipe.model, tokenizer.vocab_size, tokenizer.pad_id
    n_encoder_layers = m.n_layers if m.n_encoder_layers == "auto" else m.n_encoder_layers
    if m.family == "lstm":
        return LSTMTranslator(
            LSTMTranslatorSettings(
                vocab_size,
                d_model=m.d_model,
                n_encoder_layers=n_encoder_layers,
                n_layers=m.n_layers,
                max_len=m.max_len,
                dropout=m.dropout,
                attention=m.attention,
                tie_embeddings=m.tie_embeddings,
                start_id=start_id,
                pointer=m.pointer,
            ),
            generator,
        )
    if m.family == "t5":
        return T5(
            T5Settings(
                vocab_size + SENTINELS,
                d_model=m.d_model,
                d_kv=m.d_model // m.n_heads,
                n_encoder_layers=n_encoder_layers,
                n_layers=m.n_layers,
                n_heads=m.n_heads,
                d_ff=d_ff(m),
                max_len=m.max_len,
                dropout=m.dropout,
                tie_embeddings=m.tie_embeddings,
                start_id=start_id,
                norm_eps=m.norm_eps,
            ),
            generator,
        )
    return Marian(
        MarianSettings(
            vocab_size,
            d_model=m.d_model,
            n_encoder_layers=n_encoder_layers,
            n_layers=m.n_layers,
            n_heads=m.n_heads,
            d_ff=4 * m.d_model if m.d_ff == "auto" else m.d_ff,
            max_len=m.max_len,
            dropout=m.dropout,
            start_id=start_id,
            norm_eps=m.norm_eps,
        ),
        generator,
    )


def _plan(model: Seq2Seq, recipe: Recipe, batches: PairedTexts, bf16: bool) -> str:
    """What the run will need, as lines for a terminal: 6 FLOPs a parameter and token that goes through it."""
    t = recipe.train
    assert isinstance(t.max_steps, int)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    decoder = sum(p.numel() for p in model.decoder.parameters()) + model.head().numel()
    steps: int = t.max_steps
    epochs = steps * t.gradient_accumulation_steps / len(batches)
    read = batches.n_tokens - batches.n_targets
    flops = 6 * epochs * (encoder * read + decoder * batches.n_targets)
    low, high = expected_seconds(flops, recipe.model.d_model, matmul_speed("bfloat16" if bf16 else "float32"))
    total = sum(p.numel() for p in model.parameters())
    return "\n".join(
        f"{label:<11}{value}"
        for label, value in (
            ("model", f"{recipe.model.family}: {quantity(total)} parameters"),
            (
                "pairs",
                f"{len(batches.sources):,}: {quantity(read)} tokens to read, {quantity(batches.n_targets)} to write",
            ),
            (
                "batches",
                f"{len(batches):,} of up to {t.max_tokens_per_batch:,} tokens, {batches.budget.padding:.1%} padding",
            ),
            ("run", f"{steps:,} steps, {epochs:.3g} times the pairs, {t.optim}"),
            ("time", f"{duration(low)} to {duration(high)}"),
        )
    )


# ---- the end of a run ------------------------------------------------------------------------------------------------


def _finish(
    run: Translator | Summarizer, recipe: Recipe, parts: Parts, batches: PairedTexts, result: FitResult, seconds: float
) -> None:
    """Have the best model write the test part, measure, and leave the run directory complete."""
    run_dir, model = run.path, run.stored.model
    peak = peak_memory()
    began = time.perf_counter()
    run.num_beams, run.length_penalty = recipe.eval.num_beams, recipe.eval.length_penalty
    outputs = run.write_pairs(parts.test)
    decoding = time.perf_counter() - began
    if run.too_long:
        say(f"{run.too_long:,} test texts are longer than the model reads: their beginnings are measured")
    scores = run.scores(parts.test, outputs, train=parts.train, seed=recipe.train.seed)
    examples = [
        {"source": pair.source, "reference": pair.target, "output": output, "group": pair.group}
        | ({"direction": pair.direction} if pair.direction else {})
        for pair, output in zip(parts.test, outputs, strict=True)
    ]
    facts = {
        "data": {
            "source": recipe.data.source or parts.train.name,
            "train": {"pairs": len(parts.train)},
            "validation": {"pairs": len(parts.validation)},
            "test": {"pairs": len(parts.test), "too_long": run.too_long, "how": parts.split},
            "counts": dataclasses.asdict(parts.train.counts),
            **({"directions": found} if (found := _directions(parts)) else {}),
        },
        "model": {
            "family": recipe.model.family,
            "parameters": sum(p.numel() for p in model.parameters()),
            "task": run.stored.task,
        },
        "run": {
            "zhixing": __version__,
            "steps": result.step,
            "best_step": result.best_step,
            "ended": result.ended,
            "training_seconds": round(result.seconds, 1),
            "written_tokens_per_second": round(result.tokens / max(result.seconds, 1e-9)),
            "padding": round(batches.budget.padding, 4),
            "sentences_per_second": round(len(outputs) / max(decoding, 1e-9), 2),
            "num_beams": run.num_beams,
            "total_seconds": round(seconds + time.perf_counter() - began, 1),
            "peak_memory_bytes": peak,
            "seed": recipe.train.seed,
        },
    }
    atomic_write(run_dir / "scores.json", json.dumps(scores, ensure_ascii=False, indent=1))
    atomic_write(run_dir / "facts.json", json.dumps(facts, ensure_ascii=False, indent=1))
    atomic_write(run_dir / "examples.jsonl", _json_lines(examples))
    (run_dir / "data").mkdir(exist_ok=True)
    rows = [dataclasses.asdict(pair) for pair in parts.test]
    if not recipe.data.directions:
        rows = [{key: value for key, value in row.items() if not key.endswith("_language")} for row in rows]
    atomic_write(run_dir / "data" / "test.jsonl", _json_lines(rows))
    write_seq2seq(run_dir, run.stored, num_beams=run.num_beams, length_penalty=run.length_penalty)
    atomic_write(run_dir / "README.md", _card(run, recipe, parts, scores))
    write_seq2seq_report(run_dir)
    write_manifest(run_dir, {"kind": "seq2seq", "step": result.best_step})
    say(scores_text(scores))
    for example in examples[:: max(1, len(examples) // 5)][:5]:
        say(
            f"\n  source     {example['source']}\n  reference  {example['reference']}\n  output     {example['output']}"
        )
    say(f"\ndone in {duration(seconds + time.perf_counter() - began)}; look at {run_dir / 'report.html'}")
    text, language = shlex.quote(parts.test[0].source[:60]), parts.test[0].target_language
    command = f"{'translate' if run.stored.task == 'translation' else 'summarize'} {shlex.quote(str(run_dir))} {text}"
    say(f"next:  zhixing {command}" + (f" --to {language}" if language else ""))


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def scores_text(scores: dict[str, Any]) -> str:
    """The scores and what stands beside them, for a terminal; one table for each of several directions."""
    if "directions" in scores:
        return "\n\n".join(f"{name}\n{scores_text(found)}" for name, found in scores["directions"].items())
    model = scores["model"]
    main = [name for name in ("bleu", "chrf", "ter", "rougeL", "rouge1", "rouge2") if model.get(name)]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    lines = [f"{'':<20}" + "".join(f"{name:>10}" for name in main)]
    for label, row in {"this model": model, **scores["baselines"]}.items():
        values = [(row.get(name) or {"value": None})["value"] for name in main]
        lines.append(f"{label:<20}" + "".join(f"{shown(value):>10}" for value in values))
    interval = model[main[0]]
    low, high = shown(interval["low"]), shown(interval["high"])
    lines.append(f"{model['n']:,} pairs; {main[0]} with 95 % within {low} to {high}")
    lines += [f"{name}: {signature}" for name, signature in model.get("signatures", {}).items()]
    return "\n".join(lines)


def _card(run: Translator | Summarizer, recipe: Recipe, parts: Parts, scores: dict[str, Any]) -> str:
    """The model card: what it is, what it learnt from, how well it does, and what it is not for."""
    verb = run.stored.task
    library = "zhixing" if recipe.model.family == "lstm" else "transformers"
    told = f', target_language="{parts.test[0].target_language}"' if parts.test[0].target_language else ""
    front = ["---", f"library_name: {library}", f"pipeline_tag: {verb}"]
    directions = _directions(parts)
    spoken = [run.stored.source_language, run.stored.target_language]
    for direction in directions:
        spoken += direction.split(">")
    if languages := list(dict.fromkeys(filter(None, spoken))):
        front.append(f"language: {json.dumps(languages)}")
    return "\n".join(
        [
            *front,
            "---",
            f"# {run.path.name}",
            "",
            f"A {recipe.model.family} for {verb}, trained from nothing with zhixing (知行) on {len(parts.train):,}"
            f" pairs of {recipe.data.source or parts.train.name!r}.",
            "",
            *([f"Directions: {', '.join(directions)}.", ""] if directions else []),
            f"Measured on {len(parts.test):,} pairs: {parts.split}.",
            "",
            "```",
            scores_text(scores),
            "```",
            "",
            "The scores hold for texts like those of the test part; nothing was measured on others.",
            "",
            "```python",
            "import zhixing",
            f"model = zhixing.load({str(run.path)!r})",
            f'print(model("..."{told}).text)',
            "```",
            "",
        ]
    )


# ---- using a run -----------------------------------------------------------------------------------------------------


class Search(TypedDict, total=False):
    """How a call of a translator or a summarizer writes; the defaults are those of `settings`."""

    num_beams: int | None
    n_best: int
    prefix: str
    no_repeat_ngram_size: int
    num_beam_groups: int
    diversity_penalty: float
    temperature: float
    top_k: int
    top_p: float
    seed: int | None


@dataclass
class _Writer:
    """What translators and summarizers share: a model in a folder, and how it searches."""

    path: Path
    stored: StoredSeq2Seq
    on_too_long: OnTooLong = "split"
    num_beams: int = 4
    length_penalty: float = 1.0
    too_long: int = 0  # sentences (of summaries: texts) so far that were longer than the model reads

    @property
    def model(self) -> Seq2Seq:
        return self.stored.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.stored.tokenizer

    @property
    def decoder(self) -> Any:
        """The model as decoding takes it."""
        return self.model

    @property
    def target_languages(self) -> list[str]:
        """The languages that it can be asked to write: those of several directions, or the one it says."""
        return list(self.tokenizer.tags) or list(filter(None, [self.stored.target_language]))

    @overload
    def __call__(
        self, texts: str, *, target_language: str = "", coverage_penalty: float = 0.0, **how: Unpack[Search]
    ) -> Written: ...
    @overload
    def __call__(
        self, texts: list[str], *, target_language: str = "", coverage_penalty: float = 0.0, **how: Unpack[Search]
    ) -> list[Written]: ...
    def __call__(
        self, texts: str | list[str], *, target_language: str = "", coverage_penalty: float = 0.0, **how: Unpack[Search]
    ) -> Written | list[Written]:
        """What the model writes for a text, or for each of a list; n_best above 1: alternatives and their scores.

        target_language: one of `target_languages`, needed where a model has several; all of a text is written in it.
        prefix: what is written for each text begins with it. coverage_penalty: of the hypotheses found the one is taken
        that leaves least of the text unread (0.2 is usual). A temperature above 0 samples, with one beam; the rest is
        as in DecodingSettings. InputError for what cannot be used.
        """
        settings = self.settings(**how)
        given = [texts] if isinstance(texts, str) else texts
        found: list[Written | None] = [None] * len(given)
        for language, asked in self._by_language(given, target_language).items():
            answers, too_long = self._each([text for _, text in asked], language, settings, coverage_penalty)
            self.too_long += too_long
            for (number, _), answer in zip(asked, answers, strict=True):
                found[number] = replace(answer, source=given[number])
        whole = [answer for answer in found if answer is not None]
        return whole[0] if isinstance(texts, str) else whole

    def _each(
        self, texts: Sequence[str], language: str, settings: DecodingSettings, coverage_penalty: float
    ) -> tuple[list[Written], int]:
        model, tokenizer, too_long = self.decoder, self.tokenizer.for_language(language), self.on_too_long
        if self.stored.task == "summarization":
            return summarize(model, tokenizer, texts, settings, on_too_long=too_long, coverage_penalty=coverage_penalty)
        return translate(
            model, tokenizer, texts, settings, target_language=language or self.stored.target_language,
            on_too_long=too_long, coverage_penalty=coverage_penalty,
        )  # fmt: skip

    def told(self, text: str, target_language: str = "") -> tuple[str, str]:
        """The language of `Tokenizer.tags` that a text is to be written in, and the text; "" where none need be told.

        Where no language is given, a text for a checkpoint of OPUS-MT may begin with its tag, as its users are used to.
        InputError: a language that the model does not know, or none where it knows several.
        """
        tags, own = self.tokenizer.tags, self.stored.target_language
        shown = ", ".join(self.target_languages[:LANGUAGES_SHOWN])
        shown += f" and {len(tags) - LANGUAGES_SHOWN} more" if len(tags) > LANGUAGES_SHOWN else ""
        if target_language:
            if target_language not in (*tags, own):
                why = f"it writes {shown}" if shown else "it writes one language, and does not say which"
                mend = "take one of these" if shown else "leave the language out"
                raise InputError(f"the model does not write {target_language!r}", why=why, mend=mend)
            return target_language if target_language in tags else "", text
        language, rest = self.tokenizer.cut_tag(text)
        if language or own or not tags:
            return language, rest
        if len(tags) > 1:
            mend = f'give target_language="{next(iter(tags))}", on the command line --to {next(iter(tags))}'
            raise InputError(
                "the model writes several languages, and none is given", why=f"it knows {shown}", mend=mend
            )
        return next(iter(tags)), rest

    def _by_language(self, texts: Sequence[str], target_language: str) -> dict[str, list[tuple[int, str]]]:
        """Each text, without a tag before it, and its number, by the language that it is to be written in."""
        found: dict[str, list[tuple[int, str]]] = {}
        for number, given in enumerate(texts):
            language, text = self.told(given, target_language)
            found.setdefault(language, []).append((number, text))
        return found

    def settings(
        self,
        *,
        num_beams: int | None = None,
        n_best: int = 1,
        prefix: str = "",
        no_repeat_ngram_size: int = 0,
        num_beam_groups: int = 1,
        diversity_penalty: float = 0.0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = 0,
    ) -> DecodingSettings:
        """How it searches, by the run's number of beams if none is given; or how it samples."""
        how, longest = self.stored.generation, self.model.settings.max_len
        most = max(1, min(MOST_NEW_TOKENS, longest - 1, (how.max_length or longest) - 1))
        if temperature == 0:
            for name, value, neutral in (("top_k", top_k, 0), ("top_p", top_p, 1)):
                if value != neutral:
                    why = "with temperature 0 nothing is sampled"
                    raise InputError(f"{name} = {value!r} cannot be used", why=why, mend="set temperature = 1")
            beams = max(self.num_beams if num_beams is None else num_beams, n_best)
        elif num_beams is not None and num_beams > 1:
            why = f"with num_beams = {num_beams} the most probable is searched, and nothing is sampled"
            mend = "leave num_beams out, or set temperature = 0"
            raise InputError(f"temperature = {temperature!r} cannot be used", why=why, mend=mend)
        else:
            beams = 1
        return DecodingSettings(
            max_new_tokens=most,
            num_beams=beams,
            n=n_best,
            length_penalty=self.length_penalty,
            early_stopping=True,
            eos_ids=(self.tokenizer.target.eos_id,),
            bad_words_ids=how.bad_words_ids,
            forced_bos_token_id=how.forced_bos_token_id,
            forced_eos_token_id=how.forced_eos_token_id,
            prefix_ids=self._prefix_ids(prefix, most),
            no_repeat_ngram_size=no_repeat_ngram_size,
            num_beam_groups=num_beam_groups,
            diversity_penalty=diversity_penalty,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )

    def _prefix_ids(self, prefix: str, most: int) -> tuple[int, ...]:
        """The tokens of what every text written must begin with; InputError where they cannot be written."""
        tokenizer = self.stored.target_tokenizer or self.tokenizer
        tokenizer = tokenizer.for_language("")
        ids = tokenizer.encode(prefix.strip())  # a blank at its end belongs to the word behind it
        shown = f"prefix = {prefix[:60]!r} cannot be used"
        if len(ids) > most:
            why = f"it has {len(ids):,} tokens, the model writes {most:,} at most"
            raise InputError(shown, why=why, mend="shorten it")
        if tokenizer.unk_id is not None and tokenizer.unk_id in ids:
            raise InputError(shown, why="the model's vocabulary lacks something in it", mend="say it in other words")
        return tuple(ids)

    def alignment(
        self, source: str, text: str, target_language: str = ""
    ) -> tuple[list[str], list[str], NDArray[np.float32]]:
        """The tokens of a source and of a text, and how much each of the text's took from each of the source's (T, S).

        InputError where one side is empty or longer than the model's context.
        """
        language, source = self.told(source, target_language)
        reader = self.tokenizer.for_language(language)
        sides = [reader.encode(source), reader.target.encode(text)]
        before, most = reader.with_ends([-1]).index(-1), self.model.settings.max_len
        longest = most - len(reader.with_ends([])), most - 1
        for name, ids, room in zip(("source", "text"), sides, longest, strict=True):
            if not 0 < len(ids) <= room:
                raise InputError(f"the {name} has {len(ids):,} tokens", mend=f"give one of 1 to {room:,}")
        read, written = reader.with_ends(sides[0]), [self.model.settings.start_id, *sides[1]]
        with torch.inference_mode():
            weights = self.model.attention_weights(
                torch.tensor([written[:-1]]), torch.tensor([read]), torch.tensor([len(read)])
            )
        tokens = [[each.decode([i]) for i in ids] for each, ids in zip((reader, reader.target), sides, strict=True)]
        return tokens[0], tokens[1], weights[0, :, before : before + len(sides[0])].numpy()

    def write(self, sources: Sequence[str], target_language: str = "") -> list[str]:
        """The best text for each source, taken whole as it was learnt: not cut into lines and sentences."""
        written = [""] * len(sources)
        for language, asked in self._by_language(sources, target_language).items():
            reader = self.tokenizer.for_language(language)
            texts = [text for _, text in asked]
            fitted, too_long = fit_sources(reader, texts, self.model.longest_source, "truncate")
            self.too_long += too_long
            short = [parts[0] if parts else "" for parts in fitted]
            found = write_each(self.decoder, reader, short, self.settings())
            for (number, _), best in zip(asked, found, strict=True):
                written[number] = best[0].text.strip()
        return written

    def write_pairs(self, pairs: Pairs) -> list[str]:
        """`write` of their sources, each in the language of its pair."""
        written = [""] * len(pairs)
        for numbers in pairs.directions().values():
            sources, language = [pairs[n].source for n in numbers], pairs[numbers[0]].target_language
            for n, text in zip(numbers, self.write(sources, language), strict=True):
                written[n] = text
        return written

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe that made it, where the folder has one."""
        path = self.path / "recipe.toml"
        return parse_recipe(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None

    def scores(
        self, pairs: Pairs, outputs: Sequence[str], *, train: Pairs | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Scores of outputs and of what stands beside them: `translation_scores`, `summary_scores`.

        Of pairs that say their languages those of each direction by itself: {"directions": {"en>zh": ...}}.
        """
        parts = pairs.directions()
        if "" not in parts:
            learnt = {} if train is None else train.directions()
            found = {}
            for name, numbers in parts.items():
                beside = train.pick(learnt[name]) if train is not None and name in learnt else None
                texts, language = [outputs[n] for n in numbers], pairs[numbers[0]].target_language
                found[name] = translation_scores(pairs.pick(numbers), texts, beside, seed, language)
            return {"directions": found}
        if self.stored.task == "summarization":
            return summary_scores(pairs, outputs, train, seed)
        return translation_scores(pairs, outputs, train, seed, self.stored.target_language or "en")

    def read(self, data: str | None) -> Pairs:
        """Pairs by name or path, or "en>de NAME" to say their languages; the run's own test part if not given."""
        if data is not None:
            settings = pair_settings(self.recipe) if self.recipe else None
            if self.stored.task == "translation" and (told := pair_set(data)):
                return read_directions([told], settings)
            if self.tokenizer.tags and not self.stored.target_language:
                why = "the model has several directions"
                mend = f"say from which language to which: 'en>{self.target_languages[0]} {data}'"
                raise InputError(f"the languages of {data!r} are not given", why=why, mend=mend)
            return read_pairs(data, settings)
        kept = self.path / "data" / "test.jsonl"
        if not kept.exists():
            raise InputError("this run has no test pairs of its own", where=str(self.path), mend="name a file of pairs")
        settings = PairSettings(max_ratio=0, identical="keep", repeats="keep", language_columns=True)
        return read_pairs(str(kept), settings)

    def evaluate(self, data: str | None = None) -> dict[str, Any]:
        """Scores on pairs, and those of baselines that need no training, beside them."""
        pairs = self.read(data)
        return self.scores(pairs, self.write_pairs(pairs))

    def show(self) -> str:
        """What the run is and how it went, for a terminal."""
        card = self.path / "README.md"
        return card.read_text(encoding="utf-8") if card.exists() else f"{self.path}: {self.stored.task}"


class Translator(_Writer):
    """A model that says a text in another language: `translator("Open the file.").text`."""


class Summarizer(_Writer):
    """A model that says a text in fewer words: `summarizer(text).text`."""


def translation_scores(
    pairs: Pairs, outputs: Sequence[str], train: Pairs | None, seed: int, language: str
) -> dict[str, Any]:
    """BLEU, chrF, TER and more; beside them copying and, with the training pairs, the nearest one's translation."""
    sources, references = [p.source for p in pairs], [p.target for p in pairs]

    def measured(texts: Sequence[str], *, with_ter: bool = False) -> dict[str, Any]:
        return score_translations(
            texts, references, language=language, sources=sources, with_ter=with_ter, seed=seed
        ).to_dict()

    baselines = {"copy": measured(copy(sources))}
    if train is not None:
        memory = TranslationMemory([p.source for p in train], [p.target for p in train])
        baselines["translation memory"] = measured(memory.answer(sources))
    model = measured(outputs, with_ter=True)  # of the model alone: it takes a tenth of a second a text
    return {"model": model, "baselines": baselines}


def summary_scores(pairs: Pairs, outputs: Sequence[str], train: Pairs | None, seed: int) -> dict[str, Any]:
    """ROUGE; beside it the first sentence, TextRank's and, with the training pairs, the nearest one's summary."""
    sources, references = [p.source for p in pairs], [p.target for p in pairs]

    def measured(texts: Sequence[str]) -> dict[str, Any]:
        return score_summaries(texts, references, seed=seed).to_dict()

    with Progress("baselines", len(sources), "texts") as progress:
        ranked = []
        for number, text in enumerate(sources, 1):
            ranked.append(text_rank(text, 1))
            progress.update(number)
    baselines = {
        "lead sentence": measured([lead_sentence(text) for text in sources]),
        "TextRank": measured(ranked),
    }
    if train is not None:
        memory = TranslationMemory([p.source for p in train], [p.target for p in train])
        baselines["nearest text's"] = measured(memory.answer(sources))
    return {"model": measured(outputs), "baselines": baselines}


def _kind(task: Task) -> type[Translator] | type[Summarizer]:
    return Summarizer if task == "summarization" else Translator


def load_seq2seq(path: str | Path) -> Translator | Summarizer:
    """A trained run, or a Marian or T5 folder of transformers with a tokenizer that we read."""
    folder = finished_folder(path)
    if not is_seq2seq(folder):
        raise InputError("this model does not read one text and write another", where=str(folder))
    torch.set_num_threads(default_threads())
    stored = read_seq2seq(folder)
    run = _kind(stored.task)(folder, stored)
    if run.recipe is not None:
        run.on_too_long = run.recipe.task.on_too_long
        run.num_beams, run.length_penalty = run.recipe.eval.num_beams, run.recipe.eval.length_penalty
    else:  # of transformers: it searches as its makers say
        how = stored.generation
        run.num_beams = how.num_beams or run.num_beams
        run.length_penalty = run.length_penalty if how.length_penalty is None else how.length_penalty
    return run
