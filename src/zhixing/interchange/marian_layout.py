"""The names, shapes and settings that transformers gives the models of Marian and OPUS-MT, and back.

    ours                                      theirs (model_type marian)
    embedding.weight                          model.shared.weight, or model.decoder.embed_tokens.weight
    source_embedding.weight                   model.encoder.embed_tokens.weight, where each side has a table
    encoder.0.attention.qkv.weight            model.encoder.layers.0.self_attn.q_proj, k_proj, v_proj, stacked by rows
    decoder.0.cross_attention.kv.weight       model.decoder.layers.0.encoder_attn.k_proj, v_proj, stacked by rows
    decoder.0.feed_forward.up.weight          model.decoder.layers.0.fc1.weight
    logits_bias                               final_logits_bias (1, V)

Positions follow from the settings: files that hold their table are read without it.
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
    count_of,
    flag_of,
    join_rows,
    number_of,
    split_rows,
)
from zhixing.models.marian import Activation, MarianSettings

ACTIVATIONS: dict[str, Activation] = {"swish": "silu", "silu": "silu", "gelu": "gelu", "relu": "relu"}
BIAS = "final_logits_bias"
ONLY_VALUES: dict[str, tuple[object, ...]] = {
    "normalize_before": (False,),
    "normalize_embedding": (False,),
    "add_final_layer_norm": (False,),
    "static_position_embeddings": (True,),
    "add_bias_logits": (False,),
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "tie_word_embeddings": (True,),
}  # arithmetic that we do not have, in part that of old files; where a key is missing, transformers computes as we do
READ_KEYS = WRITING_KEYS | {
    *("activation_function", "d_model", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layers"),
    *("decoder_vocab_size", "dropout", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layers"),
    *("max_position_embeddings", "scale_embedding", "share_encoder_decoder_embeddings"),
    *("activation_dropout", "decoder_layerdrop", "encoder_layerdrop", "init_std"),  # for training; we have one dropout
    *("_num_labels", "classif_dropout", "classifier_dropout", "num_hidden_layers"),  # nothing reads these and
    "extra_pos_embeddings",  # OPUS-MT has the size of the vocabulary there
}


def marian_rows(s: MarianSettings) -> list[LayoutRow]:
    """Each parameter of ours but the logits' bias, and where a file holds it."""
    d, f = s.d_model, s.d_ff
    shared = not s.source_vocab_size
    table = "model.shared.weight" if shared else "model.decoder.embed_tokens.weight"
    rows = [LayoutRow("embedding.weight", ((table, (s.vocab_size, d)),))]
    if not shared:
        source = ("model.encoder.embed_tokens.weight", (s.source_vocab_size, d))
        rows.append(LayoutRow("source_embedding.weight", (source,)))
    for side, count in (("encoder", s.n_encoder_layers), ("decoder", s.n_layers)):
        for i in range(count):
            mine, theirs = f"{side}.{i}", f"model.{side}.layers.{i}"
            parts = [
                ("attention.qkv", tuple(f"self_attn.{p}_proj" for p in "qkv"), (d, d)),
                ("attention.out", ("self_attn.out_proj",), (d, d)),
                ("feed_forward.up", ("fc1",), (f, d)),
                ("feed_forward.down", ("fc2",), (d, f)),
            ]
            norms = [("attention_norm", "self_attn_layer_norm"), ("feed_forward_norm", "final_layer_norm")]
            if side == "decoder":
                parts += [
                    ("cross_attention.q", ("encoder_attn.q_proj",), (d, d)),
                    ("cross_attention.kv", ("encoder_attn.k_proj", "encoder_attn.v_proj"), (d, d)),
                    ("cross_attention.out", ("encoder_attn.out_proj",), (d, d)),
                ]
                norms.append(("cross_attention_norm", "encoder_attn_layer_norm"))
            for ours, names, shape in parts:
                for kind, size in (("weight", shape), ("bias", shape[:1])):
                    stored = tuple((f"{theirs}.{name}.{kind}", size) for name in names)
                    rows.append(LayoutRow(f"{mine}.{ours}.{kind}", stored))
            for ours, name in norms:
                for kind in ("weight", "bias"):
                    rows.append(LayoutRow(f"{mine}.{ours}.{kind}", ((f"{theirs}.{name}.{kind}", (d,)),)))
    return rows


def marian_shapes(s: MarianSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file."""
    shapes = {name: shape for row in marian_rows(s) for name, shape in row.stored}
    return {**shapes, BIAS: (1, s.vocab_size)}


def marian_to_layout(state: Mapping[str, Tensor], s: MarianSettings) -> dict[str, Tensor]:
    """Our state dict -> the tensors of a file."""
    return {BIAS: state["logits_bias"][None].clone(), **split_rows(state, marian_rows(s))}


def marian_from_layout(tensors: Mapping[str, Tensor], s: MarianSettings) -> dict[str, Tensor]:
    """The tensors of a file -> our state dict. InputError: one that is missing, or of another shape."""
    rows = [*marian_rows(s), LayoutRow("logits_bias", ((BIAS, (1, s.vocab_size)),))]
    check_stored(tensors, marian_shapes(s))
    state = join_rows(dict(tensors), rows)
    state["logits_bias"] = state["logits_bias"][0]
    return state


def marian_config(s: MarianSettings, *, eos_id: int, pad_id: int) -> dict[str, Any]:
    """config.json of a model."""
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "vocab_size": s.source_vocab_size or s.vocab_size,
        "decoder_vocab_size": s.vocab_size,
        "share_encoder_decoder_embeddings": not s.source_vocab_size,
        "d_model": s.d_model,
        "encoder_layers": s.n_encoder_layers,
        "decoder_layers": s.n_layers,
        "encoder_attention_heads": s.n_heads,
        "decoder_attention_heads": s.n_heads,
        "encoder_ffn_dim": s.d_ff,
        "decoder_ffn_dim": s.d_ff,
        "max_position_embeddings": s.max_len,
        "dropout": s.dropout,
        "attention_dropout": s.dropout,
        "activation_dropout": 0.0,
        "activation_function": s.activation,
        "scale_embedding": s.scale_embedding,
        "decoder_start_token_id": s.start_id,
        "eos_token_id": eos_id,
        "forced_eos_token_id": None,
        "pad_token_id": pad_id,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
    }


def marian_settings(config: Mapping[str, Any]) -> MarianSettings:
    """Our settings from a config.json.

    InputError: a number that is missing or no count, a key that is not known, arithmetic that we do not have.
    """
    check_keys(config, "marian", READ_KEYS, ONLY_VALUES)
    for side, other in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
    ):
        if config.get(side) != config.get(other):
            raise InputError(
                f"{side} = {config.get(side)!r} differs from {other} = {config.get(other)!r}", where="config.json"
            )
    activation = config.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"activation_function = {activation!r} is not supported",
            where="config.json, activation_function",
            mend=f"we compute {', '.join(ACTIVATIONS)}",
        )
    shared = flag_of(config, "share_encoder_decoder_embeddings", default=True)
    source = count_of(config, "vocab_size")
    written = source if config.get("decoder_vocab_size") is None else count_of(config, "decoder_vocab_size")
    if shared and written != source:
        raise InputError(
            f"decoder_vocab_size = {written} differs from vocab_size = {source}, while both sides share one table",
            where="config.json, share_encoder_decoder_embeddings",
        )
    d_model, n_heads = count_of(config, "d_model"), count_of(config, "encoder_attention_heads")
    check_divides(n_heads, d_model, "encoder_attention_heads", "d_model")
    check_divides(2, d_model, "d_model", "d_model")  # half of a position's channels are sines
    return MarianSettings(
        vocab_size=written,
        source_vocab_size=0 if shared else source,
        d_model=d_model,
        n_encoder_layers=count_of(config, "encoder_layers", largest=LARGEST["n_layers"]),
        n_layers=count_of(config, "decoder_layers", largest=LARGEST["n_layers"]),
        n_heads=n_heads,
        d_ff=count_of(config, "encoder_ffn_dim"),
        max_len=count_of(config, "max_position_embeddings", largest=LARGEST["max_len"]),
        dropout=number_of(config, "dropout", 0.1, below=1.0),
        activation=ACTIVATIONS[activation],
        scale_embedding=flag_of(config, "scale_embedding", default=False),
        start_id=int(number_of(config, "decoder_start_token_id", 0, below=written)),
    )
