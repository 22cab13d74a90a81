"""Preference tuning, from a chat model and preferences to a chat model: `train_preference` (DPO, training/dpo.py).

A GPT that replies (task.start: a run of a chat recipe, or a model folder of transformers with a chat template) learns
to find replies that are preferred more probable than others, beside itself as it was at the start. The run directory is
that of dialogue (dialogue.py), with

    data/preferences.jsonl      the test part, with log p of both replies by the start: for `zhixing evaluate RUN`
    data/test.jsonl             the same prompts with the replies that are preferred
    adapter/                    with model.lora_rank: the changes alone, for PEFT

Log p by the start is computed once, before the first step (and again where a training goes on). The test part is looked
at once, at the end; a share of the rest chooses the best step.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from zhixing.dialogue import Chat, Parts, Tuning, finish_dialogue, preferred_rows, weights_hash
from zhixing.errors import InputError
from zhixing.files import MANIFEST, atomic_write
from zhixing.interchange.adapter_directory import FOLDER as ADAPTER
from zhixing.interchange.chat_directory import StoredChat, is_chat, read_chat
from zhixing.interchange.peft_adapter import write_adapter
from zhixing.models.gpt import GPT
from zhixing.models.lora import LoRASettings, add_lora, merge, remove_lora
from zhixing.progress import Progress, duration, quantity, say
from zhixing.recipe import Recipe
from zhixing.run import as_begun, finished_folder, precision_line, recipe_hash, resolve_batches, threads_of
from zhixing.text.preferences import Preferences, read_preferences, split_preferences, with_other_prompts
from zhixing.tokens.preferred import PreferredRows
from zhixing.training.dpo import log_probabilities_of, preference_measures, preferred
from zhixing.training.loop import fit, take_best
from zhixing.training.memory import keep_memory
from zhixing.training.optimizers import make_optimizers
from zhixing.training.parallel import Parallel
from zhixing.training.plan import expected_seconds, matmul_speed, native_bf16


@dataclass(frozen=True)
class Sides:
    """What is learnt from, what chooses the best step, and what measures."""

    train: Preferences
    validation: Preferences
    test: Preferences
    split: str  # how the test part came about


def prepare(recipe: Recipe, run_dir: Path) -> Sides:
    """Read, check and split the preferences; says what it did."""
    d, seed = recipe.data, recipe.train.seed
    if not d.source:
        mend = 'set data.source = "a file or a folder of jsonl with prompt, chosen and rejected"'
        raise InputError("the recipe names no preferences", mend=mend)
    every = read_preferences(d.source, d, quarantine=run_dir / "quarantine.jsonl")
    if recipe.task.test:
        train = every
        test, repeats = with_other_prompts(
            train, read_preferences(recipe.task.test, d, quarantine=run_dir / "quarantine-test.jsonl")
        )
        if not test:
            why = f"training has the prompts of all {repeats:,}"
            raise InputError("the test preferences measure nothing", where=recipe.task.test, why=why)
        how = f"{len(test):,} test preferences from {recipe.task.test}"
    else:
        train, test, repeats = split_preferences(every, d.heldout_fraction, seed)
        how = f"held out: {len(test):,} of {len(every):,} preferences ({len(test) / len(every):.1%})"
    how += "; no prompt of theirs is in training" + (f", {repeats:,} were left out for that" if repeats else "")
    say(how)
    train, validation, _ = split_preferences(train, recipe.task.validation_fraction, seed + 1)
    say(f"{len(train):,} preferences to learn from, {len(validation):,} choose the best step, {len(test):,} to test")
    return Sides(train, validation, test, how)


def train_preference(asked: Recipe, run_dir: Path, resume: bool, parallel: Parallel) -> Chat:
    """Train what the recipe says into run_dir; called by `zhixing.train`, under the run's lock."""
    torch.set_num_threads(threads_of(asked, parallel))
    keep_memory()
    began = time.perf_counter()
    if parallel.world > 1:
        mend = "start it without torchrun; it uses every core by itself"
        raise InputError("preferences are learnt by one process", mend=mend)
    recipe = as_begun(asked, asked, run_dir) if resume else asked
    start = _start(recipe)
    sides = prepare(recipe, run_dir)
    (run_dir / MANIFEST).unlink(missing_ok=True)
    atomic_write(run_dir / "recipe.toml", recipe.to_toml())
    torch.manual_seed(recipe.train.seed + 1)  # dropout's noise; what LoRA begins with has a generator of its own
    generator = torch.Generator().manual_seed(recipe.train.seed)
    model = GPT(replace(start.model.settings, dropout=recipe.model.dropout), generator)
    model.load_state_dict(start.model.state_dict())
    train, validation, test = (_rows(recipe, start, side) for side in (sides.train, sides.validation, sides.test))
    recipe = resolve_batches(recipe, len(train))
    bf16 = recipe.train.bf16 is True
    say(_plan(model, recipe, train, bf16))
    say(precision_line(asked, bf16, compiled=False))
    for name, rows in (("training", train), ("validation", validation), ("test", test)):
        with Progress(f"log p of the {name} replies at the start", rows.n_pairs, "preferences") as progress:
            half = bf16 and rows is not test  # as the model is looked at: the test part in fp32
            rows.reference = log_probabilities_of(model, rows, bf16=half, watch=progress.update)
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": start.tokenizer.fingerprint(),
        "data": sides.train.fingerprint()[:16],
        "start": weights_hash(model),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": "bfloat16" if bf16 else "float32",
    }
    adapter = None
    if recipe.model.lora_rank:
        adapter = LoRASettings(rank=recipe.model.lora_rank, alpha=2.0 * recipe.model.lora_rank)
        add_lora(model, adapter, generator)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"of these {quantity(trained)} are trained (LoRA of rank {adapter.rank})")
    t = recipe.train
    result = fit(
        model,
        preferred(t.beta, t.label_smoothing),
        make_optimizers(model, t, torch.bfloat16 if native_bf16() else torch.float32),
        train,
        validation,
        replace(t, per_device_train_batch_size=1),  # of the loop's samples, which are whole batches
        replace(recipe.eval, max_sequences=len(validation), per_device_eval_batch_size=1),
        run_dir,
        facts,
        resume=resume,
        bf16=bf16,
        unit="pairs",
        measures=preference_measures(t.beta),
    )
    result = take_best(model, result, run_dir)
    if adapter:
        write_adapter(run_dir / ADAPTER, model, adapter, recipe.task.start)
        merge(model)
        remove_lora(model)
    e = recipe.eval
    stored = StoredChat(model.eval(), start.tokenizer, start.template, e.temperature, e.top_p, e.repetition_penalty)
    chat = Chat(run_dir, stored)
    measured = sides.test.pick(test.places)
    assert test.reference is not None
    lines = [
        json.dumps(replace(item, reference=(float(pair[0]), float(pair[1]))).to_dict(), ensure_ascii=False) + "\n"
        for item, pair in zip(measured, test.reference, strict=True)
    ]
    atomic_write(run_dir / "data" / "preferences.jsonl", "".join(lines))
    parts = Parts(sides.train.conversations(), sides.validation.conversations(), measured.conversations(), sides.split)
    tuning = Tuning(
        scores=chat.preference_scores(test, t.beta, t.seed),
        facts={
            "preferences": {"train": train.n_pairs, "validation": validation.n_pairs, "test": test.n_pairs},
            "counts": dataclasses.asdict(sides.train.counts),
        },
        start=str(facts["start"]),
        words=f"tuned by {train.n_pairs:,} preferences (DPO, beta {t.beta:g})",
    )
    finish_dialogue(chat, recipe, parts, result, time.perf_counter() - began, tuning=tuning)
    return chat


def _start(recipe: Recipe) -> StoredChat:
    """The chat model to start from. InputError: none, one of another family, one that has no template."""
    if not recipe.task.start:
        mend = "train one, zhixing train chat-en data.source=FILE --out CHAT, and set task.start=CHAT"
        raise InputError("preference tuning starts from a chat model, and the recipe names none", mend=mend)
    folder = finished_folder(recipe.task.start)
    if not is_chat(folder):
        why = "it has no chat template: beside a model that never learnt to reply, no reply can be preferred"
        mend = f"let it learn to reply first: zhixing train chat-en data.source=FILE task.start={folder} --out CHAT"
        raise InputError("task.start is no chat model", where=str(folder), why=why, mend=mend)
    start = read_chat(folder)
    if not isinstance(start.model, GPT):
        raise InputError("task.start is no gpt", where=str(folder), mend="give a chat run of that family")
    return start


def _rows(recipe: Recipe, start: StoredChat, side: Preferences) -> PreferredRows:
    """The pairs of rows of a side; says what was shortened or left out."""
    max_len = min(recipe.model.max_len, start.model.settings.max_len)
    rows, shortened, left_out = preferred_rows(start, side, max_len, recipe.train)
    if shortened or left_out:
        say(
            f"{shortened:,} prompts lost their oldest turns to fit into {max_len} tokens;"
            f" {left_out:,} preferences that are too long without them were left out"
        )
    return rows


def _plan(model: nn.Module, recipe: Recipe, rows: PreferredRows, bf16: bool) -> str:
    """What the run will need, as lines for a terminal: 6 FLOPs a parameter and token, and 2 for log p at the start."""
    t = recipe.train
    assert isinstance(t.max_steps, int)
    epochs = t.max_steps * t.gradient_accumulation_steps / len(rows)
    total = sum(p.numel() for p in model.parameters())
    flops = total * rows.n_tokens * (6 * epochs + 2)
    width = int(model.settings.d_model)  # type: ignore[union-attr,arg-type]
    low, high = expected_seconds(flops, width, matmul_speed("bfloat16" if bf16 else "float32"))
    return "\n".join(
        f"{label:<11}{value}"
        for label, value in (
            ("model", f"gpt: {quantity(total)} parameters, from {recipe.task.start}"),
            ("data", f"{quantity(rows.n_tokens)} tokens, {quantity(rows.n_learnt)} of them in replies"),
            ("batches", f"{len(rows):,} of up to {t.max_tokens_per_batch:,} tokens"),
            ("run", f"{t.max_steps:,} steps, {epochs:.3g} times the preferences, {t.optim}, beta {t.beta:g}"),
            ("time", f"{duration(low)} to {duration(high)}"),
        )
    )
