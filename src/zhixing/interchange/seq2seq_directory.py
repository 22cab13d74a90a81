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

from zhixing.decoding.settings import MOST_LENGTH_PENALTY
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
from zhixing.interchange.transformers_layout import LARGEST
from zhixing.models.lstm_translator import LSTMTranslator
from zhixing.models.marian import Marian
from zhixing.models.t5 import T5
from zhixing.tokens.tokenizer import MARIAN_FILES, Tokenizer

Seq2Seq = Marian | T5 | LSTMTranslator
Task = Literal["translation", "summarization", "dialogue"]
TASKS: tuple[Task, ...] = ("translation", "summarization", "dialogue")
MOST_BEAMS = 64  # that another tool's folder may ask for


@dataclass(frozen=True)
class Generation:
    """What generation_config.json says of how the model writes, by transformers' names; None: nothing.

    max_length counts the start id.
    """

    num_beams: int | None = None
    length_penalty: float | None = None
    max_length: int | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None


@dataclass(frozen=True)
class StoredSeq2Seq:
    """What a folder holds; languages are codes such as en and zh, or empty. What is written is `tokenizer.target`'s."""

    model: Seq2Seq
    tokenizer: Tokenizer
    task: Task = "translation"
    source_language: str = ""
    target_language: str = ""
    generation: Generation = Generation()

    @property
    def target_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of what is written, where it is not the one of what is read."""
        return None if self.tokenizer.target is self.tokenizer else self.tokenizer.target


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


def write_seq2seq(
    folder: Path, stored: StoredSeq2Seq, *, num_beams: int | None = None, length_penalty: float | None = None
) -> None:
    """Write the files into `folder`, which may hold others; config.json comes last, the manifest is the caller's.

    Beams and the length penalty are those of `stored` if not given, and 4 and 1 if it has none.
    """
    model, tokenizer = stored.model, stored.tokenizer
    name, layout = next((name, layout) for name, layout in LAYOUTS.items() if layout.model is type(model))
    s, how, written = model.settings, stored.generation, tokenizer.target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tokenizer.save(folder, model_max_length=s.max_len)
    # One number for both sides: transformers leaves out of a text what is padding of the side that is read
    pad_id = tokenizer.pad_id if tokenizer.pad_id < s.vocab_size else written.pad_id
    generation: dict[str, Any] = {
        "decoder_start_token_id": s.start_id,
        "eos_token_id": written.eos_id,
        "pad_token_id": pad_id,
        "max_length": s.max_len if how.max_length is None else how.max_length,
        "num_beams": num_beams or how.num_beams or 4,
        "length_penalty": next(x for x in (length_penalty, how.length_penalty, 1.0) if x is not None),
        "early_stopping": True,
    }
    if how.bad_words_ids:
        generation |= {"bad_words_ids": [list(word) for word in how.bad_words_ids], "renormalize_logits": True}
    for key, value in (
        ("forced_bos_token_id", how.forced_bos_token_id),
        ("forced_eos_token_id", how.forced_eos_token_id),
    ):
        generation |= {} if value is None else {key: value}
    atomic_write(folder / GENERATION_CONFIG, as_json(generation))
    write_weights(folder, layout.to_layout(model.state_dict(), s), parse_size("5GB"))
    config = layout.to_config(s, eos_id=written.eos_id, pad_id=pad_id)
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
    tokenizer = Tokenizer.load(folder)
    check_fingerprint(config, tokenizer, folder)
    read_size = getattr(settings, "source_vocab_size", 0) or settings.vocab_size
    for side, size in ((tokenizer, read_size), (tokenizer.target, settings.vocab_size)):
        if side.vocab_size > size:
            raise InputError(f"the tokenizer has {side.vocab_size} tokens, the model {size}", where=str(folder))
    tensors: dict[str, Tensor] = {}
    for file in places:
        tensors |= {name: tensor.float() for name, tensor in read_tensors(file).items()}
    with torch.device("meta"), NothingDrawn():
        model = layout.model(settings)
    model.load_state_dict(layout.from_layout(tensors, settings), assign=True)
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
    how = generation_of(generation or config, settings.vocab_size, tokenizer.target.eos_id)
    return StoredSeq2Seq(model.eval(), tokenizer, task, source, written, how)


def generation_of(said: Mapping[str, Any], vocab_size: int, eos_id: int) -> Generation:
    """What is said of how to write, of generation_config.json or, in folders without one, config.json.

    A value that cannot be used counts as not said. A bad word that is the end of a text is none, as in transformers.
    """

    def count(key: str, most: int) -> int | None:
        value = said.get(key)
        return value if type(value) is int and 0 < value <= most else None

    def token(key: str) -> int | None:
        value = said.get(key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return value if type(value) is int and 0 <= value < vocab_size else None

    given = said.get("bad_words_ids")
    rows = [row for row in given if isinstance(row, list) and row] if isinstance(given, list) else []
    known = [tuple(row) for row in rows if all(type(i) is int and 0 <= i < vocab_size for i in row)]
    penalty = said.get("length_penalty")
    if not isinstance(penalty, int | float) or not abs(penalty) <= MOST_LENGTH_PENALTY:
        penalty = None
    return Generation(
        num_beams=count("num_beams", MOST_BEAMS),
        length_penalty=None if penalty is None else float(penalty),
        max_length=count("max_length", LARGEST["max_len"]),
        bad_words_ids=tuple(word for word in known if word != (eos_id,)),
        forced_bos_token_id=token("forced_bos_token_id"),
        forced_eos_token_id=token("forced_eos_token_id"),
    )
