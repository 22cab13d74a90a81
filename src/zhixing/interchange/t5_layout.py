"""The names, shapes and settings that transformers gives the models of T5 and T5 v1.1, and back.

    ours                                 theirs (model_type t5)
    embedding.weight                     shared.weight
    positions_read.weight                encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight
    encoder.0.attention.qkv.weight       encoder.block.0.layer.0.SelfAttention.q, k, v, stacked by rows
    decoder.0.cross_attention.kv.weight  decoder.block.0.layer.1.EncDecAttention.k, v, stacked by rows
    decoder.0.feed_forward.up.weight     decoder.block.0.layer.2.DenseReluDense.wi, or wi_0 (gate) and wi_1, stacked
    norm.weight                          decoder.final_layer_norm.weight
    lm_head.weight                       lm_head.weight, where it is not tied

Whether the head is tied and sees smaller hidden states is one setting, as it is in every model of T5's authors:
tie_word_embeddings, or scale_decoder_outputs beside it, which transformers 5 writes and trusts.
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
    check_keys,
    check_stored,
    check_tied,
    count_of,
    flag_of,
    join_rows,
    number_of,
    split_rows,
)
from zhixing.models.t5 import FeedForwardKind, T5Settings

HEAD, SHARED = "lm_head.weight", "shared.weight"
FEED_FORWARDS: dict[str, FeedForwardKind] = {"gated-gelu": "gated-gelu", "relu": "relu"}
ACTIVATIONS: dict[FeedForwardKind, tuple[str, bool]] = {"gated-gelu": ("gelu_new", True), "relu": ("relu", False)}
ONLY_VALUES: dict[str, tuple[object, ...]] = {
    "model_type": ("t5",),
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "tie_encoder_decoder": (False,),
}  # where a key is missing, transformers computes as we do
READ_KEYS = WRITING_KEYS | {
    *("d_ff", "d_kv", "d_model", "dense_act_fn", "dropout_rate", "feed_forward_proj", "is_gated_act"),
    *("layer_norm_epsilon", "n_positions", "num_decoder_layers", "num_heads", "num_layers"),
    *("relative_attention_max_distance", "relative_attention_num_buckets", "scale_decoder_outputs"),
    *("classifier_dropout", "initializer_factor"),  # of another head, and of fresh parameters
}


def t5_rows(s: T5Settings) -> list[LayoutRow]:
    """Each parameter of ours, and where a file holds it."""
    d, f, inner = s.d_model, s.d_ff, s.n_heads * s.d_kv
    rows = [LayoutRow("embedding.weight", ((SHARED, (s.vocab_size, d)),))]
    for ours, side in (("positions_read", "encoder"), ("positions_written", "decoder")):
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows.append(LayoutRow(f"{ours}.weight", ((name, (s.n_buckets, s.n_heads)),)))
    ups = ("wi_0", "wi_1") if s.feed_forward == "gated-gelu" else ("wi",)
    for side, count in (("encoder", s.n_encoder_layers), ("decoder", s.n_layers)):
        for i in range(count):
            last = 1 if side == "encoder" else 2  # which of a block's layers is the feed-forward
            parts = [
                ("attention.qkv", 0, tuple(f"SelfAttention.{p}" for p in "qkv"), (inner, d)),
                ("attention.out", 0, ("SelfAttention.o",), (d, inner)),
                ("attention_norm", 0, ("layer_norm",), (d,)),
                ("feed_forward.up", last, tuple(f"DenseReluDense.{up}" for up in ups), (f, d)),
                ("feed_forward.down", last, ("DenseReluDense.wo",), (d, f)),
                ("feed_forward_norm", last, ("layer_norm",), (d,)),
            ]
            if side == "decoder":
                parts += [
                    ("cross_attention.q", 1, ("EncDecAttention.q",), (inner, d)),
                    ("cross_attention.kv", 1, ("EncDecAttention.k", "EncDecAttention.v"), (inner, d)),
                    ("cross_attention.out", 1, ("EncDecAttention.o",), (d, inner)),
                    ("cross_attention_norm", 1, ("layer_norm",), (d,)),
                ]
            for ours, layer, names, shape in parts:
                stored = tuple((f"{side}.block.{i}.layer.{layer}.{name}.weight", shape) for name in names)
                rows.append(LayoutRow(f"{side}.{i}.{ours}.weight", stored))
    rows.append(LayoutRow("encoder_norm.weight", (("encoder.final_layer_norm.weight", (d,)),)))
    rows.append(LayoutRow("norm.weight", (("decoder.final_layer_norm.weight", (d,)),)))
    if not s.tie_embeddings:
        rows.append(LayoutRow(HEAD, ((HEAD, (s.vocab_size, d)),)))
    return rows


def t5_shapes(s: T5Settings) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file must hold; the head of a file of transformers 5 may be left out."""
    return {name: shape for row in t5_rows(s) for name, shape in row.stored if name != HEAD}


def t5_to_layout(state: Mapping[str, Tensor], s: T5Settings) -> dict[str, Tensor]:
    """Our state dict -> the tensors of a file."""
    return split_rows(state, t5_rows(s))


def t5_from_layout(tensors: Mapping[str, Tensor], s: T5Settings) -> dict[str, Tensor]:
    """The tensors of a file -> our state dict. InputError: one that is missing, or of another shape.

    transformers 5 ties the head of every T5 that it makes itself, and writes it once, also where it does not scale:
    such a file's head is the embedding.
    """
    found = dict(tensors)
    if s.tie_embeddings:
        check_tied(found, HEAD, SHARED)
    if not s.tie_embeddings and HEAD not in found and SHARED in found:
        found[HEAD] = found[SHARED].clone()
    rows = t5_rows(s)
    check_stored(found, {name: shape for row in rows for name, shape in row.stored})
    return join_rows(found, rows)


def t5_config(s: T5Settings, *, eos_id: int, pad_id: int) -> dict[str, Any]:
    """config.json of a model."""
    activation, gated = ACTIVATIONS[s.feed_forward]
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": s.vocab_size,
        "d_model": s.d_model,
        "d_kv": s.d_kv,
        "d_ff": s.d_ff,
        "num_layers": s.n_encoder_layers,
        "num_decoder_layers": s.n_layers,
        "num_heads": s.n_heads,
        "n_positions": s.max_len,
        "relative_attention_num_buckets": s.n_buckets,
        "relative_attention_max_distance": s.max_distance,
        "feed_forward_proj": s.feed_forward,
        "dense_act_fn": activation,
        "is_gated_act": gated,
        "dropout_rate": s.dropout,
        "layer_norm_epsilon": s.norm_eps,
        "initializer_factor": 1.0,
        "decoder_start_token_id": s.start_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "tie_word_embeddings": s.tie_embeddings,
        "is_encoder_decoder": True,
    }


def t5_settings(config: Mapping[str, Any]) -> T5Settings:
    """Our settings from a config.json.

    InputError: a number that is missing or no count, a key that is not known, arithmetic that we do not have.
    """
    check_keys(config, "t5", READ_KEYS, ONLY_VALUES)
    kind = config.get("feed_forward_proj", "relu")
    if kind not in FEED_FORWARDS:
        raise InputError(
            f"feed_forward_proj = {kind!r} is not supported",
            where="config.json, feed_forward_proj",
            mend=f"we compute {', '.join(FEED_FORWARDS)}",
        )
    for key, value in zip(("dense_act_fn", "is_gated_act"), ACTIVATIONS[FEED_FORWARDS[kind]], strict=True):
        if config.get(key, value) != value:
            raise InputError(
                f"{key} = {config[key]!r} differs from feed_forward_proj = {kind!r}", where=f"config.json, {key}"
            )
    buckets = {
        "relative_attention_num_buckets": config.get("relative_attention_num_buckets", 32),
        "relative_attention_max_distance": config.get("relative_attention_max_distance", 128),
    }
    n_buckets, max_distance = (count_of(buckets, key) for key in buckets)
    if not 4 <= n_buckets < 2 * max_distance:
        raise InputError(
            f"relative_attention_num_buckets = {n_buckets} does not go with {max_distance} distances",
            where="config.json, relative_attention_num_buckets",
            mend="at least 4, and below 2 * relative_attention_max_distance",
        )
    vocab_size = count_of(config, "vocab_size")
    encoder_layers = count_of(config, "num_layers", largest=LARGEST["n_layers"])
    same = config.get("num_decoder_layers") is None
    start = next(
        (key for key in ("decoder_start_token_id", "pad_token_id") if config.get(key) is not None), "pad_token_id"
    )  # transformers 5 writes the start into generation_config.json only; all T5 models have pad for it
    tied = flag_of(config, "tie_word_embeddings", default=True)
    return T5Settings(
        vocab_size=vocab_size,
        d_model=count_of(config, "d_model"),
        d_kv=count_of(config, "d_kv"),
        n_encoder_layers=encoder_layers,
        n_layers=encoder_layers if same else count_of(config, "num_decoder_layers", largest=LARGEST["n_layers"]),
        n_heads=count_of(config, "num_heads"),
        d_ff=count_of(config, "d_ff"),
        max_len=count_of({"n_positions": 512, **config}, "n_positions", largest=LARGEST["max_len"]),
        dropout=number_of(config, "dropout_rate", 0.1, below=1.0),
        n_buckets=n_buckets,
        max_distance=max_distance,
        feed_forward=FEED_FORWARDS[kind],
        tie_embeddings=flag_of(config, "scale_decoder_outputs", default=tied),
        start_id=int(number_of({"pad_token_id": 0, **config}, start, 0, below=vocab_size)),
        norm_eps=number_of(config, "layer_norm_epsilon", 1e-6, below=1.0),
    )
