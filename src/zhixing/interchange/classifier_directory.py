"""A classifier as a folder: what `zhixing.load` needs to answer, whatever its family.

    bert                     as transformers has it (model_directory.py): AutoModelForSequenceClassification loads it
    bag, textcnn, lstm, gpt  config.json with our own model_type, model.safetensors in our names, and tokenizer.json, or
                             vocabulary.json with the words of a bag
    average                  config.json with the weight of each member, which is a folder of its own in members/
    calibration.json         all: the temperature that makes probabilities of logits

A config.json is somebody's word: the families are a literal table, each setting is checked by the family's dataclass,
and the tensors must have the names and shapes that follow from it before one is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zhixing.errors import InputError
from zhixing.files import MANIFEST, atomic_write
from zhixing.interchange.model_directory import (
    CONFIG,
    WEIGHTS,
    NothingDrawn,
    check_files,
    check_fingerprint,
    read_any_model,
    read_json,
    replace_weights,
    tensor_shapes,
    write_model_directory,
)
from zhixing.interchange.transformers_layout import LabelFacts, labels_of
from zhixing.models.bag import BagClassifier, BagSettings
from zhixing.models.bert import BertClassifier
from zhixing.models.gpt import GPTClassifier, GPTClassifierSettings, GPTSettings
from zhixing.models.lstm import LSTMClassifier, LSTMClassifierSettings
from zhixing.models.textcnn import TextCNNClassifier, TextCNNSettings
from zhixing.recipe import HEAVIEST, MOST_MEMBERS
from zhixing.tasks.classification import ProblemType
from zhixing.tokens.ngrams import NgramSettings, NgramVocabulary
from zhixing.tokens.tokenizer import Tokenizer
from zhixing.training.checkpoint import read_safetensors

CALIBRATION, VOCABULARY, MEMBERS = "calibration.json", "vocabulary.json", "members"
AVERAGE = "zhixing_average"
LONGEST = 1 << 20  # tokens that a GPT may look back over
FAMILIES: dict[str, tuple[type[nn.Module], type]] = {
    "zhixing_bag": (BagClassifier, BagSettings),
    "zhixing_textcnn": (TextCNNClassifier, TextCNNSettings),
    "zhixing_lstm_classifier": (LSTMClassifier, LSTMClassifierSettings),
    "zhixing_gpt_classifier": (GPTClassifier, GPTClassifierSettings),
}


@dataclass(frozen=True)
class Member:
    """One classifier of an average: the folder's name, its share of the answer, and what it holds."""

    name: str
    weight: float
    stored: StoredClassifier


@dataclass(frozen=True)
class StoredClassifier:
    """What a folder holds. `reader` turns text into ids: a tokenizer, or a bag's vocabulary; None of an average."""

    model: nn.Module  # of an average a ModuleList of its members' models
    reader: Tokenizer | NgramVocabulary | None
    labels: tuple[str, ...]
    problem_type: ProblemType
    temperature: float
    members: tuple[Member, ...] = ()  # of an average


def write_classifier(folder: Path, stored: StoredClassifier) -> None:
    """Write the files into `folder`, which may hold others; config.json comes last. bert goes the way of its own."""
    labels = LabelFacts(stored.labels, stored.problem_type)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    atomic_write(folder / CALIBRATION, json.dumps({"temperature": stored.temperature}) + "\n")
    if stored.members:
        _write_average(folder, stored)
        return
    if isinstance(stored.model, BertClassifier):
        assert isinstance(stored.reader, Tokenizer)
        write_model_directory(folder, stored.model, stored.reader, labels=labels)
        return
    model_type = next(name for name, (cls, _) in FAMILIES.items() if type(stored.model) is cls)
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [type(stored.model).__name__],
        "settings": dataclasses.asdict(typing.cast(Any, stored.model.settings)),
        "id2label": {str(i): name for i, name in enumerate(stored.labels)},
        "label2id": {name: i for i, name in enumerate(stored.labels)},
        "problem_type": stored.problem_type,
    }
    if isinstance(stored.reader, Tokenizer):
        stored.reader.save(folder)
        config["zhixing"] = {"tokenizer_fingerprint": stored.reader.fingerprint()}
    else:
        assert stored.reader is not None
        words = {
            "settings": dataclasses.asdict(stored.reader.settings),
            "words": stored.reader.words,
            "counts": [int(count) for count in stored.reader.counts],
        }
        atomic_write(folder / VOCABULARY, json.dumps(words, ensure_ascii=False) + "\n")
    tensors = {name: tensor.detach() for name, tensor in stored.model.state_dict().items()}
    replace_weights(folder / WEIGHTS, tensors)
    atomic_write(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _write_average(folder: Path, stored: StoredClassifier) -> None:
    """The members' folders stand already; here is said how they answer together."""
    config = {
        "model_type": AVERAGE,
        "members": [{"folder": member.name, "weight": member.weight} for member in stored.members],
        "id2label": {str(i): name for i, name in enumerate(stored.labels)},
        "label2id": {name: i for i, name in enumerate(stored.labels)},
        "problem_type": stored.problem_type,
    }
    atomic_write(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _read_average(folder: Path, config: dict[str, Any], temperature: float) -> StoredClassifier:
    """The members and how much each counts; each must have the average's labels, in the same order."""
    place = str(folder / CONFIG)
    facts = labels_of(config)
    raw = config.get("members")
    if not isinstance(raw, list) or not 2 <= len(raw) <= MOST_MEMBERS:
        raise InputError(f"an average has 2 to {MOST_MEMBERS} members", where=place)
    members = []
    for entry in raw:
        name: Any = entry.get("folder") if isinstance(entry, dict) else None
        weight: Any = entry.get("weight") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
            raise InputError(f"no member's folder is called {name!r:.80}", where=place)
        if type(weight) not in (int, float) or not 0 < weight <= HEAVIEST:
            raise InputError(f"a member's weight of {weight!r:.80} cannot be", where=place)
        own = folder / MEMBERS / name
        if not is_classifier(own) or read_json(own / CONFIG).get("model_type") == AVERAGE:
            raise InputError("a member of the average is missing", where=str(own), mend="copy the whole run")
        stored = read_classifier(own)
        if stored.labels != facts.names or stored.problem_type != facts.problem_type:
            raise InputError("a member has other labels than the average", where=str(own))
        members.append(Member(name, float(weight), stored))
    models = nn.ModuleList([member.stored.model for member in members]).eval()
    return StoredClassifier(models, None, facts.names, facts.problem_type, temperature, tuple(members))


def is_classifier(folder: Path) -> bool:
    """Whether the folder's config.json is a classifier's."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    config = read_json(path)
    names = config.get("architectures")
    of_transformers = isinstance(names, list) and any(str(n).endswith("ForSequenceClassification") for n in names)
    return _is_ours(config) or of_transformers


def _is_ours(config: dict[str, Any]) -> bool:
    return isinstance(config.get("model_type"), str) and (
        config["model_type"] in FAMILIES or config["model_type"] == AVERAGE
    )


def read_classifier(folder: Path) -> StoredClassifier:
    """The classifier of a folder, in eval mode. InputError where something is missing, damaged or of another run."""
    config = read_json(folder / CONFIG)
    temperature = 1.0
    if (folder / CALIBRATION).exists():
        temperature = read_json(folder / CALIBRATION).get("temperature", 1.0)
        if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
            raise InputError(f"a temperature of {temperature!r} cannot be", where=str(folder / CALIBRATION))
    if not _is_ours(config):
        found_model, tokenizer, config = read_any_model(folder)
        if not isinstance(found_model, BertClassifier):
            raise InputError("the model has no labels", where=str(folder), mend="give a classifier's folder")
        facts = labels_of(config)
        return StoredClassifier(found_model, tokenizer, facts.names, facts.problem_type, temperature)
    if config["model_type"] == AVERAGE:
        check_files(folder, [folder / CONFIG])
        return _read_average(folder, config, float(temperature))
    check_files(folder, [folder / CONFIG, folder / WEIGHTS])
    facts = labels_of(config)
    family, settings_type = FAMILIES[config["model_type"]]
    place = f"{folder / CONFIG}, settings"
    raw = config.get("settings")
    settings = _settings(settings_type, raw, place)
    if settings.n_labels != len(facts.names):
        raise InputError(f"{len(facts.names)} labels for {settings.n_labels} outputs", where=str(folder / CONFIG))
    single, several = "single_label_classification", "multi_label_classification"
    learnt = {facts.problem_type} | ({several} if facts.problem_type == single else set())  # one label against all
    if family is BagClassifier and settings.problem not in learnt:
        raise InputError(
            f"settings.problem is {settings.problem}", where=str(folder / CONFIG), why="problem_type is not"
        )
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"there is no {WEIGHTS}", where=str(folder))
    found = tensor_shapes(folder / WEIGHTS)
    _check_depth(settings, len(found), place)
    try:
        with torch.device("meta"), NothingDrawn():
            empty = family(settings)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("no model has these settings", where=place, why=str(error)[:200]) from None
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if found != expected:
        odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))[0]
        raise InputError(
            f"{odd} is {found.get(odd)} in the file, {expected.get(odd)} by the settings", where=str(folder / WEIGHTS)
        )
    reader: Tokenizer | NgramVocabulary
    if family is BagClassifier:
        reader = _vocabulary(folder / VOCABULARY, settings.vocab_size)
    else:
        reader = Tokenizer.load(folder)
        check_fingerprint(config, reader, folder)
        if reader.vocab_size != settings.vocab_size:
            raise InputError(
                f"the tokenizer has {reader.vocab_size} tokens, the model {settings.vocab_size}", where=str(folder)
            )
    model = family(settings)
    try:
        tensors = read_safetensors(folder / WEIGHTS)
        if odd_ones := sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point()):
            raise ValueError(f"{odd_ones[0]} holds {tensors[odd_ones[0]].dtype}")
        model.load_state_dict(tensors)
    except ValueError as error:
        raise InputError("the weights are damaged", where=str(folder / WEIGHTS), why=str(error)[:200]) from None
    return StoredClassifier(model.eval(), reader, facts.names, facts.problem_type, float(temperature))


def _check_depth(settings: Any, n_tensors: int, place: str) -> None:
    """Refuse what takes time or memory before a shape is compared: a layer and a width have a tensor each, at least."""
    gpt = getattr(settings, "gpt", settings)
    for name, number in (("n_layers", getattr(gpt, "n_layers", 1)), ("widths", len(getattr(settings, "widths", (1,))))):
        if not 0 < number <= n_tensors:
            raise InputError(f"{name}: {number:,}, the file has {n_tensors:,} tensors", where=place)
    if isinstance(gpt, GPTSettings):  # its rotary table follows from max_len and stands in no file
        if gpt.max_len > LONGEST or 0 in (gpt.n_heads, gpt.n_kv_heads, gpt.d_model) or gpt.d_model % gpt.n_heads:
            raise InputError("no model has these sizes", where=place)
    elif settings.max_len < 1:
        raise InputError("max_len = 0 cannot be", where=place)
    if isinstance(gpt, GPTSettings) and not (gpt.rope_theta > 0 and gpt.norm_eps >= 0):
        raise InputError("rope_theta must be above 0, norm_eps not below", where=place)
    if not 0 <= getattr(gpt, "dropout", 0.0) < 1:
        raise InputError(f"dropout = {gpt.dropout} cannot be", where=place)


def _settings(kind: type, raw: Any, place: str) -> Any:
    """A settings dataclass from JSON: the keys must be its fields, the values of their types."""
    if not isinstance(raw, dict):
        raise InputError("the settings must be a table", where=place)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(raw) - set(fields)):
        raise InputError(f"unknown setting {unknown[0][:80]!r}", where=place)
    values = {}
    for name, value in raw.items():
        hint = hints[name]
        if hint is GPTSettings:
            value = _settings(GPTSettings, value, f"{place}.{name}")
        elif hint == tuple[int, ...]:
            if not isinstance(value, list) or not all(type(v) is int and 0 < v < 1 << 20 for v in value):
                raise InputError(f"{name} = {value!r:.80} cannot be", where=place)
            value = tuple(value)
        elif typing.get_origin(hint) is typing.Literal:
            if value not in typing.get_args(hint):
                raise InputError(f"{name} = {value!r:.80} cannot be", where=place)
        elif type(value) is int and hint is float and abs(value) < 1 << 53:
            value = float(value)
        elif (
            type(value) is not hint
            or (hint is float and not math.isfinite(value))
            or (hint is int and not 0 <= value < 1 << 31)
        ):
            raise InputError(f"{name} = {value!r:.80} cannot be", where=place)
        values[name] = value
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise InputError(f"the setting {missing[0]} is missing", where=place)
    return kind(**values)


def _is_unicode(word: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _vocabulary(path: Path, n_rows: int) -> NgramVocabulary:
    if not path.is_file():
        raise InputError(f"there is no {VOCABULARY}", where=str(path.parent))
    raw = read_json(path)
    words, counts = raw.get("words"), raw.get("counts")
    fine = isinstance(words, list) and isinstance(counts, list) and len(words) == len(counts)
    numbers = all(type(c) is int and 0 <= c < 1 << 62 for c in counts or []) if fine else False
    if not numbers or not all(isinstance(w, str) and _is_unicode(w) for w in words or []):
        raise InputError("the vocabulary must be words and as many counts", where=str(path))
    settings = _settings(NgramSettings, raw.get("settings"), f"{path}, settings")
    vocabulary = NgramVocabulary(list(words or []), np.array(counts, np.int64), settings)
    if max(vocabulary.n_rows, 1) != n_rows:
        raise InputError(f"the vocabulary has {vocabulary.n_rows} rows, the model {n_rows}", where=str(path))
    return vocabulary
