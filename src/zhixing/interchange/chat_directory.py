"""The folder of a chat model: a model directory with the template that its messages are rendered by.

    ...  chat_template.jinja

transformers' apply_chat_template, vLLM and others take it as it is. generation_config.json says what ends a reply and
how replies are sampled. In tokenizer_config.json `split_special_tokens` is false, as other tools encode what the
template has rendered as one text, control tokens included; zhixing itself never takes a person's words for control.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhixing.errors import InputError
from zhixing.files import MANIFEST, atomic_write
from zhixing.interchange.model_directory import (
    CONFIG,
    GENERATION_CONFIG,
    as_json,
    read_json,
    read_model_directory,
    write_model_directory,
)
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, is_seq2seq, read_seq2seq, write_seq2seq
from zhixing.models.gpt import GPT
from zhixing.tokens.tokenizer import Tokenizer

TEMPLATE = "chat_template.jinja"
TEMPLATE_LIMIT = 1 << 18  # bytes


@dataclass(frozen=True)
class StoredChat:
    """What a folder holds: a model, its tokenizer, its template, and how it samples unless told otherwise."""

    model: Any  # GPT, LSTM, or what reads one text and writes another
    tokenizer: Tokenizer
    template: str
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.0


def is_chat(folder: Path) -> bool:
    """Whether the folder is of a chat model: whether it has a template."""
    return (folder / TEMPLATE).is_file() and (folder / CONFIG).is_file()


def write_chat(folder: Path, stored: StoredChat, end_ids: tuple[int, ...]) -> None:
    """Write the files into `folder`, which may hold others; the manifest, last, is the caller's."""
    if isinstance(stored.model, GPT):
        write_model_directory(folder, stored.model, stored.tokenizer)
    else:
        write_seq2seq(folder, StoredSeq2Seq(stored.model, stored.tokenizer, "dialogue"), num_beams=1)
    settings = read_json(folder / "tokenizer_config.json")
    atomic_write(folder / "tokenizer_config.json", as_json({**settings, "split_special_tokens": False}))
    generation = read_json(folder / GENERATION_CONFIG)
    sampled = stored.temperature > 0
    generation |= {"eos_token_id": list(end_ids), "do_sample": sampled}
    if sampled:
        generation |= {"temperature": stored.temperature, "top_p": stored.top_p}
    if stored.repetition_penalty != 1:
        generation["repetition_penalty"] = stored.repetition_penalty
    atomic_write(folder / GENERATION_CONFIG, as_json(generation))
    atomic_write(folder / TEMPLATE, stored.template)
    (folder / MANIFEST).unlink(missing_ok=True)


def read_template(folder: Path) -> str:
    """The chat template of a folder; InputError where there is none that can be read."""
    path = folder / TEMPLATE
    try:
        if path.stat().st_size > TEMPLATE_LIMIT:
            raise InputError(f"the chat template is larger than {TEMPLATE_LIMIT:,} bytes", where=str(path))
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError("there is no chat template", where=str(path), why=str(error.strerror)) from None
    except UnicodeDecodeError as error:
        raise InputError("the chat template is not UTF-8", where=f"{path}, byte {error.start}") from None


def read_chat(folder: Path) -> StoredChat:
    """The model of a folder, fp32 and in eval mode. InputError: something is missing or damaged."""
    template = read_template(folder)
    if is_seq2seq(folder):
        stored = read_seq2seq(folder)
        model: Any
        model, tokenizer = stored.model, stored.tokenizer
    else:
        model, tokenizer, _ = read_model_directory(folder)
    said = read_json(folder / GENERATION_CONFIG) if (folder / GENERATION_CONFIG).is_file() else {}
    temperature = _number(said.get("temperature"), 1.0) if said.get("do_sample") else 0.0
    top_p, penalty = _number(said.get("top_p"), 1.0), _number(said.get("repetition_penalty"), 1.0)
    return StoredChat(model.eval(), tokenizer, template, temperature, top_p, penalty)


def _number(value: Any, otherwise: float) -> float:
    """What another tool's file says, if it is a number above 0."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 100
    return float(value) if usable else otherwise
