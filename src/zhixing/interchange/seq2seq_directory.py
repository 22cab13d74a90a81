"""The folder of a model that reads one text and writes another; AutoModelForSeq2SeqLM of transformers loads it.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

T5 may have spiece.model instead of the tokenizer.json, and OPUS-MT has source.spm, target.spm and vocab.json.

What it is for (translation or summarization, from which language to which) stands in config.json under `zhixing`; other
tools pass over it. Written and read with the care of model_directory.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.files import MANIFEST, atomic_write
from zhixing.interchange.lstm_translator_layout import (
    MODEL_TYPE,
    lstm_translator_config,
    lstm_translator_from_layout,
    lstm_translator_settings,
    lstm_translator_shapes,
    lstm_translator_to_layout,
)
from zhixing.interchange.marian_layout import (
    marian_config,
    marian_from_layout,
    marian_settings,
    marian_shapes,
    marian_to_layout,
)
from zhixing.interchange.model_directory import (
    CONFIG,
    GENERATION_CONFIG,
    JSON_FILES,
    NothingDrawn,
    as_json,
    check_files,
    check_fingerprint,
    parse_size,
    read_config,
    read_json,
    read_tensors,
    tensor_shapes,
    weight_files,
    write_weights,
)
from zhixing.interchange.t5_layout import t5_config, t5_from_layout, t5_settings, t5_shapes, t5_to_layout
from zhixing.models.lstm_translator import LSTMTranslator
from zhixing.models.marian import Marian
from zhixing.models.t5 import T5
from zhixing.tokens.tokenizer import MARIAN_FILES, Tokenizer, load_target

Seq2Seq = Marian | T5 | LSTMTranslator
Task = Literal["translation", "summarization", "dialogue"]
TASKS: tuple[Task, ...] = ("translation", "summarization", "dialogue")
NEVER = -1e4  # a logit that no probability is left of; finite, so that training goes on from it, and fits in fp16


@dataclass(frozen=True)
class StoredSeq2Seq:
    """What a folder holds; languages are codes such as en and zh, or empty.

    target_tokenizer: of what is written, where it is cut otherwise than what is read; None: as `tokenizer` does.
    """

    model: Seq2Seq
    tokenizer: Tokenizer
    task: Task = "translation"
    source_language: str = ""
    target_language: str = ""
    target_tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class Layout:
    """How a family's folder is written and read."""

    to_config: Callable[..., dict[str, Any]]
    to_settings: Callable[[Mapping[str, Any]], Any]
    shapes: Callable[[Any], dict[str, tuple[int, ...]]]
    to_layout: Callable[..., dict[str, Tensor]]
    from_layout: Callable[..., dict[str, Tensor]]
    model: Callable[[Any], Seq2Seq]


LAYOUTS: dict[str, Layout] = {
    "marian": Layout(marian_config, marian_settings, marian_shapes, marian_to_layout, marian_from_layout, Marian),
    "t5": Layout(t5_config, t5_settings, t5_shapes, t5_to_layout, t5_from_layout, T5),
    MODEL_TYPE: Layout(
        lstm_translator_config,
        lstm_translator_settings,
        lstm_translator_shapes,
        lstm_translator_to_layout,
        lstm_translator_from_layout,
        LSTMTranslator,
    ),
}


def is_seq2seq(folder: Path) -> bool:
    """Whether the folder's config.json is of such a model."""
    path = folder / CONFIG
    return path.is_file() and read_json(path).get("model_type") in LAYOUTS


def write_seq2seq(folder: Path, stored: StoredSeq2Seq, *, num_beams: int = 4, length_penalty: float = 1.0) -> None:
    """Write the files into `folder`, which may hold others; config.json comes last, the manifest is the caller's."""
    model, tokenizer = stored.model, stored.tokenizer
    name, layout = next((name, layout) for name, layout in LAYOUTS.items() if layout.model is type(model))
    s = model.settings
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tokenizer.save(folder, model_max_length=s.max_len)
    generation = {
        "decoder_start_token_id": s.start_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "max_length": s.max_len,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": True,
    }
    atomic_write(folder / GENERATION_CONFIG, as_json(generation))
    write_weights(folder, layout.to_layout(model.state_dict(), s), parse_size("5GB"))
    config = layout.to_config(s, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    assert config["model_type"] == name
    config["zhixing"] = {
        "tokenizer_fingerprint": tokenizer.fingerprint(),
        "task": stored.task,
        "source_language": stored.source_language,
        "target_language": stored.target_language,
    }
    atomic_write(folder / CONFIG, as_json(config))


def read_seq2seq(folder: Path) -> StoredSeq2Seq:
    """The model of a folder, fp32 and in eval mode, and its tokenizer. InputError: something is missing or damaged."""
    config = read_config(folder)
    generation = read_json(folder / GENERATION_CONFIG) if (folder / GENERATION_CONFIG).is_file() else {}
    if generation.get("decoder_start_token_id") is not None:  # transformers 5 writes it there only, and takes it there
        config["decoder_start_token_id"] = generation["decoder_start_token_id"]
    layout = LAYOUTS.get(str(config.get("model_type")))
    if layout is None:
        raise InputError(
            f"a model of the type {str(config.get('model_type'))[:80]!r} does not read one text and write another",
            where=str(folder),
            mend=f"those known are {', '.join(LAYOUTS)}",
        )
    settings = layout.to_settings(config)
    places = weight_files(folder)
    found = {name: shape for file, names in places.items() for name, shape in tensor_shapes(file, names).items()}
    for name, shape in layout.shapes(settings).items():
        if found.get(name) != shape:
            what = "is missing" if name not in found else f"has the shape {list(found[name])}"
            raise InputError(f"{name} {what}", where=str(folder), why=f"{CONFIG} makes it {list(shape)}")
    check_files(folder, [*(folder / name for name in (*JSON_FILES, "spiece.model", *MARIAN_FILES)), *places])
    tokenizer, target = Tokenizer.load(folder), load_target(folder)
    check_fingerprint(config, tokenizer, folder)
    read_size = getattr(settings, "source_vocab_size", 0) or settings.vocab_size
    for side, size in ((tokenizer, read_size), (target or tokenizer, settings.vocab_size)):
        if side.vocab_size > size:
            raise InputError(f"the tokenizer has {side.vocab_size} tokens, the model {size}", where=str(folder))
    tensors: dict[str, Tensor] = {}
    for file in places:
        tensors |= {name: tensor.float() for name, tensor in read_tensors(file).items()}
    with torch.device("meta"), NothingDrawn():
        model = layout.model(settings)
    state = layout.from_layout(tensors, settings)
    for i in banned_ids({**config, **generation}, settings.vocab_size) if "logits_bias" in state else ():
        state["logits_bias"][i] = NEVER
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if isinstance(model, Marian):
        model.make_tables()
    said = config.get("zhixing")
    said = said if isinstance(said, dict) else {}
    task: Task = said["task"] if said.get("task") in TASKS else "translation"
    source, written = (
        str(said.get(key, other))[:40]
        for key, other in zip(("source_language", "target_language"), tokenizer.languages, strict=True)
    )
    return StoredSeq2Seq(model.eval(), tokenizer, task, source, written, target)


def banned_ids(generation: Mapping[str, Any], vocab_size: int) -> list[int]:
    """Ids that are never written, by `bad_words_ids`: OPUS-MT has its pad there, whose logit is 0 and not learnt."""
    given = generation.get("bad_words_ids")
    rows = given if isinstance(given, list) else []
    alone = [row[0] for row in rows if isinstance(row, list) and len(row) == 1]
    return [i for i in alone if type(i) is int and 0 <= i < vocab_size]
