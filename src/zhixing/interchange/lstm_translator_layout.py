"""The names, shapes and settings of a file of the recurrent translator (models/lstm_translator.py).

No other tool has this model: the model_type is our own, `zhixing_lstm_translator`, and tensors have our names. The head
is stored only where it is not tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zhixing.errors import InputError
from zhixing.interchange.transformers_layout import (
    LARGEST,
    WRITING_KEYS,
    LayoutRow,
    check_divides,
    check_keys,
    check_stored,
    check_tied,
    count_of,
    flag_of,
    join_rows,
    number_of,
    split_rows,
)
from zhixing.models.lstm_translator import AttentionKind, LSTMTranslatorSettings

MODEL_TYPE = "zhixing_lstm_translator"
ATTENTIONS: dict[str, AttentionKind] = {"bahdanau": "bahdanau", "luong": "luong"}
EMBEDDING, HEAD = "embedding.weight", "lm_head.weight"
READ_KEYS = WRITING_KEYS | {
    *("attention", "d_model", "decoder_layers", "dropout", "encoder_layers", "is_encoder_decoder"),
    *("max_position_embeddings", "pointer"),
}


def lstm_translator_shapes(s: LSTMTranslatorSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file: our state dict's."""
    d, additive = s.d_model, s.attention == "bahdanau"
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (s.vocab_size, d)}

    def add_layer(name: str, suffix: str, n_in: int, n_hidden: int) -> None:
        shapes[f"{name}.weight_ih_{suffix}"] = (4 * n_hidden, n_in)
        shapes[f"{name}.weight_hh_{suffix}"] = (4 * n_hidden, n_hidden)
        shapes[f"{name}.bias_ih_{suffix}"] = shapes[f"{name}.bias_hh_{suffix}"] = (4 * n_hidden,)

    for i in range(s.n_encoder_layers):
        for way in ("", "_reverse"):
            add_layer("encoder", f"l{i}{way}", d, d // 2)
    for i in range(s.n_layers):
        add_layer("decoder.recurrence", f"l{i}", 2 * d if additive and i == 0 else d, d)
    shapes["decoder.attention.key.weight"] = (d, d)
    if additive:
        shapes["decoder.attention.query.weight"] = (d, d)
        shapes["decoder.attention.query.bias"] = shapes["decoder.attention.v"] = (d,)
    shapes["decoder.start.weight"] = (2 * s.n_layers * d, d)
    shapes["decoder.start.bias"] = (2 * s.n_layers * d,)
    shapes["decoder.join.weight"] = (d, 2 * d)
    if s.pointer:
        shapes["decoder.pointer.weight"], shapes["decoder.pointer.bias"] = (1, 2 * d), (1,)
    if not s.tie_embeddings:
        shapes[HEAD] = (s.vocab_size, d)
    return shapes


def _rows(s: LSTMTranslatorSettings) -> list[LayoutRow]:
    return [LayoutRow(name, ((name, shape),)) for name, shape in lstm_translator_shapes(s).items()]


def lstm_translator_to_layout(state: Mapping[str, Tensor], s: LSTMTranslatorSettings) -> dict[str, Tensor]:
    """Our state dict -> the tensors of a file."""
    return split_rows(state, _rows(s))


def lstm_translator_from_layout(tensors: Mapping[str, Tensor], s: LSTMTranslatorSettings) -> dict[str, Tensor]:
    """The tensors of a file -> our state dict. InputError: one that is missing, or of another shape."""
    check_stored(tensors, lstm_translator_shapes(s))
    if s.tie_embeddings:
        check_tied(tensors, HEAD, EMBEDDING)
    return join_rows(dict(tensors), _rows(s))


def lstm_translator_config(s: LSTMTranslatorSettings, *, eos_id: int, pad_id: int) -> dict[str, Any]:
    """config.json of a model."""
    return {
        "architectures": ["ZhixingLSTMTranslator"],
        "model_type": MODEL_TYPE,
        "vocab_size": s.vocab_size,
        "d_model": s.d_model,
        "encoder_layers": s.n_encoder_layers,
        "decoder_layers": s.n_layers,
        "max_position_embeddings": s.max_len,
        "dropout": s.dropout,
        "attention": s.attention,
        "pointer": s.pointer,
        "decoder_start_token_id": s.start_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "tie_word_embeddings": s.tie_embeddings,
        "is_encoder_decoder": True,
    }


def lstm_translator_settings(config: Mapping[str, Any]) -> LSTMTranslatorSettings:
    """Our settings from a config.json. InputError: a key that is missing or not known, a value that cannot be used."""
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"model_type = {config.get('model_type')!r} is not {MODEL_TYPE}", where="config.json, model_type"
        )
    check_keys(config, MODEL_TYPE, READ_KEYS, {})
    for key in ("dropout", "attention", "decoder_start_token_id", "tie_word_embeddings"):  # nobody else writes this
        if key not in config:
            raise InputError(f"config.json has no {key}", where=f"config.json, {key}")
    attention = config["attention"]
    if not isinstance(attention, str) or attention not in ATTENTIONS:
        raise InputError(
            f"attention = {attention!r} is not supported",
            where="config.json, attention",
            mend=f"we compute {', '.join(ATTENTIONS)}",
        )
    vocab_size, d_model = count_of(config, "vocab_size"), count_of(config, "d_model")
    check_divides(2, d_model, "d_model", "d_model")  # each direction of the encoder has half
    start_id = number_of(config, "decoder_start_token_id", 0, below=vocab_size)
    if start_id != int(start_id):
        raise InputError(f"decoder_start_token_id = {start_id} is no id", where="config.json, decoder_start_token_id")
    return LSTMTranslatorSettings(
        vocab_size=vocab_size,
        d_model=d_model,
        n_encoder_layers=count_of(config, "encoder_layers", largest=LARGEST["n_layers"]),
        n_layers=count_of(config, "decoder_layers", largest=LARGEST["n_layers"]),
        max_len=count_of(config, "max_position_embeddings", largest=LARGEST["max_len"]),
        dropout=number_of(config, "dropout", 0.0, below=1.0),
        attention=ATTENTIONS[attention],
        tie_embeddings=flag_of(config, "tie_word_embeddings", default=True),
        start_id=int(start_id),
        pointer=flag_of(config, "pointer", default=False),
    )
