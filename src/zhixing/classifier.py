"""Texts to labels, from data to a model that answers: `train_classifier`, `load_classifier`, `Classifier`, `Sentiment`.

A classifier's run directory holds, beside what every run has (recipe.toml, metrics.jsonl, scores.json, facts.json,
report.html, README.md, MANIFEST.json):

    config.json model.safetensors tokenizer.json | vocabulary.json calibration.json     the model
    members/1-bag/ members/2-textcnn/ ...           of an average: each member, a run's folder without its texts
    data/train.jsonl data/train.minhash                                                 what it learnt from

All families but the bag go through the one loop; the bag has compiled loops of its own (models/bag.py), which touch
only the rows of the text at hand. A part of the training texts is held out to choose the best step and the temperature
of the probabilities; the test texts are looked at once, at the end.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zhixing.cores import default_threads
from zhixing.errors import InputError
from zhixing.evaluation.calibration import fit_temperature
from zhixing.evaluation.card import escaped, markdown_table
from zhixing.evaluation.classification import ClassifierScores
from zhixing.evaluation.classification_report import (
    next_commands,
    shown_interval,
    shown_value,
    text_summary,
    write_classification_report,
)
from zhixing.evaluation.classification_result import MAIN_SCORE, ClassificationResult, baselines, result_scores
from zhixing.evaluation.comparison import Comparison, compare
from zhixing.evaluation.labels import SCORES
from zhixing.evaluation.terminal import wants_colour
from zhixing.explain.average import averaged
from zhixing.explain.explain import explain, label_scores
from zhixing.explain.explanation import Explanation, Method
from zhixing.explain.nearest import WordIndex
from zhixing.explain.ngram_spans import NgramSpans
from zhixing.files import MANIFEST, atomic_write, clear_leftovers, verify_manifest, write_manifest
from zhixing.interchange.adapter_directory import FOLDER as ADAPTER
from zhixing.interchange.adapter_directory import write_label_facts
from zhixing.interchange.classifier_directory import (
    MEMBERS,
    Member,
    StoredClassifier,
    is_classifier,
    read_classifier,
    write_classifier,
)
from zhixing.interchange.model_directory import read_any_model
from zhixing.interchange.peft_adapter import write_adapter
from zhixing.interchange.transformers_layout import LabelFacts
from zhixing.interchange.word_vector_files import read_word_vectors
from zhixing.models.bag import BagClassifier, BagTraining, predict_bag
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM, BertSettings
from zhixing.models.bert import layer_of as bert_layer_of
from zhixing.models.gpt import GPT, GPTClassifier, GPTClassifierSettings, GPTSettings
from zhixing.models.gpt import layer_of as gpt_layer_of
from zhixing.models.lora import LoRASettings, add_lora, merge, remove_lora
from zhixing.models.lstm import LSTMClassifier, LSTMClassifierSettings
from zhixing.models.textcnn import TextCNNClassifier, TextCNNSettings
from zhixing.progress import Progress, duration, quantity, say
from zhixing.recipe import Recipe, member_recipes
from zhixing.run import (
    MOST_STEPS,
    as_begun,
    finished_folder,
    peak_memory,
    precision_line,
    recipe_hash,
    threads_of,
)
from zhixing.tasks.bag import Bag, train_bag
from zhixing.tasks.classification import (
    THRESHOLD,
    OnTooLong,
    Prediction,
    ProblemType,
    encode_texts,
    predictions,
    probabilities_of,
    text_logits,
)
from zhixing.text.catalogue import dataset_files, fetch_dataset, list_datasets
from zhixing.text.catalogue import names as dataset_names
from zhixing.text.cleaning import BANDS
from zhixing.text.labelled import (
    LabelledSettings,
    LabelledText,
    LabelledTexts,
    LeakageReport,
    check_labels,
    has_test_part,
    leakage,
    read_labelled,
    signatures,
    split_labelled,
)
from zhixing.tokens.bucketed import BucketedTexts
from zhixing.tokens.ngrams import NgramSettings, NgramVocabulary
from zhixing.tokens.shards import open_shards, write_shards
from zhixing.tokens.tokenizer import Tokenizer, auto_vocab_size, train_tokenizer
from zhixing.training.checkpoint import list_steps
from zhixing.training.loop import FitResult, fit, take_best
from zhixing.training.masking import MaskedSequences, masked_tokens
from zhixing.training.memory import return_memory
from zhixing.training.objectives import IGNORED, label_texts
from zhixing.training.optimizers import layer_rates, make_optimizers
from zhixing.training.parallel import Parallel
from zhixing.training.plan import d_ff, n_kv_heads, native_bf16

HELD = "validation.npy"  # of a member of an average: its probabilities of the validation texts, before it learnt them
SIGNATURES = "train.minhash"  # beside the training texts and in their order: numbers that a near repeat shares
LABELS_TOLD = 60  # in the model card
NOT_LEARNT = ("report", "personal_data")


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What is learnt from, what chooses, and what measures."""

    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts
    leaked: LeakageReport
    split: str  # how the test part came about
    signatures: NDArray[np.uint32]  # of the texts in train, then of those in validation where they are others

    @property
    def problem(self) -> ProblemType:
        return self.train.problem_type

    @property
    def labels(self) -> tuple[str, ...]:
        """All that are learnt, in the order of the outputs; one name, of the number, for regression."""
        if self.problem == "regression":
            return ("value",)
        return tuple(sorted({*self.train.labels, *self.validation.labels}))


def labelled_settings(recipe: Recipe) -> LabelledSettings:
    """How the recipe reads rows."""
    d = recipe.data
    return LabelledSettings(
        d.text_column, d.label_column, d.label_separator, d.score_column, d.on_bad_record, d.normalize
    )


def prepare(recipe: Recipe) -> Parts:
    """Read, split and compare the texts; says what it did."""
    settings, seed = labelled_settings(recipe), recipe.train.seed
    texts = read_labelled(recipe.data.source, settings)
    if recipe.task.test:
        test, how = read_labelled(recipe.task.test, settings, part="test"), f"from {recipe.task.test}"
    elif has_test_part(recipe.data.source):
        test, how = read_labelled(recipe.data.source, settings, part="test"), "the test part that the data set ships"
    else:
        split = split_labelled(texts, recipe.data.heldout_fraction, seed)
        texts, test, how = split.train, split.heldout, split.report.summary()
    check_labels(texts.labels, test)
    _check_kind(texts.problem_type, test)
    marks = signatures(texts)
    leaked = leakage(texts, test, marks)
    train, validation, _ = _validation(texts, recipe.task.validation_fraction, seed)
    row = {place: number for number, place in enumerate(texts.places)}
    learnt = [*train.places, *(validation.places if validation is not train else [])]
    say(f"{len(texts):,} texts to learn from ({len(validation):,} of them choose the best step), {len(test):,} to test")
    say(f"test: {how}")
    say(leaked.summary())
    return Parts(train, validation, test, leaked, how, marks[[row[place] for place in learnt]])


def _check_kind(problem_type: ProblemType, texts: LabelledTexts) -> None:
    """InputError where texts do not have what a model of this problem can be measured on."""
    for item, place in zip(texts, texts.places, strict=True):
        if problem_type == "regression" and item.score is None:
            raise InputError("the text has no score", where=place, why="the model gives numbers, not labels")
        if problem_type == "single_label_classification" and len(item.labels) > 1:
            raise InputError(
                f"the text has {len(item.labels)} labels, the model gives one",
                where=place,
                mend="leave one label a text, or train with texts of several",
            )
        if problem_type != "regression" and item.score is not None and not item.labels:
            raise InputError("the text has a score and no label", where=place, why="the model gives labels")


def _validation(texts: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts, str]:
    """A share of the training texts that is not learnt from, by the hash of the seed and the place."""
    if fraction == 0 or len(texts) < 20:
        return texts, texts, "the training texts themselves"
    order = np.random.default_rng([seed, 7]).permutation(len(texts))
    count = max(1, round(fraction * len(texts)))
    return texts.pick(sorted(order[count:].tolist())), texts.pick(sorted(order[:count].tolist())), ""


def targets_of(texts: LabelledTexts, labels: Sequence[str], problem_type: ProblemType) -> Tensor:
    """(N,) class ids, (N, C) zeros and ones, or (N,) numbers."""
    if problem_type == "regression":
        return torch.tensor([math.nan if item.score is None else item.score for item in texts], dtype=torch.float32)
    number = {label: place for place, label in enumerate(labels)}
    if problem_type == "single_label_classification":
        return torch.tensor([number[item.labels[0]] if item.labels else IGNORED for item in texts])
    table = torch.zeros(len(texts), len(labels))
    for row, item in enumerate(texts):
        table[row, [number[label] for label in item.labels]] = 1.0
    return table


def class_weights(texts: LabelledTexts, labels: Sequence[str]) -> dict[str, float]:
    """N / (C n_c): a class weighs the more, the fewer texts it has (King & Zeng 2001)."""
    counts = texts.label_counts
    return {label: len(texts) / (len(labels) * counts.get(label, 1)) for label in labels}


# ---- training --------------------------------------------------------------------------------------------------------


def train_classifier(asked: Recipe, run_dir: Path, resume: bool, parallel: Parallel) -> Classifier:
    """Train what the recipe says into run_dir; called by `zhixing.train`, under the run's lock."""
    torch.set_num_threads(threads_of(asked, parallel))
    return_memory()
    began = time.perf_counter()
    if parallel.world > 1:
        raise InputError(
            "a classifier is trained by one process", mend="start it without torchrun; it uses every core by itself"
        )
    recipe = as_begun(asked, asked, run_dir) if resume else asked
    members = member_recipes(recipe)  # what is wrong with one is said before anything is read or changed
    if resume:
        members = [as_begun(own, own, run_dir / MEMBERS / _member_name(n, own)) for n, own in enumerate(members, 1)]
    if resume and recipe.model.family in ("bag", "average") and finished(run_dir):
        say("this run is finished; nothing is trained again")
        return load_classifier(run_dir)
    if resume and recipe.model.family == "bag":
        same = "to the same bytes" if recipe.bag.threads == 1 else "with other bits, as bag.threads is above 1"
        say(f"a bag trains in seconds and keeps no checkpoints: it is trained again from its start, {same}")
    parts = prepare(recipe)
    if (recipe.task.kind == "regression") != (parts.problem == "regression"):
        raise InputError(
            f"task.kind is {recipe.task.kind}",
            why=f"the texts are those of a {parts.problem}",
            mend='set task.kind = "regression", or leave out data.score_column',
        )
    (run_dir / MANIFEST).unlink(missing_ok=True)  # nothing is refused any more
    atomic_write(run_dir / "recipe.toml", recipe.to_toml())
    train_began = time.perf_counter()
    if members:
        trained = _train_average(recipe, members, parts, run_dir, resume)
    else:
        trained = _train_one(recipe, parts, run_dir, resume)
    training_seconds = time.perf_counter() - train_began
    classifier = Classifier(run_dir, trained.stored, recipe.task.on_too_long)
    _finish(classifier, recipe, parts, trained.result, training_seconds, time.perf_counter() - began)
    return classifier


@dataclass(frozen=True)
class Trained:
    """held: what a model that has not learnt from the validation texts makes of them, calibrated (N, C); if known."""

    stored: StoredClassifier
    result: FitResult | None
    held: NDArray[np.float64] | None


def finished(run_dir: Path) -> bool:
    """Whether the run is whole: its manifest is written last, and every file is as it says."""
    if not (run_dir / MANIFEST).exists():
        return False
    try:
        verify_manifest(run_dir)
    except ValueError as error:
        say(f"the run was finished and is damaged since ({error})")
        return False
    return True


def _train_one(recipe: Recipe, parts: Parts, run_dir: Path, resume: bool) -> Trained:
    if recipe.model.family == "bag":
        return _train_bag(recipe, parts, run_dir)
    return _train_network(recipe, parts, run_dir, resume)


def _member_name(number: int, own: Recipe) -> str:
    return f"{number}-{own.model.family}"


def _train_average(recipe: Recipe, recipes: Sequence[Recipe], parts: Parts, run_dir: Path, resume: bool) -> Trained:
    """Each member in turn, in a folder of its own; one that an earlier start has finished is taken as it is.

    The mean of calibrated probabilities is less sure than it could be (Rahaman & Thiery 2021), so it gets a temperature
    of its own, from what the members made of texts that none of them had learnt from.
    """
    members, held = [], []
    weights = recipe.average.weights or [1.0] * len(recipes)
    for number, (own, weight) in enumerate(zip(recipes, weights, strict=True), 1):
        name = _member_name(number, own)
        folder = run_dir / MEMBERS / name
        say(f"member {number} of {len(recipes)}: {recipe.average.members[number - 1]}")
        for swept in (folder, folder / "checkpoints"):  # the lock, which is held, swept those of the whole run only
            clear_leftovers(swept, alone=True)
        if resume and finished(folder):
            say("it is finished already")
            stored = read_classifier(folder)
            found = np.load(folder / HELD) if (folder / HELD).exists() else None
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)
            (folder / HELD).unlink(missing_ok=True)
            atomic_write(folder / "recipe.toml", own.to_toml())
            began = time.perf_counter()
            try:
                trained = _train_one(own, parts, folder, resume)
            except SystemExit:
                say(f"that was member {number}; go on with the whole:  zhixing train ... --out {run_dir} --resume")
                raise
            stored, found = trained.stored, trained.held
            write_classifier(folder, stored)
            if found is not None:
                written = io.BytesIO()
                np.save(written, found)
                atomic_write(folder / HELD, written.getvalue())
            write_manifest(folder, {"kind": "classifier", "step": trained.result.best_step if trained.result else 0})
            say(f"member {number} took {duration(time.perf_counter() - began)}")
        members.append(Member(name, weight, stored))
        held.append(found)
    atomic_write(run_dir / "metrics.jsonl", "")
    known = [probabilities for probabilities in held if probabilities is not None]
    mean = sum(w / sum(weights) * p for w, p in zip(weights, known, strict=True)) if len(known) == len(held) else None
    models = nn.ModuleList([member.stored.model for member in members]).eval()
    whole = StoredClassifier(models, None, parts.labels, parts.problem, 1.0, tuple(members))
    if isinstance(mean, np.ndarray):
        targets = targets_of(parts.validation, parts.labels, parts.problem).numpy()
        whole = replace(whole, temperature=fit_temperature(_as_logits(mean, parts.problem), targets))
    return Trained(whole, None, None)


def _pairs(texts: LabelledTexts) -> list[tuple[str, tuple[str, ...]]]:
    if texts.problem_type == "regression":
        return [(item.text, (repr(item.score),)) for item in texts]
    return [(item.text, item.labels) for item in texts]


def _train_bag(recipe: Recipe, parts: Parts, run_dir: Path) -> Trained:
    """One bag without the validation texts finds the temperature, then one learns from all of them."""
    b, problem = recipe.bag, parts.problem
    if recipe.train.max_steps != "auto":
        say(f"a bag learns in epochs, {b.epochs} of them (bag.epochs): train.max_steps counts for nothing")
    ngrams = NgramSettings(b.words, b.ngrams, b.buckets, b.min_count, b.lowercase, b.once, b.min_chars, b.max_chars)
    training = BagTraining(
        epochs=b.epochs, learning_rate=b.learning_rate, start=b.start, rates=b.rates, rates_power=b.rates_power,
        dropout=b.dropout, threads=b.threads, seed=recipe.train.seed,
    )  # fmt: skip
    whole = replace(
        parts.train,
        texts=[*parts.train.texts, *(parts.validation.texts if parts.validation is not parts.train else [])],
        places=[*parts.train.places, *(parts.validation.places if parts.validation is not parts.train else [])],
    )

    ova = b.loss == "ova" and problem == "single_label_classification"
    learnt: ProblemType = "multi_label_classification" if ova else problem

    def fitted(texts: LabelledTexts) -> Bag:
        balanced = recipe.task.class_weights == "balanced" and problem != "regression"
        weights = class_weights(texts, texts.labels) if balanced else None
        return train_bag(
            _pairs(texts), ngrams, training, problem=learnt, d_model=recipe.model.d_model, power=b.power,
            class_weights=weights,
        )  # fmt: skip

    temperature, held = 1.0, None
    same_labels = set(parts.train.labels) == set(whole.labels)
    if parts.validation is not parts.train and problem != "regression" and same_labels:
        first = fitted(parts.train)
        found = _as_logits(first.predict([item.text for item in parts.validation]), learnt)
        temperature = fit_temperature(found, targets_of(parts.validation, first.labels, problem).numpy())
        held = probabilities_of(found, problem, temperature)
    bag = fitted(whole)
    atomic_write(run_dir / "metrics.jsonl", "")
    stored = StoredClassifier(bag.classifier().eval(), bag.vocabulary, bag.labels, problem, temperature)
    return Trained(stored, None, held)


def _as_logits(probabilities: NDArray[Any], problem: ProblemType) -> NDArray[np.float64]:
    """Logits that give these probabilities; numbers stay numbers."""
    p = probabilities.astype(np.float64)
    if problem == "regression":
        return p
    p = p.clip(1e-12, 1 - 1e-12)
    result: NDArray[np.float64] = np.log(p) - np.log1p(-p) if problem == "multi_label_classification" else np.log(p)
    return result


def _train_network(recipe: Recipe, parts: Parts, run_dir: Path, resume: bool) -> Trained:
    seed, labels, problem = recipe.train.seed, parts.labels, parts.problem
    torch.manual_seed(seed + 1)  # dropout's noise; initialisation has a generator of its own
    generator = torch.Generator().manual_seed(seed)
    tokenizer = _tokenizer(recipe, parts, run_dir)
    model = _network(recipe, tokenizer, len(labels), generator)
    max_len = model.settings.max_len
    sides = []
    for texts in (parts.train, parts.validation):
        encoded = encode_texts(
            [item.text for item in texts], tokenizer, max_len, recipe.task.on_too_long, places=texts.places
        )
        owners = torch.from_numpy(encoded.owners)
        size = recipe.train.per_device_train_batch_size
        sides.append(
            BucketedTexts(encoded.rows, targets_of(texts, labels, problem)[owners], tokenizer.pad_id, size, seed)
        )
        if encoded.too_long:
            did = {"truncate": "cut", "split": "split"}[recipe.task.on_too_long]
            say(f"{encoded.too_long:,} of {len(texts):,} texts are longer than {max_len} tokens and were {did}")
    if recipe.task.on_too_long == "error":  # said now, not after the training
        encode_texts([item.text for item in parts.test], tokenizer, max_len, "error", places=parts.test.places)
    recipe = _resolved(recipe, len(sides[0]))
    bf16 = recipe.train.bf16 is True
    if recipe.task.pretrain_steps and not list_steps(run_dir):  # else the checkpoint has what came of it
        assert isinstance(model, BertClassifier)
        _pretrain(model, tokenizer, recipe, parts, run_dir, bf16)
    adapter = _lora(model, recipe.model.lora_rank)
    if adapter:
        add_lora(model, adapter, generator)
    rates = None
    if recipe.model.freeze_layers or recipe.train.layer_decay != 1:
        depths = depths_of(model)
        freeze_below(model, depths, recipe.model.freeze_layers)
        rates = layer_rates(depths, recipe.train.layer_decay)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(
        f"{recipe.model.family}: {quantity(sum(p.numel() for p in model.parameters()))} parameters"
        f" ({quantity(trained)} trained), {recipe.train.max_steps} steps of"
        f" {recipe.train.per_device_train_batch_size} texts"
    )
    say(precision_line(recipe, bf16, False))
    weights = None
    if recipe.task.class_weights == "balanced" and problem != "regression":
        by_label = class_weights(parts.train, labels)
        weights = torch.tensor([by_label[label] for label in labels])
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": tokenizer.fingerprint(),
        "data": parts.train.fingerprint()[:16],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": "bfloat16" if bf16 else "float32",
    }
    result = fit(
        model,
        label_texts(problem, weights, recipe.train.label_smoothing_factor),
        make_optimizers(model, recipe.train, torch.bfloat16 if native_bf16() else torch.float32, rates),
        sides[0],
        sides[1],
        recipe.train,
        replace(recipe.eval, max_sequences=len(sides[1])),
        run_dir,
        facts,
        resume=resume,
        bf16=bf16,
        unit="labels" if problem == "multi_label_classification" else "texts",
    )
    result = take_best(model, result, run_dir)
    if adapter:
        if recipe.task.start:
            write_adapter(run_dir / ADAPTER, model, adapter, recipe.task.start)
        merge(model)
        remove_lora(model)
    stored, held = StoredClassifier(model.eval(), tokenizer, labels, problem, 1.0), None
    if problem != "regression" and parts.validation is not parts.train:
        logits = Classifier(run_dir, stored, recipe.task.on_too_long).logits([item.text for item in parts.validation])
        stored = replace(
            stored, temperature=fit_temperature(logits, targets_of(parts.validation, labels, problem).numpy())
        )
        held = probabilities_of(logits, problem, stored.temperature)
    if adapter and recipe.task.start:
        write_label_facts(run_dir / ADAPTER, LabelFacts(labels, problem), stored.temperature)
    return Trained(stored, result, held)


def _lora(model: nn.Module, rank: int) -> LoRASettings | None:
    """The head is new, and so may be the pooler that it reads through: both are trained whole."""
    if not rank:
        return None
    modules = dict(model.named_modules())
    new = [
        name for name in ("encoder.pooler", "pre_classifier", "classifier", "score") if modules.get(name) is not None
    ]
    return LoRASettings(rank=rank, alpha=2.0 * rank, trained=tuple(new))


def depths_of(model: nn.Module) -> dict[str, int]:
    """How deep each parameter of a bert or gpt classifier stands: embeddings 0, blocks from 1, heads the most."""
    if isinstance(model, BertClassifier):
        return {name: bert_layer_of(name, model.settings) for name, _ in model.named_parameters()}
    if isinstance(model, GPTClassifier):
        return {name: gpt_layer_of(name, model.settings.gpt) for name, _ in model.named_parameters()}
    raise InputError("this family has no layers by depth", mend='set model.family = "bert" or "gpt"')


def freeze_below(model: nn.Module, depths: dict[str, int], count: int) -> None:
    """Leave the `count` lowest layers as they are, the embeddings being the first; no gradient is computed for them."""
    top = max(depths.values())
    if count > top:
        raise InputError(
            f"model.freeze_layers is {count}, and nothing but a head has layers above",
            why=f"the model has its embeddings and {top - 1} blocks",
            mend=f"set it to {top} or less",
        )
    for name, parameter in model.named_parameters():
        if depths[name] < count:
            parameter.requires_grad_(False)


def _tokenizer(recipe: Recipe, parts: Parts, run_dir: Path) -> Tokenizer:
    """The run's own from an earlier start, that of the model to start from, one by path, or a new one."""
    if (run_dir / "data" / "tokenizer" / "tokenizer_config.json").exists():  # the last file that is written
        return Tokenizer.load(run_dir / "data" / "tokenizer")
    if recipe.task.start or recipe.tokenizer.path:
        tokenizer = Tokenizer.load(_folder(recipe.task.start) if recipe.task.start else Path(recipe.tokenizer.path))
    else:
        texts = [item.text for item in parts.train]
        t = recipe.tokenizer
        size = auto_vocab_size(sum(len(text.encode()) for text in texts)) if t.vocab_size == "auto" else t.vocab_size
        tokenizer = train_tokenizer(texts, t.kind, size, lowercase=t.lowercase)
    (run_dir / "data" / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(run_dir / "data" / "tokenizer")
    return tokenizer


def _folder(model: str) -> Path:
    """A run or model folder by its path, or by the name it has in the catalogue (fetched if it is not here)."""
    named = any(entry.name == model and entry.task == "model" for entry in list_datasets())
    return fetch_dataset(model) if named else Path(model)


def _network(recipe: Recipe, tokenizer: Tokenizer, n_labels: int, generator: torch.Generator) -> Any:
    """The recipe's model, fresh or with the weights of the model it starts from."""
    m, size = recipe.model, tokenizer.vocab_size
    start = read_any_model(_folder(recipe.task.start))[0] if recipe.task.start else None
    longest = start.settings.max_len if start is not None else m.max_len
    if longest < m.max_len:
        say(f"{recipe.task.start} reads {longest:,} tokens at most; model.max_len = {m.max_len:,} cannot be")
        m = replace(m, max_len=longest)
    if m.family == "bert":
        settings = BertSettings(size, d_model=m.d_model, n_layers=m.n_layers, n_heads=m.n_heads,
                                d_ff=4 * m.d_model if m.d_ff == "auto" else m.d_ff, max_len=m.max_len,
                                dropout=m.dropout, n_labels=n_labels)  # fmt: skip
        if start is None:
            return BertClassifier(settings, generator)
        encoder = start if isinstance(start, Bert) else getattr(start, "encoder", None)
        if not isinstance(encoder, Bert):
            raise InputError("task.start is no bert", where=recipe.task.start, mend="give a folder of that family")
        shorter = replace(encoder.settings, n_labels=n_labels, dropout=m.dropout, max_len=m.max_len)
        model = BertClassifier(shorter, generator)
        tensors = encoder.state_dict()
        tensors["positions.weight"] = tensors["positions.weight"][: shorter.max_len]
        model.encoder.load_state_dict(tensors, strict=False)
        return model
    if m.family == "gpt":
        if start is not None and not isinstance(start, GPT):
            raise InputError("task.start is no gpt", where=recipe.task.start, mend="give a run of that family")
        if start is None:
            gpt = GPTSettings(
                size, m.layout, m.d_model, m.n_layers, m.n_heads, n_kv_heads(m), d_ff(m), m.max_len, m.dropout
            )
        else:
            gpt = replace(start.settings, dropout=m.dropout, max_len=m.max_len)
        classifier = GPTClassifier(GPTClassifierSettings(gpt, n_labels), generator)
        if start is not None:
            classifier.start_from(start)
        return classifier
    model_: TextCNNClassifier | LSTMClassifier
    if m.family == "textcnn":
        model_ = TextCNNClassifier(
            TextCNNSettings(size, n_labels, m.d_model, m.max_len, n_filters=m.n_filters, dropout=m.dropout,
                            freeze_embeddings=m.freeze_embeddings), generator)  # fmt: skip
    else:
        model_ = LSTMClassifier(
            LSTMClassifierSettings(size, n_labels, m.d_model, m.d_model, m.n_layers, m.max_len, m.dropout,
                                   m.freeze_embeddings), generator)  # fmt: skip
    if m.embeddings:
        words = [tokenizer.decode([i]).strip() for i in range(size)]
        file = dataset_files(m.embeddings)[0] if m.embeddings in dataset_names() else Path(m.embeddings)
        model_.load_embeddings(*read_word_vectors(file, words))
    return model_


def _pretrain(
    model: BertClassifier, tokenizer: Tokenizer, recipe: Recipe, parts: Parts, run_dir: Path, bf16: bool
) -> None:
    """Masked language modelling on the training texts, unlabelled, before their labels (Gururangan et al. 2020)."""
    say(f"first {recipe.task.pretrain_steps} steps of masked language modelling on the training texts")
    folder = run_dir / "pretraining"
    shards = []
    for name, texts in (("train", parts.train), ("heldout", parts.validation)):
        if not (folder / name).exists():
            write_shards([item.text for item in texts], tokenizer, folder / name)
        shards.append(open_shards(folder / name))
    length = model.settings.max_len
    masked = BertMaskedLM(replace(model.settings, n_labels=0), torch.Generator().manual_seed(recipe.train.seed))
    steps = recipe.task.pretrain_steps
    settings = replace(
        recipe.pretraining(), eval_steps=max(1, steps // 10), save_steps=max(1, steps // 4),
        label_smoothing_factor=0.0,
    )  # fmt: skip
    facts = {
        "recipe": recipe_hash(recipe),
        "tokenizer": tokenizer.fingerprint(),
        "data": parts.train.fingerprint()[:16],
    }
    result = fit(
        masked, masked_tokens(), make_optimizers(masked, settings, torch.bfloat16 if native_bf16() else torch.float32),
        MaskedSequences(shards[0], tokenizer, length, recipe.train.seed),
        MaskedSequences(shards[1], tokenizer, length, 0), settings, recipe.eval, folder, facts,
        resume=(folder / "checkpoints").exists(), bf16=bf16,
    )  # fmt: skip
    if result.ended == "signal":
        say(f"go on with:  zhixing train ... --out {run_dir} --resume")
        raise SystemExit(result.exit_code)
    model.encoder.load_state_dict(masked.encoder.state_dict(), strict=False)


def _resolved(recipe: Recipe, n_rows: int) -> Recipe:
    """Every "auto" of training as a value."""
    t = recipe.train
    per_step = t.per_device_train_batch_size * t.gradient_accumulation_steps
    steps = min(MOST_STEPS, max(1, math.ceil(t.num_train_epochs * n_rows / per_step)))
    steps = steps if t.max_steps == "auto" else t.max_steps
    often = max(1, math.ceil(steps / 20))
    return replace(
        recipe,
        train=replace(
            t,
            max_steps=steps,
            eval_steps=often if t.eval_steps == "auto" else t.eval_steps,
            save_steps=often if t.save_steps == "auto" else t.save_steps,
            bf16=native_bf16() if t.bf16 == "auto" else t.bf16,
            compile=False,
            threads=torch.get_num_threads(),
        ),
    )


def _finish(
    classifier: Classifier,
    recipe: Recipe,
    parts: Parts,
    result: FitResult | None,
    training_seconds: float,
    seconds: float,
) -> None:
    """Measure on the test texts and leave the run directory complete."""
    run_dir, stored = classifier.path, classifier.stored
    began = time.perf_counter()
    parameters = sum(p.numel() for p in stored.model.parameters())
    facts: dict[str, Any] = {
        "data": {
            "source": recipe.data.source,
            "train": {"documents": len(parts.train) + len(parts.validation) * (parts.validation is not parts.train)},
            "test": {
                "documents": len(parts.test),
                "how": parts.split,
                "exact_duplicates": parts.leaked.exact,
                "near_duplicates": parts.leaked.near,
                **({"counts": dataclasses.asdict(parts.test.counts)} if _own_counts(parts) else {}),
            },
            "counts": dataclasses.asdict(parts.train.counts),
        },
        "model": {
            "family": recipe.model.family,
            "parameters": parameters,
            "labels": list(stored.labels),
            **({"members": _members_told(recipe, stored)} if stored.members else {}),
        },
        "run": {
            "training_seconds": round(training_seconds, 1),
            "total_seconds": round(seconds, 1),
            "peak_memory_bytes": peak_memory(),
            "seed": recipe.train.seed,
            "temperature": stored.temperature,
            **({"steps": result.step, "best_step": result.best_step, "ended": result.ended} if result else {}),
        },
    }
    answers = classifier.result(parts.test, name=run_dir.name, facts=facts, seed=recipe.train.seed, train=parts.train)
    facts["run"]["texts_per_second"] = round(len(parts.test) / (time.perf_counter() - began), 1)
    scores = result_scores(answers)
    written = {"model": scores.to_dict(), "baselines": baselines(answers)}
    atomic_write(run_dir / "scores.json", json.dumps(written, ensure_ascii=False, indent=1))
    atomic_write(run_dir / "facts.json", json.dumps(facts, ensure_ascii=False, indent=1))
    rows = (
        {"text": item.text, "labels": list(item.labels), "score": item.score, "group": item.group}
        for texts in ((parts.train, parts.validation) if parts.validation is not parts.train else (parts.train,))
        for item in texts
    )
    (run_dir / "data").mkdir(exist_ok=True)
    atomic_write(run_dir / "data" / SIGNATURES, parts.signatures.tobytes())
    atomic_write(run_dir / "data" / "train.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    atomic_write(
        run_dir / "data" / "test.jsonl",
        "".join(
            json.dumps({"text": i.text, "labels": list(i.labels), "score": i.score}, ensure_ascii=False) + "\n"
            for i in parts.test
        ),
    )
    write_classifier(run_dir, stored)
    write_classification_report(run_dir / "report.html", answers, run_dir=run_dir, scores=scores)
    atomic_write(run_dir / "README.md", _card(run_dir, recipe, parts, scores, written["baselines"], facts))
    write_manifest(run_dir, {"kind": "classifier", "step": result.best_step if result else 0})
    say(text_summary(answers, scores=scores, colour=wants_colour(stream=sys.stderr)))
    say(f"done in {duration(seconds)}; look at {run_dir / 'report.html'}")
    say(f"next:  {next_commands(answers, run_dir)[0][1]} --explain")


def _own_counts(parts: Parts) -> bool:
    """Whether the test texts were read for themselves: a part of what was read once shares its counts."""
    return parts.test.counts is not parts.train.counts


def _members_told(recipe: Recipe, stored: StoredClassifier) -> list[dict[str, Any]]:
    """What an average is of: each member's folder, recipe, weight and own temperature."""
    return [
        {"folder": m.name, "recipe": text, "weight": m.weight, "temperature": m.stored.temperature}
        for text, m in zip(recipe.average.members, stored.members, strict=True)
    ]


def _card(
    run_dir: Path,
    recipe: Recipe,
    parts: Parts,
    scores: ClassifierScores,
    others: dict[str, float],
    facts: dict[str, Any],
) -> str:
    """The model card: what it is, what it learnt from, how well it does, and what it is not for.

    Labels, names and paths come from outside: they are escaped, or stand in code.
    """
    rows = [
        (name, shown_value(name, score.value), shown_interval(name, score)) for name, score in scores.scores.items()
    ]
    labels = ", ".join(escaped(label) for label in facts["model"]["labels"][:LABELS_TOLD])
    left_out = len(facts["model"]["labels"]) - LABELS_TOLD
    members = [
        (f"members/{m['folder']}", m["recipe"], f"{m['weight']:g}", f"{m['temperature']:.3f}")
        for m in facts["model"].get("members", [])
    ]
    main = MAIN_SCORE[parts.problem]
    beside = ", ".join(f"{escaped(name)} {shown_value(main, value)}" for name, value in others.items())
    calibrated = (
        ""
        if parts.problem == "regression"
        else f"Probabilities are calibrated by a temperature of {facts['run']['temperature']:.3f}. "
    )
    return "\n".join(
        [
            "---",
            "library_name: zhixing",
            "pipeline_tag: text-classification",
            "---",
            f"# {escaped(run_dir.name)}",
            "",
            f"A text classifier of the family {recipe.model.family}, trained with zhixing (知行) on"
            f" {facts['data']['train']['documents']:,} texts of {escaped(repr(recipe.data.source))}. Labels: {labels}"
            + (f" and {left_out:,} more." if left_out > 0 else "."),
            "",
            *(
                [
                    "It answers with the mean of its members' calibrated probabilities. Each is a run of its own:",
                    "",
                    markdown_table(members, ("member", "recipe", "weight", "temperature")),
                    "",
                ]
                if members
                else []
            ),
            f"Measured on {len(parts.test):,} test texts ({escaped(parts.split)}); {parts.leaked.summary()}."
            f" The intervals are by bootstrap over texts, seed {scores.seed}.",
            "",
            markdown_table(rows, ("score", "value", "95 %")),
            "",
            *([f"Beside it, without learning: {escaped(SCORES[main][0])} of {beside}.", ""] if others else []),
            f"{calibrated}The scores hold for texts like those of the test set; nothing was measured on others, nor"
            " between groups of people.",
            "",
            "```python",
            "import zhixing",
            f"clf = zhixing.load({str(run_dir)!r})",
            'print(clf("..."))',
            "```",
            "",
        ]
    )


# ---- using a classifier ----------------------------------------------------------------------------------------------


@dataclass
class Classifier:
    """A trained classifier: call it with a text or a list of texts."""

    path: Path
    stored: StoredClassifier
    on_too_long: OnTooLong = "truncate"
    too_long: int = 0  # texts seen so far that were longer than the model reads

    @property
    def model(self) -> nn.Module:
        return self.stored.model

    @property
    def labels(self) -> tuple[str, ...]:
        return self.stored.labels

    @property
    def problem_type(self) -> ProblemType:
        return self.stored.problem_type

    @cached_property
    def members(self) -> list[tuple[float, Classifier]]:
        """Of an average: its members and their shares of the answer, which add up to 1."""
        whole = sum(member.weight for member in self.stored.members)
        return [
            (m.weight / whole, Classifier(self.path / MEMBERS / m.name, m.stored, self.on_too_long))
            for m in self.stored.members
        ]

    @cached_property
    def tokenizer(self) -> Any:
        """What makes ids and their places in the text: what explanation asks for."""
        reader = self.stored.reader
        return NgramSpans(reader) if isinstance(reader, NgramVocabulary) else reader

    @overload
    def __call__(self, texts: str) -> Prediction: ...
    @overload
    def __call__(self, texts: list[str]) -> list[Prediction]: ...
    def __call__(self, texts: str | list[str]) -> Prediction | list[Prediction]:
        """The answer to a text, or to each of a list."""
        answers = predictions(
            self.probabilities([texts] if isinstance(texts, str) else texts), self.labels, self.problem_type
        )
        return answers[0] if isinstance(texts, str) else answers

    def logits(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """Logits (N, C), not yet divided by the temperature."""
        for number, text in enumerate(texts):
            if not text.strip():
                raise InputError("a text is empty", where=f"text {number + 1}", mend="give a text with a word in it")
        stored = self.stored
        if not texts:
            return np.empty((0, len(self.labels)), np.float32)
        if self.members:
            before = [member.too_long for _, member in self.members]
            mean = sum(weight * member.probabilities(texts) for weight, member in self.members)
            assert isinstance(mean, np.ndarray)
            self.too_long += max(m.too_long - b for (_, m), b in zip(self.members, before, strict=True))
            return _as_logits(mean, self.problem_type)
        if isinstance(stored.reader, NgramVocabulary):
            assert isinstance(stored.model, BagClassifier)
            features = stored.reader.features(texts)
            threads = default_threads() if len(texts) > 512 else 1
            found = predict_bag(stored.model.weights(), features.ids, features.starts, threads)
            return _as_logits(found, stored.model.settings.problem)
        assert stored.reader is not None
        settings: Any = stored.model.settings
        encoded = encode_texts(texts, stored.reader, settings.max_len, self.on_too_long)
        self.too_long += encoded.too_long
        with Progress("classifying", len(encoded.rows), "texts") as progress:
            return text_logits(stored.model, encoded, stored.reader.pad_id, progress.update)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Calibrated probabilities (N, C); the numbers (N, 1) of a regression."""
        return probabilities_of(self.logits(texts), self.problem_type, self.stored.temperature)

    def result(
        self,
        texts: LabelledTexts,
        *,
        name: str = "",
        facts: dict[str, Any] | None = None,
        seed: int = 0,
        train: LabelledTexts | None = None,
    ) -> ClassificationResult:
        """The answers to labelled texts beside what is right: what scores, report and comparison take."""
        before = self.too_long
        p = self.probabilities([item.text for item in texts])
        facts = facts if facts is not None else {"data": {"source": texts.source, "test": {}}}
        facts.setdefault("data", {}).setdefault("test", {}).update(
            too_long=self.too_long - before, on_too_long=self.on_too_long
        )
        graded, several = self.problem_type == "regression", self.problem_type == "multi_label_classification"
        targets = targets_of(texts, self.labels, self.problem_type).numpy()
        guesses = p[:, 0] if graded else (p > THRESHOLD).astype(np.int64) if several else p.argmax(axis=1)
        counts = train.label_counts if train is not None else None
        return ClassificationResult(
            [] if graded else list(self.labels),
            targets,
            guesses,
            None if graded else p,
            [item.text for item in texts],
            self.problem_type,
            name or self.path.name,
            self.stored.temperature,
            None if counts is None or graded else np.array([counts.get(label, 0) for label in self.labels]),
            float(np.mean([i.score for i in train if i.score is not None])) if graded and train is not None else None,
            {},
            facts,
            seed,
        )

    def evaluate(self, data: str | None = None) -> tuple[ClassificationResult, ClassifierScores]:
        """Measure on labelled texts by name or path; on the run's own test part if not given."""
        texts = self.read(data)
        met = {} if data is None else {"counts": dataclasses.asdict(texts.counts)}
        test = {**self._repeats(data, texts), **met}
        result = self.result(texts, facts={"data": {"source": texts.source, "test": test}})
        return result, result_scores(result)

    def _repeats(self, data: str | None, texts: LabelledTexts) -> dict[str, Any]:
        """How many of the texts the training texts repeat; of the run's own test part it is known already."""
        if data is None:
            try:
                kept = json.loads((self.path / "facts.json").read_text(encoding="utf-8"))["data"]["test"]
                return {key: int(kept[key]) for key in ("exact_duplicates", "near_duplicates")}
            except (OSError, ValueError, TypeError, KeyError):
                pass
        report = self.leakage(texts)
        if report is None:
            say("how many of these texts the model has learnt from is not known: the run holds no training texts")
        return {} if report is None else {"exact_duplicates": report.exact, "near_duplicates": report.near}

    def leakage(self, texts: LabelledTexts) -> LeakageReport | None:
        """Which of these texts the training texts repeat; None where the folder does not hold those."""
        if not (self.path / "data" / "train.jsonl").exists():
            return None
        train = self._kept("train")
        path = self.path / "data" / SIGNATURES
        found = np.fromfile(path, np.uint32) if path.exists() else np.empty(0, np.uint32)
        known = found.reshape(len(train), BANDS) if len(found) == len(train) * BANDS else None
        return leakage(train, texts, known)

    def read(self, data: str | None) -> LabelledTexts:
        """Labelled texts whose labels the model knows."""
        recipe = self.recipe
        settings = labelled_settings(recipe) if recipe else LabelledSettings()
        if data is None:
            kept = self.path / "data" / "test.jsonl"
            if not kept.exists():
                raise InputError(
                    "this run has no test texts of its own", where=str(self.path), mend="name a labelled file"
                )
            return self._kept("test")
        texts = read_labelled(data, settings, part="test")
        if self.problem_type != "regression":
            check_labels(self.labels, texts)
        _check_kind(self.problem_type, texts)
        return texts

    def _kept(self, part: Literal["train", "test"]) -> LabelledTexts:
        path = self.path / "data" / f"{part}.jsonl"
        items, places = [], []
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")  # a text may hold U+2028, where splitlines cuts
        for number, line in enumerate(lines, 1):
            try:
                raw = json.loads(line)
                items.append(LabelledText(raw["text"], tuple(raw["labels"]), raw["score"], raw.get("group") or ""))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                why, mend = str(error)[:200], "take a sound copy, or name a labelled file"
                raise InputError("the run's texts are damaged", where=f"{path}:{number}", why=why, mend=mend) from None
            places.append(f"{path}:{number}")
        return LabelledTexts(str(self.path), items, places, self.problem_type)

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe that made it, where the folder has one."""
        from zhixing.recipe import parse_recipe

        path = self.path / "recipe.toml"
        return parse_recipe(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None

    @cached_property
    def training_index(self) -> WordIndex | None:
        """The training texts, to find those that are like another; None where the folder does not hold them."""
        return WordIndex(self._kept("train").texts) if (self.path / "data" / "train.jsonl").exists() else None

    def explain(
        self, text: str, *, method: Literal["auto"] | Method = "auto", nearest: int = 3, label: str | None = None
    ) -> Explanation:
        """Why this answer: the words that speak for and against it, and the training texts nearest to it."""
        index = self.training_index if nearest else None
        if self.members:
            return self._explain_average(text, method, nearest, index, label)
        return explain(
            self, text, method=method, nearest=nearest if index is not None else 0, training=index, label=label,
            problem_type=self.problem_type, temperature=self.stored.temperature,
        )  # fmt: skip

    def _explain_average(
        self, text: str, method: Literal["auto"] | Method, nearest: int, index: WordIndex | None, label: str | None
    ) -> Explanation:
        """The members' explanations by integrated gradients, which all have, weighed as their answers are."""
        if method not in ("auto", "integrated_gradients"):
            raise InputError(
                f"an average of models has no {method}",
                mend=f"take integrated_gradients, or explain one member: zhixing explain {self.members[0][1].path} ...",
            )
        answer = self(text)
        label = (answer.label or self.labels[0]) if label is None else label
        parts = [
            (weight, explain(member, text, method="integrated_gradients", label=label, problem_type=self.problem_type,
                             temperature=member.stored.temperature))
            for weight, member in self.members
        ]  # fmt: skip
        found = tuple(index.nearest(text, nearest)) if index is not None and nearest else ()
        graded = self.problem_type == "regression"
        return averaged(parts, None if graded else answer.probabilities[label], found)

    def scores_of(self, label: str) -> Any:
        """The score that `explain` explains, as a function of texts: for deletion tests."""
        if self.members:
            each = [(weight, member.scores_of(label)) for weight, member in self.members]
            return lambda texts: sum(weight * scores(texts) for weight, scores in each)
        return label_scores(self, label, problem_type=self.problem_type, temperature=self.stored.temperature)

    def show(self) -> str:
        """What the run is and how it went, for a terminal."""
        card = self.path / "README.md"
        return card.read_text(encoding="utf-8") if card.exists() else f"{self.path}: labels {', '.join(self.labels)}"


@dataclass(frozen=True)
class SentimentScore:
    """How a text feels: the model's own label, its probability, and a number from -1 (negative) to 1 (positive)."""

    label: str
    probability: float
    polarity: float


POLARITIES = {
    **dict.fromkeys(("negative", "neg", "负面", "负向", "消极", "差评"), -1.0),
    **dict.fromkeys(("positive", "pos", "正面", "正向", "积极", "好评"), 1.0),
}
STARS = {"1": -1.0, "2": -0.5, "3": 0.0, "4": 0.5, "5": 1.0}


def polarities(labels: Sequence[str]) -> dict[str, float] | None:
    """What each label says, from -1 to 1; None where none of them is negative or none positive.

    Words of POLARITIES in either case, other labels between them counting 0; or numbers as people use them: 0 and 1,
    -1 (0) and 1, stars from 1 to 5, also written "1 star" or "5 stars".
    """
    plain = [label.strip().casefold() for label in labels]
    stars = [label.removesuffix("stars").removesuffix("star").strip() for label in plain]
    if set(plain) == {"0", "1"}:
        found = [2.0 * int(label) - 1 for label in plain]
    elif {"-1", "1"} <= set(plain) <= {"-1", "0", "1"}:
        found = [float(label) for label in plain]
    elif {"1", "5"} <= set(stars) <= set(STARS):
        found = [STARS[label] for label in stars]
    else:
        found = [POLARITIES.get(label, 0.0) for label in plain]
    return dict(zip(labels, found, strict=True)) if min(found, default=0) < 0 < max(found, default=0) else None


@dataclass(frozen=True)
class Sentiment:
    """A classifier of opinions: its labels say negative or positive (`polarities`), perhaps with others between."""

    classifier: Classifier

    def __post_init__(self) -> None:
        if self._polarities is None:
            numbers = self.classifier.problem_type == "regression"
            raise InputError(
                "this classifier does not tell negative from positive",
                where=str(self.classifier.path),
                why="it gives numbers; `zhixing classify` shows them"
                if numbers
                else f"its labels are {', '.join(self.classifier.labels[:20])}",
                mend="name them negative and positive (known too: neg and pos, 0 and 1, stars 1 to 5, 负面 and 正面,"
                " 差评 and 好评) in the data or in config.json's id2label, or train one: zhixing train rotten-tomatoes",
            )

    @property
    def _polarities(self) -> dict[str, float] | None:
        regression = self.classifier.problem_type == "regression"
        return None if regression else polarities(self.classifier.labels)

    def __call__(self, texts: Sequence[str]) -> list[SentimentScore]:
        """A score for each text; its polarity is the mean of the labels', by their probabilities."""
        each = self._polarities
        assert each is not None
        return [
            SentimentScore(
                p.label, p.probability, max(-1.0, min(1.0, sum(each[k] * v for k, v in p.probabilities.items())))
            )
            for p in self.classifier(list(texts))
        ]


def load_classifier(path: str | Path) -> Classifier:
    """A trained classifier, or a BERT or DistilBERT one of transformers."""
    folder = finished_folder(path)
    if not is_classifier(folder):
        raise InputError("this is no classifier", where=str(folder), mend="give the run of a classification recipe")
    torch.set_num_threads(default_threads())
    stored = read_classifier(folder)
    classifier = Classifier(folder, stored)
    if classifier.recipe is not None:
        classifier.on_too_long = classifier.recipe.task.on_too_long
    return classifier


def compare_runs(first: str, second: str, data: str | None = None) -> Comparison:
    """Two classifiers on the same texts: scores, their difference with its interval, McNemar's test."""
    a, b = load_classifier(first), load_classifier(second)
    if a.problem_type != b.problem_type:
        raise InputError(
            "the two models answer different questions",
            why=f"one is for {a.problem_type}, the other for {b.problem_type}",
            mend="compare two models of the same kind",
        )
    texts = a.read(data)
    if b.problem_type != "regression":
        check_labels(b.labels, texts)
    for classifier in (a, b):
        if (report := classifier.leakage(texts)) is not None:
            say(f"{classifier.path.name}: {report.summary()}")
    return compare(a.result(texts, name=a.path.name), b.result(texts, name=b.path.name))
