"""Dialogue, from conversations to a model that replies: `train_dialogue`, `load_dialogue`, `Chat`.

A run directory is an ordinary transformers model directory of a chat model that also holds how it came to be, and the
conversations it is measured on:

    config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json chat_template.jinja
    README.md recipe.toml facts.json metrics.jsonl scores.json examples.jsonl report.html MANIFEST.json data/
    checkpoints/ (pretraining/)

A GPT learns whole conversations, of which only the assistant's turns and what ends them count; first, if the recipe
says so, all of some text. A model that reads one text and writes another (lstm, t5, marian) learns each reply from what
was said before it. The test part is looked at once, at the end; a share of the rest chooses the best step and the rule
by which replies are ranked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zhixing import __version__
from zhixing.cores import default_threads
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.evaluation.dialogue import (
    PREFERENCE,
    RULES,
    TFIDF,
    choose_rule,
    draw_candidates,
    hits,
    log_mean_exp,
    mean_score,
    preference_scores,
    reply_scores,
    tfidf_scores,
)
from zhixing.evaluation.dialogue_report import write_dialogue_report
from zhixing.evaluation.intervals import Floats, bootstrap_interval
from zhixing.files import MANIFEST, atomic_write, write_manifest
from zhixing.interchange.chat_directory import StoredChat, is_chat, read_chat, write_chat
from zhixing.interchange.model_directory import read_any_model
from zhixing.models.gpt import GPT
from zhixing.models.lora import LoRASettings, add_lora, merge, remove_lora
from zhixing.progress import Progress, duration, quantity, say
from zhixing.recipe import DataSettings, Recipe, TrainSettings, parse_recipe
from zhixing.run import (
    as_begun,
    build_model,
    finished_folder,
    peak_memory,
    precision_line,
    recipe_hash,
    resolve_batches,
    threads_of,
)
from zhixing.seq2seq import build_seq2seq
from zhixing.tasks.chat_template import CONTROLS, DEFAULT_TEMPLATE
from zhixing.tasks.dialogue import (
    Reply,
    Speaker,
    joined_turns,
    preference_turns,
    reply_log_probabilities,
    shorter_histories,
    source_pairs,
    stream_reply,
    training_turns,
    write_replies,
)
from zhixing.text.conversations import (
    Conversations,
    Exchange,
    Message,
    as_messages,
    measurable,
    read_conversations,
    split_conversations,
)
from zhixing.text.preferences import Preferences, holds_preferences, read_preferences
from zhixing.text.readers import read_documents
from zhixing.text.splits import split_documents
from zhixing.tokens.batches import PackedSequences
from zhixing.tokens.paired import PairedTexts
from zhixing.tokens.preferred import PreferredRows
from zhixing.tokens.shards import open_shards, write_shards
from zhixing.tokens.tokenizer import Tokenizer, auto_vocab_size, train_tokenizer
from zhixing.tokens.turns import LearntRows
from zhixing.training.checkpoint import list_steps
from zhixing.training.dpo import log_probabilities_of
from zhixing.training.loop import FitResult, fit, take_best
from zhixing.training.memory import give_back, keep_memory
from zhixing.training.objectives import learnt_tokens, next_token, target_given_source
from zhixing.training.optimizers import make_optimizers
from zhixing.training.parallel import Parallel
from zhixing.training.plan import expected_seconds, matmul_speed, native_bf16

MOST_RANKED = 1000  # test exchanges whose true reply is ranked among others
MOST_WRITTEN = 300  # test exchanges that are replied to
PRIOR_STATEMENTS = 8  # over which p(r) is the mean of p(r | x)
MOST_NEW_TOKENS = 256


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What is learnt from, what chooses the best step, and what measures."""

    train: Conversations
    validation: Conversations
    test: Conversations
    split: str  # how the test part came about


def prepare(recipe: Recipe, run_dir: Path) -> Parts:
    """Read, check and split the conversations; says what it did."""
    d, seed = recipe.data, recipe.train.seed
    if not d.source:
        mend = 'set data.source = "a file, a folder or a data set"'
        raise InputError("the recipe names no conversations", mend=mend)
    every = read_conversations(d.source, d, quarantine=run_dir / "quarantine.jsonl")
    if recipe.task.test:
        train = every
        test = read_conversations(recipe.task.test, d, quarantine=run_dir / "quarantine-test.jsonl")
        test, repeats, near = measurable(train, test)
        if not test:
            why = f"training says what their {repeats + near:,} exchanges say"
            raise InputError("the test conversations measure nothing", where=recipe.task.test, why=why)
        how = (
            f"{len(test):,} test conversations from {recipe.task.test}; not measured: {repeats:,} exchanges that repeat"
            f" what training says and {near:,} that nearly do"
        )
    else:
        train, test, report = split_conversations(every, d.heldout_fraction, seed)
        how = report.summary()
    say(how)
    train, validation, _ = split_conversations(train, recipe.task.validation_fraction, seed + 1, near=False)
    say(f"{len(train):,} conversations to learn from, {len(validation):,} choose the best step, {len(test):,} to test")
    return Parts(train, validation, test, how)


# ---- training --------------------------------------------------------------------------------------------------------


def train_dialogue(asked: Recipe, run_dir: Path, resume: bool, parallel: Parallel) -> Chat:
    """Train what the recipe says into run_dir; called by `zhixing.train`, under the run's lock."""
    torch.set_num_threads(threads_of(asked, parallel))
    keep_memory()
    began = time.perf_counter()
    if parallel.world > 1:
        mend = "start it without torchrun; it uses every core by itself"
        raise InputError("conversations are learnt by one process", mend=mend)
    recipe = as_begun(asked, asked, run_dir) if resume else asked
    parts = prepare(recipe, run_dir)
    (run_dir / MANIFEST).unlink(missing_ok=True)
    atomic_write(run_dir / "recipe.toml", recipe.to_toml())
    tokenizer = _tokenizer(recipe, parts, run_dir)
    torch.manual_seed(recipe.train.seed + 1)  # dropout's noise; initialisation has a generator of its own
    generator = torch.Generator().manual_seed(recipe.train.seed)
    model = _network(recipe, tokenizer, generator)
    speaker = Speaker(model, tokenizer, DEFAULT_TEMPLATE)
    train, validation = (_batches(recipe, speaker, part) for part in (parts.train, parts.validation))
    recipe = resolve_batches(recipe, len(train))
    bf16 = recipe.train.bf16 is True
    say(_plan(model, recipe, train, bf16))
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
    adapter = None
    if recipe.model.lora_rank:
        grew = ("embedding", "lm_head")[: 1 if model.lm_head is None else 2] if _grew(recipe, tokenizer) else ()
        adapter = LoRASettings(rank=recipe.model.lora_rank, alpha=2.0 * recipe.model.lora_rank, trained=grew)
        add_lora(model, adapter, generator)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"of these {quantity(trained)} are trained (LoRA of rank {adapter.rank})")
    smoothing = recipe.train.label_smoothing_factor
    result = fit(
        model,
        target_given_source(smoothing) if speaker.reads_apart else learnt_tokens(smoothing),
        make_optimizers(model, recipe.train, torch.bfloat16 if native_bf16() else torch.float32),
        train,
        validation,
        replace(recipe.train, per_device_train_batch_size=1),  # of the loop's samples, which are whole batches
        replace(recipe.eval, max_sequences=len(validation), per_device_eval_batch_size=1),
        run_dir,
        facts,
        resume=resume,
        bf16=bf16,
        unit="reply tokens",
    )
    result = take_best(model, result, run_dir)
    if adapter:
        merge(model)
        remove_lora(model)
    e = recipe.eval
    stored = StoredChat(model.eval(), tokenizer, DEFAULT_TEMPLATE, e.temperature, e.top_p, e.repetition_penalty)
    chat = Chat(run_dir, stored)
    finish_dialogue(chat, recipe, parts, result, time.perf_counter() - began)
    return chat


def _tokenizer(recipe: Recipe, parts: Parts, run_dir: Path) -> Tokenizer:
    """The run's own from an earlier start, that of the model to start from, one by path, or a new one."""
    folder = run_dir / "data" / "tokenizer"
    if (folder / "tokenizer_config.json").exists():  # the last file that is written
        return Tokenizer.load(folder)
    t = recipe.tokenizer
    if recipe.task.start or t.path:
        tokenizer = Tokenizer.load(Path(recipe.task.start or t.path))
    else:
        texts = [message.content for item in parts.train for message in item.messages]
        if recipe.task.pretrain_source:
            texts += read_documents(recipe.task.pretrain_source, recipe.data)
        size = auto_vocab_size(sum(len(text.encode()) for text in texts)) if t.vocab_size == "auto" else t.vocab_size
        tokenizer = train_tokenizer(texts, t.kind, size, lowercase=t.lowercase)
    tokenizer.add_controls(CONTROLS)
    if recipe.model.family != "gpt" and not tokenizer.with_ends([]):
        tokenizer.end_texts()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    return tokenizer


def _network(recipe: Recipe, tokenizer: Tokenizer, generator: torch.Generator) -> Any:
    """The recipe's model, fresh or with the weights of the run it starts from."""
    if recipe.model.family != "gpt":
        return build_seq2seq(recipe, tokenizer, generator)
    if not recipe.task.start:
        return build_model(recipe, tokenizer, generator)
    start = read_any_model(Path(recipe.task.start))[0]
    if not isinstance(start, GPT):
        raise InputError("task.start is no gpt", where=recipe.task.start, mend="give a run of that family")
    m = recipe.model
    if start.settings.max_len < m.max_len:
        say(f"{recipe.task.start} reads {start.settings.max_len:,} tokens; model.max_len = {m.max_len:,} cannot be")
    max_len = min(m.max_len, start.settings.max_len)
    settings = replace(start.settings, vocab_size=tokenizer.vocab_size, dropout=m.dropout, max_len=max_len)
    model = GPT(settings, generator)
    model.load_state_dict(grown(start, model))
    return model


@torch.no_grad()
def grown(start: GPT, model: GPT) -> dict[str, torch.Tensor]:
    """The weights of `start` for a model of more tokens or fewer positions; a new token begins near the mean of all."""
    fresh = model.state_dict()
    state = {}
    for name, tensor in start.state_dict().items():
        wanted = fresh[name]
        if tensor.shape == wanted.shape:
            state[name] = tensor
        elif name == "positions.weight":
            state[name] = tensor[: wanted.shape[0]]
        else:
            rows = wanted.clone()  # drawn by the generator: small noise
            rows[: len(tensor)] = tensor
            rows[len(tensor) :] += tensor.mean(dim=0)
            state[name] = rows
    return state


def _grew(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    """Whether there are tokens that the model did not have: with LoRA they must be learnt all the same."""
    return not recipe.task.start or Tokenizer.load(Path(recipe.task.start)).vocab_size < tokenizer.vocab_size


Batches = LearntRows | PairedTexts


def _batches(recipe: Recipe, speaker: Speaker, part: Conversations) -> Batches:
    """Batches of conversations, or of what was said before a reply and the reply; says what was cut or left out."""
    t, tokenizer = recipe.train, speaker.tokenizer
    max_len: int = speaker.model.settings.max_len
    if speaker.reads_apart:
        sources, targets, left_out = source_pairs(speaker, part.exchanges())
        if left_out:
            say(f"left out: {left_out:,} exchanges of which a side has more than {max_len} tokens")
        _refuse_nothing(len(sources), max_len)
        return PairedTexts(
            sources, targets, start_id=tokenizer.pad_id, pad_id=tokenizer.pad_id, budget=t.max_tokens_per_batch,
            seed=t.seed,
        )  # fmt: skip
    found = training_turns(tokenizer, speaker.template, [item.messages for item in part], max_len)
    if found.windowed or found.left_out:
        say(
            f"{found.windowed:,} conversations are longer than {max_len} tokens and were cut between turns;"
            f" {found.left_out:,} exchanges that are too long by themselves were left out"
        )
    _refuse_nothing(len(found.rows), max_len)
    return LearntRows(
        [row.ids for row in found.rows], [row.learnt for row in found.rows], pad_id=tokenizer.pad_id,
        budget=t.max_tokens_per_batch, seed=t.seed,
    )  # fmt: skip


def preferred_rows(
    stored: StoredChat, preferences: Preferences, max_len: int, t: TrainSettings
) -> tuple[PreferredRows, int, int]:
    """The pairs of rows of preferences; how many prompts were shortened, and pairs left out, to fit into max_len."""
    tokenizer = stored.tokenizer
    found = preference_turns(tokenizer, stored.template, preferences.items, max_len)
    if not found.places:
        why = f"each has more than {max_len} tokens"
        raise InputError("no preference is short enough", where=preferences.name, why=why, mend="raise model.max_len")
    sides = [[(row.ids, row.learnt) for row in side] for side in (found.chosen, found.rejected)]
    rows = PreferredRows(
        sides[0], sides[1], places=found.places, pad_id=tokenizer.pad_id, budget=t.max_tokens_per_batch, seed=t.seed
    )
    return rows, found.shortened, found.left_out


def _refuse_nothing(count: int, max_len: int) -> None:
    if not count:
        why = f"each exchange has more than {max_len} tokens"
        raise InputError("no conversation is short enough", why=why, mend="raise model.max_len")


def _pretrain(model: GPT, tokenizer: Tokenizer, recipe: Recipe, parts: Parts, run_dir: Path, bf16: bool) -> None:
    """Language modelling before replies are learnt: of task.pretrain_source, else of all turns of the conversations."""
    steps, t = recipe.task.pretrain_steps, recipe.train
    what = recipe.task.pretrain_source or "all that the training conversations say"
    say(f"first {steps:,} steps of language modelling: {what}")
    folder = run_dir / "pretraining"
    settings = replace(
        recipe.pretraining(), eval_steps=max(1, steps // 5), save_steps=max(1, steps // 5),
        per_device_train_batch_size=1,
    )  # fmt: skip
    train: Any
    heldout: Any
    if recipe.task.pretrain_source:
        max_len = model.settings.max_len
        documents = read_documents(recipe.task.pretrain_source, recipe.data)
        for name, some in zip(("train", "heldout"), split_documents(documents, 0.02, t.seed), strict=False):
            if not (folder / name).exists():
                write_shards(some, tokenizer, folder / name)
        train = PackedSequences(open_shards(folder / "train"), max_len, seed=t.seed)
        heldout = PackedSequences(open_shards(folder / "heldout"), max_len, seed=0)
        settings = replace(settings, per_device_train_batch_size=max(1, t.max_tokens_per_batch // max_len))
    else:
        sides = []
        for part in (parts.train, parts.validation):
            rows = joined_turns(tokenizer, DEFAULT_TEMPLATE, part.items, model.settings.max_len)
            every = [[True] * len(ids) for ids in rows]
            sides.append(LearntRows(rows, every, pad_id=tokenizer.pad_id, budget=t.max_tokens_per_batch, seed=t.seed))
        train, heldout = sides
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": tokenizer.fingerprint(),
        "data": parts.train.fingerprint()[:16],
    }
    result = fit(
        model, next_token(), make_optimizers(model, settings, torch.bfloat16 if native_bf16() else torch.float32),
        train, heldout, settings, replace(recipe.eval, max_sequences=32, per_device_eval_batch_size=4), folder, facts,
        resume=(folder / "checkpoints").exists(), bf16=bf16,
    )  # fmt: skip
    take_best(model, result, folder)


def _plan(model: Any, recipe: Recipe, batches: Batches, bf16: bool) -> str:
    """What the run will need, as lines for a terminal: 6 FLOPs a parameter and token."""
    t = recipe.train
    assert isinstance(t.max_steps, int)
    steps: int = t.max_steps
    epochs = steps * t.gradient_accumulation_steps / len(batches)
    total = sum(p.numel() for p in model.parameters())
    pretraining = recipe.task.pretrain_steps * t.max_tokens_per_batch
    flops = 6 * total * (epochs * batches.n_tokens + pretraining)
    low, high = expected_seconds(flops, recipe.model.d_model, matmul_speed("bfloat16" if bf16 else "float32"))
    return "\n".join(
        f"{label:<11}{value}"
        for label, value in (
            ("model", f"{recipe.model.family}: {quantity(total)} parameters"),
            ("data", f"{quantity(batches.n_tokens)} tokens, {quantity(batches.n_targets)} of them in replies"),
            ("batches", f"{len(batches):,} of up to {t.max_tokens_per_batch:,} tokens"),
            ("run", f"{steps:,} steps, {epochs:.3g} times the conversations, {t.optim}"),
            ("time", f"{duration(low)} to {duration(high)}"),
        )
    )


# ---- the end of a run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuning:
    """What a run that was tuned by preferences has beside its replies: scores, facts of its data, words on how."""

    scores: dict[str, Any]
    facts: dict[str, Any]
    start: str  # the hash of the weights that it began with
    words: str


def finish_dialogue(
    chat: Chat, recipe: Recipe, parts: Parts, result: FitResult, seconds: float, *, tuning: Tuning | None = None
) -> None:
    """Measure the best model on the test part, and leave the run directory complete."""
    run_dir, model = chat.path, chat.stored.model
    peak = peak_memory()
    began = time.perf_counter()
    seed = recipe.train.seed
    (run_dir / "data").mkdir(exist_ok=True)
    for name, part in (("test", parts.test), ("validation", parts.validation)):
        atomic_write(run_dir / "data" / f"{name}.jsonl", _lines_of(part))
    draw = np.random.default_rng([seed, 8])
    said = [exchange.before for exchange in parts.train.exchanges()]
    prior = [said[i] for i in draw.choice(len(said), min(PRIOR_STATEMENTS, len(said)), replace=False)]
    chat.ranking = Ranking("pmi", [list(messages) for messages in prior])
    validation = _sample(parts.validation.exchanges(), MOST_RANKED // 2, seed + 2)
    if different_enough(validation):
        given, tokens, log_prior, _ = chat.rank(validation, seed + 2)
        chat.ranking = replace(chat.ranking, rule=choose_rule(given, tokens, log_prior))
    atomic_write(run_dir / "data" / "ranking.json", json.dumps(chat.ranking.to_dict(), ensure_ascii=False, indent=1))
    training = [(exchange.statement, exchange.reply) for exchange in parts.train.exchanges()]
    scores, examples = chat.measured(parts.test, training=training, seed=seed)
    if tuning:
        scores["model"] |= tuning.scores
    speed = "pairs_per_second" if tuning else "reply_tokens_per_second"
    facts = {
        "data": {
            "source": recipe.data.source,
            "train": {"conversations": len(parts.train), "replies": len(training)},
            "validation": {"conversations": len(parts.validation)},
            "test": {"conversations": len(parts.test), "how": parts.split},
            **(tuning.facts if tuning else {"counts": dataclasses.asdict(parts.train.counts)}),
        },
        "model": {
            "family": recipe.model.family,
            "parameters": sum(p.numel() for p in model.parameters()),
            "task": "dialogue",
            **({"start": tuning.start} if tuning else {}),
        },
        "run": {
            "zhixing": __version__,
            "steps": result.step,
            "best_step": result.best_step,
            "ended": result.ended,
            "training_seconds": round(result.seconds, 1),
            speed: round(result.tokens / max(result.seconds, 1e-9)),
            "total_seconds": round(seconds + time.perf_counter() - began, 1),
            "peak_memory_bytes": peak,
            "seed": seed,
        },
    }
    atomic_write(run_dir / "scores.json", json.dumps(scores, ensure_ascii=False, indent=1))
    atomic_write(run_dir / "facts.json", json.dumps(facts, ensure_ascii=False, indent=1))
    atomic_write(run_dir / "examples.jsonl", _json_lines(examples))
    write_chat(run_dir, chat.stored, chat.speaker.end_ids)
    how = f"{tuning.words} of" if tuning else f"on {len(parts.train):,} conversations of"
    atomic_write(run_dir / "README.md", _card(chat, recipe, parts, scores, how))
    write_dialogue_report(run_dir)
    write_manifest(run_dir, {"kind": "dialogue", "step": result.best_step})
    say(scores_text(scores))
    for example in examples[:: max(1, len(examples) // 5)][:5]:
        say(f"\n  said     {example['statement']}\n  given    {example['reference']}\n  written  {example['output']}")
    say(f"\ndone in {duration(seconds + time.perf_counter() - began)}; look at {run_dir / 'report.html'}")
    say(f"next:  zhixing chat {run_dir}")


def _sample(exchanges: Sequence[Exchange], most: int, seed: int) -> list[Exchange]:
    """At most so many of them, drawn by the seed, in their order."""
    if len(exchanges) <= most:
        return list(exchanges)
    chosen = np.random.default_rng([seed, 9]).choice(len(exchanges), most, replace=False)
    return [exchanges[i] for i in sorted(chosen.tolist())]


def different_enough(exchanges: Sequence[Exchange]) -> bool:
    """Whether a reply can be ranked among nine others."""
    return len({" ".join(e.reply.casefold().split()) for e in exchanges}) >= 10


def _lines_of(part: Conversations) -> str:
    return _json_lines(
        [
            {"messages": [m.to_dict() for m in item.messages], "group": item.group or None, "measured": item.measured}
            for item in part
        ]
    )


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def scores_text(scores: dict[str, Any]) -> str:
    """The scores and what stands beside them, for a terminal."""
    model, lines = scores["model"], []

    def row(label: str, found: dict[str, Any] | None, form: str) -> str:
        if not found or found.get("value") is None:
            return f"{label:<34}{'-':>9}"
        low, high = found.get("low"), found.get("high")
        between = "" if low is None or high is None else f"   95 % within {low:{form}} to {high:{form}}"
        return f"{label:<34}{found['value']:>9{form}}{between}"

    if model.get("pairs"):
        for name, (label, _) in PREFERENCE.items():
            lines.append(row(label, model.get(name), ".3f"))
            if found := model.get(f"start_{name}"):
                lines.append(row("  at the start", found, ".3f"))
        lines.append(f"{model['pairs']:,} test preferences")
    lines.append(row("hits at 1 of 10", model.get("hits_at_1"), ".3f"))
    for name, label in TFIDF.items():
        if found := scores.get("baselines", {}).get(name):
            lines.append(row(f"  {label}"[:33], found["hits_at_1"], ".3f"))
    lines.append(row("  by chance", {"value": 0.1}, ".3f"))
    if model.get("rule"):
        lines.append(f"  ranked by {RULES[model['rule']][0]}, chosen on validation exchanges")
    lines.append(row("perplexity of replies", model.get("perplexity"), ".2f"))
    for name, label in (("distinct_1", "distinct-1"), ("distinct_2", "distinct-2")):
        lines.append(f"{label:<34}{model[name]:>9.3f}   of the given replies {model[f'given_{name}']:.3f}")
    length = model["length"]["value"]
    lines.append(f"{'words a reply':<34}{length:>9.2f}   of the given replies {model['given_length']:.2f}")
    lines.append(row("repeat themselves", model.get("repeated"), ".3f"))
    lines.append(row("BLEU", model.get("bleu"), ".2f"))
    lines.append("  BLEU is beside the one reply that was given; a statement has many good ones")
    lines.append(f"{model['n']:,} exchanges, {model['n_written']:,} of them replied to ({model['decoding']})")
    return "\n".join(lines)


def _card(chat: Chat, recipe: Recipe, parts: Parts, scores: dict[str, Any], how: str) -> str:
    """The model card: what it is, what it learnt from, how well it does, and what it is not for."""
    library = "zhixing" if recipe.model.family == "lstm" else "transformers"
    language = scores["model"]["language"]
    start = f", starting from {recipe.task.start!r}" if recipe.task.start else ", trained from nothing"
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: text-generation",
            f"language: {json.dumps([language])}",
            "tags: [conversational]",
            "---",
            f"# {chat.path.name}",
            "",
            f"A {recipe.model.family} that replies{start} with zhixing (知行) {how} {recipe.data.source!r}.",
            "",
            f"Measured on {len(parts.test):,} conversations: {parts.split}.",
            "",
            "```",
            scores_text(scores),
            "```",
            "",
            "It says what people in such conversations might say. It knows nothing, checks nothing, and may say",
            "anything that its training conversations say; nobody should rely on it for advice. The scores hold for",
            "conversations like those of the test part; nothing was measured on others.",
            "",
            "```python",
            "import zhixing",
            f"chat = zhixing.load({str(chat.path)!r})",
            'print(chat("Hello!").text)',
            "```",
            "",
        ]
    )


# ---- using a run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """How replies are ranked: a rule of RULES, and the questions over which p(r) is a mean."""

    rule: str
    prior: list[list[Message]]

    def to_dict(self) -> dict[str, Any]:
        return {"rule": self.rule, "prior": [[m.to_dict() for m in messages] for messages in self.prior]}


@dataclass
class Chat:
    """A model that replies, and one conversation with it: `chat("Hello").text`, and again with what was said so far.

    `reply` answers messages without remembering them. With a history that outgrows the context the oldest turns are
    left out, which is said, and counted in `cut`.
    """

    path: Path
    stored: StoredChat
    messages: list[Message] = field(default_factory=list)  # so far; the first may be the system's
    cut: int = 0  # turns that were left out of the last question
    ranking: Ranking | None = None

    @property
    def model(self) -> Any:
        return self.stored.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.stored.tokenizer

    @cached_property
    def speaker(self) -> Speaker:
        """The model as it is, for scores."""
        return Speaker(self.stored.model, self.stored.tokenizer, self.stored.template)

    @cached_property
    def writer(self) -> Speaker:
        """The model in its fastest form for writing."""
        model = self.stored.model
        if hasattr(model, "for_decoding"):
            model = model.for_decoding()
            give_back()
        return Speaker(model, self.stored.tokenizer, self.stored.template)

    def settings(
        self,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float | None = None,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> DecodingSettings:
        """How a reply is sampled; None: as the run says. A temperature of 0 takes the likeliest token."""
        s = self.stored
        settings = DecodingSettings(
            max_new_tokens=max_new_tokens,
            temperature=s.temperature if temperature is None else temperature,
            top_k=top_k,
            top_p=s.top_p if top_p is None else top_p,
            min_p=min_p,
            repetition_penalty=s.repetition_penalty if repetition_penalty is None else repetition_penalty,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
        )
        settings.check()
        return settings

    @property
    def system(self) -> str:
        """What the system's message says; "" if there is none."""
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        rest = self.messages[1:] if self.system else self.messages
        text = text.strip()
        self.messages = [Message("system", text), *rest] if text else list(rest)

    def reset(self) -> None:
        """Forget what was said; the system's message stays."""
        self.messages = [m for m in self.messages[:1] if m.role == "system"]
        self.cut = 0

    def save(self, path: str | Path) -> None:
        """Write the conversation as a line of jsonl that can be learnt from."""
        row = {"messages": [message.to_dict() for message in self.messages]}
        atomic_write(Path(path), json.dumps(row, ensure_ascii=False) + "\n")

    def __call__(
        self,
        text: str,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float | None = None,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Reply:
        """The reply to a text, after what was said so far; both are remembered."""
        settings = self.settings(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, seed=seed,
        )  # fmt: skip
        question = self._question(text)
        (reply,) = write_replies(self.writer, [question], settings)
        self._remember(question, reply.text, reply.cut)
        return reply

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float | None = None,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The same piece by piece. What came before the stream was left is remembered as the reply."""
        settings = self.settings(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, seed=seed,
        )  # fmt: skip
        question = self._question(text)
        pieces, cut = stream_reply(self.writer, question, settings)
        return self._streamed(question, pieces, cut)

    def _streamed(self, question: list[Message], pieces: Iterator[str], cut: int) -> Iterator[str]:
        written: list[str] = []
        try:
            for piece in pieces:
                written.append(piece)
                yield piece
        finally:
            self._remember(question, "".join(written), cut)

    def reply(self, messages: Sequence[Any], settings: DecodingSettings | None = None) -> Reply:
        """The reply to messages (dicts with role and content), which are not remembered."""
        (reply,) = write_replies(self.writer, [as_messages(list(messages))], settings or self.settings())
        return reply

    def _question(self, text: str) -> list[Message]:
        return as_messages([*self.messages, Message("user", text)])

    def _remember(self, question: list[Message], text: str, cut: int) -> None:
        """An answer of nothing is no turn: the question is forgotten too."""
        if text:
            self.messages = [*question, Message("assistant", text)]
        if cut > self.cut:
            say(f"the context is full: the oldest {cut} turn{'s are' if cut > 1 else ' is'} left out of it")
        self.cut = cut

    # ---- measuring

    def rank(self, exchanges: Sequence[Exchange], seed: int) -> tuple[Floats, Floats, Floats, Any]:
        """log p(r | x), tokens and log p(r) of ten candidates for each exchange, (N, 10) each, and the candidates."""
        assert self.ranking is not None
        speaker = self.speaker
        candidates = draw_candidates([e.reply for e in exchanges], seed)
        replies = [speaker.encode_reply(e.reply) for e in exchanges]
        most = int(speaker.model.settings.max_len) // 2
        end = speaker.end_ids[0]
        replies = [ids if len(ids) <= most else [*ids[: most - 1], end] for ids in replies]
        room = int(speaker.model.longest_source) if speaker.reads_apart else speaker.model.settings.max_len - most
        contexts = [_fitted(speaker, e.before, room) for e in exchanges]
        prior = [_fitted(speaker, messages, room) for messages in self.ranking.prior]
        n, count = candidates.shape
        rows = [(contexts[row], replies[i]) for row in range(n) for i in candidates[row].tolist()]
        rows += [(context, reply) for reply in replies for context in prior]
        with Progress("ranking replies", len(rows), "replies") as progress:
            found = reply_log_probabilities(speaker, [c for c, _ in rows], [r for _, r in rows], progress.update)
        given = found[: n * count].reshape(n, count)
        log_prior = log_mean_exp(found[n * count :].reshape(n, len(prior)))  # (N,)
        tokens = np.array([len(ids) for ids in replies], np.float64)
        return given, tokens[candidates], log_prior[candidates], candidates

    def measured(
        self, conversations: Conversations, *, training: Sequence[tuple[str, str]] = (), seed: int = 0
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Scores on conversations with what stands beside them, and examples of what is written.

        Without `training` pairs there is no baseline: the run does not keep them.
        """
        exchanges = _sample(conversations.exchanges(), MOST_RANKED, seed)
        model: dict[str, Any] = {"n": len(exchanges), "seed": seed}
        baselines: dict[str, Any] = {}
        if self.ranking is not None and different_enough(exchanges):
            given, tokens, log_prior, candidates = self.rank(exchanges, seed)
            model["rule"] = self.ranking.rule
            each = {name: hits(rule(given, tokens, log_prior)) for name, (_, rule) in RULES.items()}
            model["hits_at_1"] = mean_score(each[self.ranking.rule], seed).to_dict()
            model["hits_by_rule"] = {name: float(found.mean()) for name, found in each.items()}
            nll, counts = -given[:, 0], tokens[:, 0]
            if training:
                asked, replies = [e.statement for e in exchanges], [e.reply for e in exchanges]
                for name, found in tfidf_scores(asked, replies, candidates, training).items():
                    baselines[name] = {"hits_at_1": mean_score(hits(found), seed).to_dict()}
            low, high = bootstrap_interval(nll, counts, seed)
            loss = float(nll.sum() / counts.sum())
            model["perplexity"] = {"value": math.exp(loss), "low": _exp(low), "high": _exp(high), "n": len(nll),
                                   "seed": seed}  # fmt: skip
        some = _sample(exchanges, MOST_WRITTEN, seed + 1)
        settings = self.settings(seed=seed, max_new_tokens=64)
        replies_ = write_replies(self.writer, [e.before for e in some], settings)
        written = [reply.text for reply in replies_]
        model |= reply_scores(written, [e.reply for e in some], seed)
        model["n_written"] = len(some)
        model["cut"] = sum(reply.cut > 0 for reply in replies_)
        model["decoding"] = (
            f"temperature {settings.temperature:g}, top_p {settings.top_p:g}, seed {seed}"
            if settings.temperature
            else "greedy"
        )
        examples = [
            {"statement": e.statement, "before": len(e.before) - 1, "reference": e.reply, "output": text}
            for e, text in zip(some, written, strict=True)
        ]
        return {"model": model, "baselines": baselines}, examples

    def preference_scores(self, rows: PreferredRows, beta: float, seed: int = 0) -> dict[str, Any]:
        """Whether replies that are preferred are the more probable ones, and became so since the start."""
        with Progress("log p of the replies", rows.n_pairs, "preferences") as progress:
            given = log_probabilities_of(self.model, rows, watch=progress.update)
        return preference_scores(given, rows.reference, beta, seed)

    def evaluate(self, data: str | None = None) -> dict[str, Any]:
        """Scores on conversations or preferences by name or path; on the run's own test part if not given.

        Preferences are measured beside the reference of the file (ref_chosen_logps and ref_rejected_logps), else beside
        the run's own start where that is still there; else it is only said which reply is the more probable one.
        """
        own = self.path / "data" / "preferences.jsonl"
        kept = DataSettings(duplicates="keep", normalize="none")
        if data is None and own.exists():
            preferences, scores = read_preferences(str(own), kept), self.measured(self.read(None))[0]
        elif data is not None and holds_preferences(data):
            if self.speaker.reads_apart:
                raise InputError("preferences are measured on a gpt", where=str(self.path), mend="give conversations")
            preferences = read_preferences(data, self._data_settings())
            scores = self.measured(preferences.conversations())[0]
        else:
            return self.measured(self.read(data))[0]
        train = self.recipe.train if self.recipe else TrainSettings()
        tuned = self.recipe is not None and self.recipe.task.kind == "preference"
        room = int(self.model.settings.max_len)
        if tuned:  # prompts are shortened as they were for the reference
            assert self.recipe is not None
            room = min(room, self.recipe.model.max_len)
        rows, _, left_out = preferred_rows(self.stored, preferences, room, train)
        if left_out:
            say(f"{left_out:,} preferences that are too long were left out")
        references = [preferences[place].reference for place in rows.places]
        if all(references):
            rows.reference = np.array(references)
        elif tuned and (start := self._start()) is not None:
            rows.reference = log_probabilities_of(start, rows)
        scores["model"] |= self.preference_scores(rows, train.beta)
        return scores

    def _start(self) -> GPT | None:
        """The model that preference tuning began with; None, which is said, where it is not there as it was."""
        assert self.recipe is not None
        folder = Path(self.recipe.task.start)
        try:
            known = json.loads((self.path / "facts.json").read_text(encoding="utf-8"))["model"]["start"]
            found = read_chat(folder) if is_chat(folder) else None
        except (OSError, ValueError, KeyError, TypeError):  # no facts, damaged ones, or a folder that cannot be read
            known = found = None
        if found is None or not isinstance(found.model, GPT) or weights_hash(found.model) != known:
            say(f"{folder} is not there as it was when this run began; nothing is measured beside it")
            return None
        return found.model

    def _data_settings(self) -> DataSettings:
        """How the run reads; bad records of what it only measures are left out, and no file is written for them."""
        settings = self.recipe.data if self.recipe else DataSettings()
        return replace(settings, on_bad_record="skip") if settings.on_bad_record == "quarantine" else settings

    def read(self, data: str | None) -> Conversations:
        """Conversations by name or path; the run's own test part if not given."""
        if data is not None:
            return read_conversations(data, self._data_settings())
        kept = self.path / "data" / "test.jsonl"
        if not kept.exists():
            where, mend = str(self.path), "name a file of conversations"
            raise InputError("this run has no test conversations of its own", where=where, mend=mend)
        return read_conversations(str(kept), DataSettings(duplicates="keep", normalize="none"))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe that made it, where the folder has one."""
        path = self.path / "recipe.toml"
        return parse_recipe(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None

    def show(self) -> str:
        """What the run is and how it went, for a terminal."""
        card = self.path / "README.md"
        return card.read_text(encoding="utf-8") if card.exists() else f"{self.path}: a chat model"


def weights_hash(model: nn.Module) -> str:
    """A hash of all weights: what is measured or learnt beside a start holds beside that very start only."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _exp(value: float) -> float | None:
    """e^x as JSON takes it; None for what is not finite."""
    return math.exp(value) if math.isfinite(value) else None


def _fitted(speaker: Speaker, messages: Sequence[Message], room: int) -> list[int]:
    """Ids of as much of the messages as there is room for; of a statement that is too long alone its end."""
    ids: list[int] = []
    for kept in shorter_histories(messages):
        ids = speaker.encode(kept)
        if len(ids) <= room:
            break
    return ids[-room:]


def load_dialogue(path: str | Path) -> Chat:
    """A trained chat model, or a folder of transformers in a layout we know that has a chat template."""
    folder = finished_folder(path)
    if not is_chat(folder):
        raise InputError("this model has no chat template", where=str(folder), mend="give the run of a chat recipe")
    torch.set_num_threads(default_threads())
    chat = Chat(folder, read_chat(folder))
    ranking = folder / "data" / "ranking.json"
    if ranking.is_file():
        try:
            said = json.loads(ranking.read_text(encoding="utf-8"))
            assert said["rule"] in RULES
            chat.ranking = Ranking(said["rule"], [[Message(m["role"], m["content"]) for m in c] for c in said["prior"]])
        except (ValueError, KeyError, TypeError, AssertionError):
            raise InputError(
                "the file is damaged", where=str(ranking), mend="delete it: nothing is ranked then"
            ) from None
    return chat
