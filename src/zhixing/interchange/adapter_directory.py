"""A LoRA adapter and the model that it was trained on: out of a run for PEFT, and both together into a run of ours.

    RUN/adapter/   adapter_config.json  adapter_model.safetensors   what PEFT reads (peft_adapter.py)
                   zhixing.json                                     labels, kind of answer, temperature; PEFT skips it

An adapter is of use with its base only, so what is written names it, and is checked against the run that it came from.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zhixing.errors import InputError
from zhixing.files import atomic_dir, atomic_write
from zhixing.interchange.classifier_directory import StoredClassifier, is_classifier, read_classifier, write_classifier
from zhixing.interchange.model_directory import read_any_model, read_json, tensor_shapes, write_model_directory
from zhixing.interchange.peft_adapter import CONFIG, PREFIX, WEIGHTS, read_adapter
from zhixing.interchange.transformers_layout import LabelFacts, labels_of
from zhixing.models.bert import Bert, BertClassifier, BertMaskedLM
from zhixing.models.gpt import GPT, GPTClassifier, GPTClassifierSettings
from zhixing.models.lora import merge, remove_lora
from zhixing.progress import say
from zhixing.tokens.tokenizer import Tokenizer

FOLDER, FACTS = "adapter", "zhixing.json"
HEADS = ("classifier", "score")  # of a bert, of a gpt: PEFT's names
TOLERANCE = 1e-5  # of a weight, between base with adapter and what the run has


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter."""
    return (folder / CONFIG).is_file()


def write_label_facts(folder: Path, labels: LabelFacts, temperature: float) -> None:
    """What PEFT's files do not say about a classifier's answers."""
    facts = {"labels": list(labels.names), "problem_type": labels.problem_type, "temperature": temperature}
    atomic_write(folder / FACTS, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")


def export_adapter(run: Path, out: Path) -> None:
    """Write the adapter of a run to a new folder, checked: its base with it must be the model of the run."""
    _refuse_existing(out)
    source = run / FOLDER
    if not is_adapter(source):
        raise InputError(
            "this run has no adapter",
            where=str(run),
            why="one is kept where training began from a model (task.start) with LoRA (model.lora_rank)",
            mend="train so: zhixing train ... task.start=RUN model.lora_rank=8",
        )
    base = base_of(source)
    if base.is_dir():
        model = read_with_adapter(source, base)[0].state_dict()
        own = (read_classifier(run).model if is_classifier(run) else read_any_model(run)[0]).state_dict()
        if model.keys() != own.keys():
            raise InputError("the adapter is of another run", where=str(source))
        for name, tensor in own.items():
            if not torch.allclose(tensor, model[name], atol=TOLERANCE):
                why = f"{name} of the run is not that of the base with the adapter"
                raise InputError("the adapter is of another run or base", where=str(source), why=why)
    else:
        say(f"warning: {base} is not here, so the adapter could not be checked with it")
    with atomic_dir(out, {"kind": "adapter"}) as folder:
        for name in (CONFIG, WEIGHTS, FACTS):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)


def import_adapter(source: Path, out: Path, base: Path | None = None) -> None:
    """Add an adapter, ours or PEFT's, to its base and write the model that they make to a new folder `out`.

    `base` is what the adapter names if not given. InputError where the two do not fit.
    """
    _refuse_existing(out)
    model, tokenizer, labels, temperature = read_with_adapter(source, base or base_of(source))
    kind = "classifier" if labels else "model"
    with atomic_dir(out, {"kind": kind, "tokenizer_fingerprint": tokenizer.fingerprint()}) as folder:
        if labels:
            write_classifier(folder, StoredClassifier(model, tokenizer, labels.names, labels.problem_type, temperature))
        else:
            write_model_directory(folder, model, tokenizer)


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise InputError(f"{str(out)!r} exists", why="nothing is ever written over", mend="give a new folder")


def base_of(source: Path) -> Path:
    """The base that an adapter names."""
    name = read_json(source / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError("the adapter names no base", where=str(source / CONFIG), mend="give it: --base FOLDER")
    return Path(name)


def read_with_adapter(source: Path, base: Path) -> tuple[nn.Module, Tokenizer, LabelFacts | None, float]:
    """The model that base and adapter make together, its tokenizer, a classifier's labels and its temperature."""
    if not base.is_dir():
        raise InputError(
            f"the adapter's base {str(base)!r} is not here", where=str(source), mend="give its folder: --base FOLDER"
        )
    if not is_adapter(source):
        raise InputError(f"there is no {CONFIG}", where=str(source), mend="give the folder of an adapter")
    model: Any
    stored: StoredClassifier | None = None
    if is_classifier(base):
        stored = read_classifier(base)
        model, tokenizer = stored.model, stored.reader
        if not isinstance(tokenizer, Tokenizer):
            raise InputError("the base is a bag, which no adapter fits", where=str(base))
    else:
        model, tokenizer, _ = read_any_model(base)
    shapes = tensor_shapes(source / WEIGHTS) if (source / WEIGHTS).is_file() else {}
    heads = [shape[0] for head in HEADS if (shape := shapes.get(f"{PREFIX}{head}.weight"))]
    labels, temperature = None, 1.0
    if heads or stored:
        count = heads[0] if heads else len(stored.labels) if stored else 0
        labels, temperature = _labels(source, count, stored)
        model, missing = _with_head(model, count, base)
        held = {name.removeprefix(PREFIX).rpartition(".")[0] for name in shapes}
        if missing and not any(name.endswith(missing) for name in held):
            raise InputError(
                f"neither the base nor the adapter has the {missing}",
                where=str(source),
                why="a classifier reads through it, and it would be random",
                mend=f"train with modules_to_save that names the {missing}",
            )
    read_adapter(source, model)
    merge(model)
    remove_lora(model)
    return model.eval(), tokenizer, labels, temperature


def _with_head(model: Any, n_labels: int, base: Path) -> tuple[nn.Module, str]:
    """The base with a head for so many labels, its own where that fits, and the name of what it had not."""
    if isinstance(model, BertClassifier | GPTClassifier) and model.settings.n_labels == n_labels:
        return model, ""
    inner = getattr(model, "encoder", None) or getattr(model, "gpt", None) or model
    generator = torch.Generator().manual_seed(0)
    if isinstance(inner, Bert):
        made = BertClassifier(replace(inner.settings, n_labels=n_labels, head="classifier"), generator)
        made.encoder.load_state_dict(inner.state_dict(), strict=False)
        lacks = made.encoder.pooler is not None and (isinstance(model, BertMaskedLM) or inner.pooler is None)
        return made, "pooler.dense" if lacks else ""
    if isinstance(inner, GPT):
        classifier = GPTClassifier(GPTClassifierSettings(inner.settings, n_labels), generator)
        classifier.start_from(inner)
        return classifier, ""
    raise InputError("the base is of a family that no adapter fits", where=str(base), mend="give a bert or a gpt")


def _labels(source: Path, count: int, base: StoredClassifier | None) -> tuple[LabelFacts, float]:
    """The labels beside the adapter, those of its base, or LABEL_0, LABEL_1, ... as transformers says."""
    place = source / FACTS
    if place.is_file():
        raw = read_json(place)
        names, temperature = raw.get("labels"), raw.get("temperature", 1.0)
        if not isinstance(names, list) or len(names) != count:
            raise InputError(f"the adapter has {count} outputs and other labels", where=str(place))
        if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
            raise InputError(f"a temperature of {temperature!r} cannot be", where=str(place))
        table = {str(i): name for i, name in enumerate(names)}
        return labels_of({"id2label": table, "problem_type": raw.get("problem_type")}), float(temperature)
    if base and len(base.labels) == count:
        return LabelFacts(base.labels, base.problem_type), 1.0
    return labels_of({"id2label": {str(i): f"LABEL_{i}" for i in range(count)}}), 1.0
