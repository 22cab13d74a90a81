"""The names, shapes and settings that transformers gives our models, and back: pure functions on dictionaries.

Our parameters have our names; files have theirs. One literal table a layout (`layout_rows`) says which tensors of a
file make which parameter of ours, and whether it is stored transposed; everything here is read off it:

    ours                                    gpt2 (Conv1D: [in, out])      llama, qwen3
    embedding.weight                        transformer.wte.weight        model.embed_tokens.weight
    blocks.0.attention.qkv.weight           h.0.attn.c_attn.weight, T     q_proj, k_proj, v_proj, stacked by rows
    blocks.0.feed_forward.gate_up.weight                                  gate_proj, up_proj, stacked by rows
    lm_head.weight                          only where it is not tied     only where it is not tied

The two halves of a head turn against one another in rotary positions (channel i with i + K/2), in our models as in
theirs, so no channel is moved. The LSTM has no class there: it is stored under our own model_type, `zhixing_lstm`.
bert and distilbert have one table for the encoder and one more for each head; config.json's `architectures` says which.

A config.json is somebody's word, so nothing is imported or built by its names: the model types are a literal table, a
key that we do not know is an error, and so is a value that our arithmetic does not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.models.bert import BertSettings
from zhixing.models.gpt import GPTSettings
from zhixing.models.lstm import LSTMSettings

Settings = GPTSettings | LSTMSettings | BertSettings
Shape = tuple[int, ...]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "zhixing_lstm": "ZhixingLSTM",
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
}
Head = Literal["none", "masked_lm", "classifier"]
HEADS: dict[str, dict[str, Head]] = {  # of each architecture; the first with a head is what is written for it
    "bert": {
        "BertModel": "none",
        "BertForMaskedLM": "masked_lm",
        "BertForSequenceClassification": "classifier",
        "BertForPreTraining": "masked_lm",  # its second head, next sentences, is passed over
    },
    "distilbert": {
        "DistilBertModel": "none",
        "DistilBertForMaskedLM": "masked_lm",
        "DistilBertForSequenceClassification": "classifier",
    },
}
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEM_TYPES: tuple[ProblemType, ...] = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class TokenizerFacts:
    """What config.json says about the tokenizer."""

    eos_id: int
    pad_id: int | None
    fingerprint: str


@dataclass(frozen=True)
class LabelFacts:
    """What config.json says about a classifier's outputs: the label of each, and what kind of answer they are."""

    names: tuple[str, ...]
    problem_type: ProblemType


@dataclass(frozen=True)
class LayoutRow:
    """One parameter of ours, and the tensors of a file that make it, stacked by rows in that order."""

    ours: str
    stored: tuple[tuple[str, Shape], ...]  # name and shape in the file
    transposed: bool = False  # a transposed parameter is one tensor


# --- tensors -----------------------------------------------------------------------------------------------------


def layout_rows(settings: Settings) -> list[LayoutRow]:
    """The table of a model: each of its parameters, and where a file of its layout holds it. Tied tensors come once."""
    if isinstance(settings, LSTMSettings):
        return _lstm_rows(settings)
    if isinstance(settings, BertSettings):
        return _bert_rows(settings)
    return _gpt2_rows(settings) if settings.layout == "gpt2" else _modern_rows(settings)


def _one(ours: str, name: str, *shape: int) -> LayoutRow:
    return LayoutRow(ours, ((name, shape),))


def _gpt2_rows(s: GPTSettings) -> list[LayoutRow]:
    d, f = s.d_model, s.d_ff
    rows = [
        _one("embedding.weight", "transformer.wte.weight", s.vocab_size, d),
        _one("positions.weight", "transformer.wpe.weight", s.max_len, d),
    ]
    for i in range(s.n_layers):
        mine, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for norm, stored in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            rows.append(_one(f"{mine}.{norm}.weight", f"{theirs}.{stored}.weight", d))
            rows.append(_one(f"{mine}.{norm}.bias", f"{theirs}.{stored}.bias", d))
        for linear, stored, n_in, n_out in (
            ("attention.qkv", "attn.c_attn", d, 3 * d),
            ("attention.out", "attn.c_proj", d, d),
            ("feed_forward.up", "mlp.c_fc", d, f),
            ("feed_forward.down", "mlp.c_proj", f, d),
        ):
            rows.append(LayoutRow(f"{mine}.{linear}.weight", ((f"{theirs}.{stored}.weight", (n_in, n_out)),), True))
            rows.append(_one(f"{mine}.{linear}.bias", f"{theirs}.{stored}.bias", n_out))
    rows.append(_one("norm.weight", "transformer.ln_f.weight", d))
    rows.append(_one("norm.bias", "transformer.ln_f.bias", d))
    return rows + _head_rows(s)


def _modern_rows(s: GPTSettings) -> list[LayoutRow]:
    d, f, head_size = s.d_model, s.d_ff, s.d_model // s.n_heads
    q, kv = (s.n_heads * head_size, d), (s.n_kv_heads * head_size, d)
    rows = [_one("embedding.weight", "model.embed_tokens.weight", s.vocab_size, d)]
    for i in range(s.n_layers):
        mine, theirs = f"blocks.{i}", f"model.layers.{i}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        rows.append(_one(f"{mine}.attention_norm.weight", f"{theirs}.input_layernorm.weight", d))
        rows.append(
            LayoutRow(
                f"{mine}.attention.qkv.weight",
                (
                    (f"{attention}.q_proj.weight", q),
                    (f"{attention}.k_proj.weight", kv),
                    (f"{attention}.v_proj.weight", kv),
                ),
            )
        )
        if s.layout == "qwen3":
            rows.append(_one(f"{mine}.attention.q_norm.weight", f"{attention}.q_norm.weight", head_size))
            rows.append(_one(f"{mine}.attention.k_norm.weight", f"{attention}.k_norm.weight", head_size))
        rows.append(_one(f"{mine}.attention.out.weight", f"{attention}.o_proj.weight", d, q[0]))
        rows.append(_one(f"{mine}.feed_forward_norm.weight", f"{theirs}.post_attention_layernorm.weight", d))
        rows.append(
            LayoutRow(
                f"{mine}.feed_forward.gate_up.weight",
                ((f"{mlp}.gate_proj.weight", (f, d)), (f"{mlp}.up_proj.weight", (f, d))),
            )
        )
        rows.append(_one(f"{mine}.feed_forward.down.weight", f"{mlp}.down_proj.weight", d, f))
    rows.append(_one("norm.weight", "model.norm.weight", d))
    return rows + _head_rows(s)


def _lstm_rows(s: LSTMSettings) -> list[LayoutRow]:
    """Our own names: nobody else has this model type."""
    d = s.d_model
    rows = [_one("embedding.weight", "embedding.weight", s.vocab_size, d)]
    for i in range(s.n_layers):
        for kind in ("weight_ih", "weight_hh"):
            rows.append(_one(f"recurrence.{kind}_l{i}", f"recurrence.{kind}_l{i}", 4 * d, d))
        for kind in ("bias_ih", "bias_hh"):
            rows.append(_one(f"recurrence.{kind}_l{i}", f"recurrence.{kind}_l{i}", 4 * d))
    return rows + _head_rows(s)


# Names of ours in the encoder and in a block, and those of the two layouts.
BERT_NAMES: dict[str, tuple[str, str]] = {
    "embedding_norm": ("embeddings.LayerNorm", "embeddings.LayerNorm"),
    "layers": ("encoder.layer", "transformer.layer"),
    "attention.q": ("attention.self.query", "attention.q_lin"),
    "attention.k": ("attention.self.key", "attention.k_lin"),
    "attention.v": ("attention.self.value", "attention.v_lin"),
    "attention.out": ("attention.output.dense", "attention.out_lin"),
    "attention_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "feed_forward.up": ("intermediate.dense", "ffn.lin1"),
    "feed_forward.down": ("output.dense", "ffn.lin2"),
    "feed_forward_norm": ("output.LayerNorm", "output_layer_norm"),
    "transform": ("cls.predictions.transform.dense", "vocab_transform"),
    "transform_norm": ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
    "bias": ("cls.predictions.bias", "vocab_projector.bias"),
}


def _bert_rows(s: BertSettings) -> list[LayoutRow]:
    d, f, v = s.d_model, s.d_ff, s.vocab_size
    column = 0 if s.layout == "bert" else 1
    named = {ours: names[column] for ours, names in BERT_NAMES.items()}
    mine, theirs = ("", "") if s.head == "none" else ("encoder.", f"{s.layout}.")

    def both(ours: str, stored: str, *shape: int) -> list[LayoutRow]:
        """A weight and its bias, which has the weight's rows."""
        return [_one(f"{ours}.weight", f"{stored}.weight", *shape), _one(f"{ours}.bias", f"{stored}.bias", shape[0])]

    rows = [
        _one(f"{mine}embedding.weight", f"{theirs}embeddings.word_embeddings.weight", v, d),
        _one(f"{mine}positions.weight", f"{theirs}embeddings.position_embeddings.weight", s.max_len, d),
    ]
    if s.layout == "bert":
        stored = f"{theirs}embeddings.token_type_embeddings.weight"
        rows.append(_one(f"{mine}types.weight", stored, s.type_vocab_size, d))
    rows += both(f"{mine}embedding_norm", theirs + named["embedding_norm"], d)
    for i in range(s.n_layers):
        block, layer = f"{mine}blocks.{i}", f"{theirs}{named['layers']}.{i}"
        for kind, shape in (("weight", (d, d)), ("bias", (d,))):
            parts = tuple((f"{layer}.{named[f'attention.{part}']}.{kind}", shape) for part in "qkv")
            rows.append(LayoutRow(f"{block}.attention.qkv.{kind}", parts))
        rows += both(f"{block}.attention.out", f"{layer}.{named['attention.out']}", d, d)
        rows += both(f"{block}.attention_norm", f"{layer}.{named['attention_norm']}", d)
        rows += both(f"{block}.feed_forward.up", f"{layer}.{named['feed_forward.up']}", f, d)
        rows += both(f"{block}.feed_forward.down", f"{layer}.{named['feed_forward.down']}", d, f)
        rows += both(f"{block}.feed_forward_norm", f"{layer}.{named['feed_forward_norm']}", d)
    if s.layout == "bert" and s.head != "masked_lm":
        rows += both(f"{mine}pooler", f"{theirs}pooler.dense", d, d)
    if s.head == "masked_lm":
        rows += both("transform", named["transform"], d, d)
        rows += both("transform_norm", named["transform_norm"], d)
        rows.append(_one("bias", named["bias"], v))
    if s.head == "classifier":
        if s.layout == "distilbert":
            rows += both("pre_classifier", "pre_classifier", d, d)
        rows += both("classifier", "classifier", s.n_labels, d)
    return rows


def _head_rows(s: GPTSettings | LSTMSettings) -> list[LayoutRow]:
    return [] if s.tie_embeddings else [_one("lm_head.weight", "lm_head.weight", s.vocab_size, s.d_model)]


def layout_shapes(settings: Settings) -> dict[str, Shape]:
    """Name and shape of every tensor in a file of this layout, in the file's order."""
    return {name: shape for row in layout_rows(settings) for name, shape in row.stored}


def to_layout(state: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """Our state dict -> the tensors of a file: contiguous, each of its own memory, tied ones once."""
    rows = layout_rows(settings)
    left = set(state) - {row.ours for row in rows}
    if not isinstance(settings, BertSettings) and settings.tie_embeddings:
        left.discard("lm_head.weight")
    assert not left, f"parameters without a place in the layout: {sorted(left)}"
    return split_rows(state, rows)


def split_rows(state: Mapping[str, Tensor], rows: Iterable[LayoutRow]) -> dict[str, Tensor]:
    """The tensors of a file that these rows make of our parameters: contiguous, each of its own memory."""
    tensors = {}
    for row in rows:
        ours = state[row.ours].detach()
        begin = 0
        for name, shape in row.stored:
            part = ours.t() if row.transposed else ours[begin : begin + shape[0]]
            begin += shape[0]
            assert tuple(part.shape) == shape, f"{name}: {tuple(part.shape)} is not {shape}"
            tensors[name] = part.clone(memory_format=torch.contiguous_format)
    return tensors


def from_layout(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> tuple[Settings, dict[str, Tensor]]:
    """The tensors of a file and its config.json -> our settings and state dict. InputError where they do not fit.

    `tensors` is emptied on the way, so that memory never holds the weights twice.
    """
    settings = settings_of(config)
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, settings)
    for name in list(tensors):
        tensors[canonical_name(name, settings)] = tensors.pop(name)
    for copy, original in tied_copies(settings).items():
        if copy in tensors and not torch.equal(tensors[copy], tensors[original]):
            what = "the embeddings" if original.endswith("weight") else original
            raise InputError(
                f"{copy} differs from {what}, while the config says that they are tied",
                where="config.json, tie_word_embeddings",
                mend="" if isinstance(settings, BertSettings) else "set tie_word_embeddings to false",
            )
    return settings, join_rows(tensors, layout_rows(settings))


def join_rows(tensors: dict[str, Tensor], rows: Iterable[LayoutRow]) -> dict[str, Tensor]:
    """Our parameters of a file's tensors, which are emptied on the way: a model is held once, not twice."""
    state = {}
    for row in rows:
        parts = [tensors.pop(name) for name, _ in row.stored]
        if row.transposed:
            state[row.ours] = parts[0].t().contiguous()
        else:
            state[row.ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return state


def check_stored(found: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> None:
    """InputError for a tensor of a file that is missing, or of another shape."""
    for name, shape in shapes.items():
        if name not in found:
            raise InputError(f"the weights hold no {name}", mend="config.json and the weights must be of one model")
        if tuple(found[name].shape) != shape:
            raise InputError(f"{name} has the shape {list(found[name].shape)}, config.json makes it {list(shape)}")


def check_tied(found: Mapping[str, Tensor], head: str, embedding: str) -> None:
    """InputError for a head that is stored and differs from the embedding, while the config says that they are one."""
    if head in found and embedding in found and not torch.equal(found[head], found[embedding]):
        raise InputError(
            f"{head} differs from {embedding}, while the config says that they are tied",
            where="config.json, tie_word_embeddings",
            mend="set tie_word_embeddings to false",
        )


def tied_copies(settings: Settings) -> dict[str, str]:
    """Tensors that a file may hold though they are another one: the copy's name, and whose copy it is."""
    (embedding, _), *_ = layout_rows(settings)[0].stored
    if isinstance(settings, BertSettings):
        if settings.head != "masked_lm":
            return {}
        if settings.layout == "distilbert":
            return {"vocab_projector.weight": embedding}
        return {
            "cls.predictions.decoder.weight": embedding,
            "cls.predictions.decoder.bias": BERT_NAMES["bias"][0],
        }
    return {"lm_head.weight": embedding} if settings.tie_embeddings else {}


def is_passed_over(name: str, settings: Settings) -> bool:
    """What a file of BertForPreTraining holds beside the masked model: the head for next sentences."""
    is_masked_bert = isinstance(settings, BertSettings) and (settings.layout, settings.head) == ("bert", "masked_lm")
    return is_masked_bert and name.startswith(("bert.pooler.dense.", "cls.seq_relationship."))


def canonical_name(name: str, settings: Settings) -> str:
    """The name of a tensor as the layout has it.

    OpenAI's own gpt2 files leave the first word out; Google's bert files call a norm's weight and bias gamma and beta.
    """
    if isinstance(settings, BertSettings):
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    if (
        isinstance(settings, GPTSettings)
        and settings.layout == "gpt2"
        and name.startswith(("wte.", "wpe.", "h.", "ln_f."))
    ):
        return f"transformer.{name}"
    return name


def is_buffer(name: str) -> bool:
    """Tables that older files hold beside the weights, and that follow from the settings."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "embeddings.position_ids"))


def check_shapes(found: Mapping[str, Shape], settings: Settings) -> None:
    """Names and shapes of a file against what its config says; InputError names the first that does not fit."""
    expected = layout_shapes(settings)
    names = [canonical_name(name, settings) for name in found if not is_buffer(name)]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise InputError(
            f"the weights hold {twice} twice",
            why="under its name and under OpenAI's",
            mend="leave one of the two in the file",
        )
    found = {
        canonical_name(name, settings): shape
        for name, shape in found.items()
        if not is_buffer(name) and not is_passed_over(name, settings)
    }
    expected |= {copy: expected[original] for copy, original in tied_copies(settings).items() if copy in found}
    missing, unknown = [n for n in expected if n not in found], [n for n in found if n not in expected]
    if missing or unknown:
        counts = " and ".join(
            f"{len(names)} {kind} (the first is {names[0]})"
            for kind, names in (("missing", missing), ("not known", unknown))
            if names
        )
        raise InputError(
            f"the weights do not fit config.json: of {len(expected)} tensors {counts}",
            mend="config.json and the weights must be of one model",
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(f"{name} has the shape {list(found[name])}, config.json makes it {list(shape)}")


# --- config.json -------------------------------------------------------------------------------------------------


def model_type_of(settings: Settings) -> str:
    return "zhixing_lstm" if isinstance(settings, LSTMSettings) else settings.layout


def config_of(
    settings: Settings,
    tokenizer: TokenizerFacts,
    dtype: Literal["float32", "bfloat16", "float16"],
    labels: LabelFacts | None = None,
) -> dict[str, Any]:
    """config.json of a model. `zhixing` holds what is ours: other tools pass over it.

    `labels` are a classifier's; if not given they are LABEL_0, LABEL_1, ... as in transformers.
    """
    model_type = model_type_of(settings)
    if isinstance(settings, BertSettings):
        return _bert_config(settings, tokenizer, dtype, labels)
    config: dict[str, Any] = {"architectures": [ARCHITECTURES[model_type]], "model_type": model_type}
    if isinstance(settings, LSTMSettings):
        config |= {
            "hidden_size": settings.d_model,
            "num_hidden_layers": settings.n_layers,
            "max_position_embeddings": settings.max_len,
            "dropout": settings.dropout,
        }
    elif settings.layout == "gpt2":
        config |= {
            "n_embd": settings.d_model,
            "n_layer": settings.n_layers,
            "n_head": settings.n_heads,
            "n_inner": settings.d_ff,
            "n_positions": settings.max_len,
            "n_ctx": settings.max_len,  # converters to GGUF read this one
            "activation_function": "gelu_new",
            "layer_norm_epsilon": settings.norm_eps,
            "embd_pdrop": settings.dropout,
            "attn_pdrop": settings.dropout,
            "resid_pdrop": settings.dropout,
            "scale_attn_weights": True,
        }
    else:
        config |= {
            "hidden_size": settings.d_model,
            "num_hidden_layers": settings.n_layers,
            "num_attention_heads": settings.n_heads,
            "num_key_value_heads": settings.n_kv_heads,
            "head_dim": settings.d_model // settings.n_heads,
            "intermediate_size": settings.d_ff,
            "max_position_embeddings": settings.max_len,
            "hidden_act": "silu",
            "rms_norm_eps": settings.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta},  # transformers 5
            "rope_theta": settings.rope_theta,  # everybody else
            "attention_bias": False,
            "attention_dropout": settings.dropout,
        }
        config |= {"use_sliding_window": False} if settings.layout == "qwen3" else {"mlp_bias": False}
    return config | {
        "vocab_size": settings.vocab_size,
        "tie_word_embeddings": settings.tie_embeddings,
        "bos_token_id": tokenizer.eos_id,  # a document begins after the end of another
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "dtype": dtype,
        "zhixing": {"tokenizer_fingerprint": tokenizer.fingerprint},
    }


def _bert_config(s: BertSettings, tokenizer: TokenizerFacts, dtype: str, labels: LabelFacts | None) -> dict[str, Any]:
    architecture = next(name for name, head in HEADS[s.layout].items() if head == s.head)
    config: dict[str, Any] = {"architectures": [architecture], "model_type": s.layout}
    if s.layout == "bert":
        config |= {
            "hidden_size": s.d_model,
            "num_hidden_layers": s.n_layers,
            "num_attention_heads": s.n_heads,
            "intermediate_size": s.d_ff,
            "hidden_act": "gelu",
            "max_position_embeddings": s.max_len,
            "type_vocab_size": s.type_vocab_size,
            "hidden_dropout_prob": s.dropout,
            "attention_probs_dropout_prob": s.dropout,
            "layer_norm_eps": s.norm_eps,
            "position_embedding_type": "absolute",
        }
    else:
        config |= {
            "dim": s.d_model,
            "n_layers": s.n_layers,
            "n_heads": s.n_heads,
            "hidden_dim": s.d_ff,
            "activation": "gelu",
            "max_position_embeddings": s.max_len,
            "dropout": s.dropout,
            "attention_dropout": s.dropout,
            "seq_classif_dropout": s.dropout,
            "sinusoidal_pos_embds": False,
        }
    if s.head == "classifier":
        kind: ProblemType = "regression" if s.n_labels == 1 else "single_label_classification"
        labels = labels or LabelFacts(tuple(f"LABEL_{i}" for i in range(s.n_labels)), kind)
        assert len(labels.names) == len(set(labels.names)) == s.n_labels, labels
        config |= {
            "id2label": {str(i): name for i, name in enumerate(labels.names)},
            "label2id": {name: i for i, name in enumerate(labels.names)},
            "problem_type": labels.problem_type,
        }
    return config | {
        "vocab_size": s.vocab_size,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_id,
        "dtype": dtype,
        "zhixing": {"tokenizer_fingerprint": tokenizer.fingerprint},
    }


# Keys whose value changes nothing in the arithmetic of a causal model.
INERT_KEYS = frozenset(
    {
        *("_name_or_path", "architectures", "attn_pdrop", "attention_dropout", "bos_token_id"),
        *("chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id", "gradient_checkpointing", "id2label"),
        *("initializer_range", "is_decoder", "label2id", "max_window_layers", "output_attentions"),
        *("output_hidden_states", "output_past", "pad_token_id", "problem_type", "resid_pdrop", "return_dict"),
        *("reorder_and_upcast_attn", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"),
        *("summary_type", "summary_use_proj", "task_specific_params", "tokenizer_class", "torch_dtype"),
        *("transformers_version", "unk_token_id", "use_cache", "zhixing"),
    }
)

# Keys that say how a model writes. generation_config.json has them today; older files have them in config.json.
WRITING_KEYS = frozenset(
    {
        *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample"),
        *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
        *("force_bos_token_to_be_generated", "forced_bos_token_id", "forced_eos_token_id", "length_penalty"),
        *("max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams"),
        *("num_return_sequences", "output_scores", "prefix", "remove_invalid_values", "renormalize_logits"),
        *("repetition_penalty", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "temperature"),
        *("top_k", "top_p", "typical_p"),
    }
)

# Keys whose value does change it, and the values that our models compute.
ONLY_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "pretraining_tp": (1,),
        "rope_interleaved": (False,),
        "rope_scaling": (None,),
    },
    "qwen3": {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "rope_scaling": (None,),
        "use_sliding_window": (False,),
        "sliding_window": (None,),
    },
    "zhixing_lstm": {},
    "bert": {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "chunk_size_feed_forward": (0,),
    },
    "distilbert": {
        "activation": ("gelu",),
        "sinusoidal_pos_embds": (False,),
        "is_decoder": (False,),
        "tie_weights_": (True,),
        "chunk_size_feed_forward": (0,),
    },
}

MODERN_KEYS = frozenset(
    {
        *("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "rope_parameters", "rope_theta"),
    }
)

# Keys that settings_of reads.
READ_KEYS: dict[str, frozenset[str]] = {
    "gpt2": frozenset({"n_embd", "n_layer", "n_head", "n_inner", "n_positions", "n_ctx", "layer_norm_epsilon"}),
    "llama": MODERN_KEYS,
    "qwen3": MODERN_KEYS | {"layer_types"},
    "zhixing_lstm": frozenset({"hidden_size", "num_hidden_layers", "max_position_embeddings", "dropout"}),
    "bert": frozenset(
        {
            *("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
            *("num_attention_heads", "type_vocab_size", "layer_norm_eps", "hidden_dropout_prob"),
            *("attention_probs_dropout_prob", "classifier_dropout"),  # we have one dropout
            *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
            *("pooler_size_per_head", "pooler_type"),  # these and the line above: nothing reads them, files have them
        }
    ),
    "distilbert": frozenset(
        {
            *("dim", "hidden_dim", "n_layers", "n_heads", "max_position_embeddings", "dropout"),
            *("qa_dropout", "seq_classif_dropout"),
        }
    ),
}

# What no honest file of ours exceeds; a larger number would take memory before the weights could contradict it.
LARGEST = {"n_layers": 4096, "max_len": 1 << 20, "other": 1 << 24}


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Our settings from a config.json. An unknown key or model type, or a value that we do not compute: InputError."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise InputError(
            f"the model type {model_type!r} is not known",
            where="config.json, model_type",
            mend=f"we read {', '.join(ARCHITECTURES)}",
        )
    check_keys(config, model_type, READ_KEYS[model_type], ONLY_VALUES[model_type])
    if model_type == "zhixing_lstm":
        return LSTMSettings(
            vocab_size=count_of(config, "vocab_size"),
            d_model=count_of(config, "hidden_size"),
            n_layers=count_of(config, "num_hidden_layers", largest=LARGEST["n_layers"]),
            max_len=count_of(config, "max_position_embeddings", largest=LARGEST["max_len"]),
            dropout=number_of(config, "dropout", 0.0, below=1.0),
            tie_embeddings=flag_of(config, "tie_word_embeddings", default=True),
        )
    if model_type == "bert":
        return _bert_settings(config)
    if model_type == "distilbert":
        return _distilbert_settings(config)
    return _gpt2_settings(config) if model_type == "gpt2" else _modern_settings(config, model_type)


def check_keys(
    config: Mapping[str, Any], model_type: str, read: frozenset[str], only: Mapping[str, tuple[Any, ...]]
) -> None:
    """InputError for a key that is neither read nor inert, and for a value that `only` does not name for its key."""
    known = INERT_KEYS | read | only.keys() | {"model_type", "vocab_size", "tie_word_embeddings"}
    for key, value in config.items():
        if key not in known:
            raise InputError(
                f"the key {key!r} is not known for the model type {model_type}",
                where=f"config.json, {key}",
                why="it may change what the model computes",
                mend="where it does not, take it out of config.json",
            )
        allowed = only.get(key)
        if allowed is not None and not any(value == a and type(value) is type(a) for a in allowed):
            raise InputError(
                f"{key} = {value!r} is not supported",
                where=f"config.json, {key}",
                mend="we compute " + " or ".join(repr(a) for a in allowed),
            )


def _gpt2_settings(config: Mapping[str, Any]) -> GPTSettings:
    d_model, n_heads = count_of(config, "n_embd"), count_of(config, "n_head")
    check_divides(n_heads, d_model, "n_head", "n_embd")
    max_len = count_of(config, "n_positions", largest=LARGEST["max_len"])
    if config.get("n_ctx", max_len) != max_len:
        raise InputError(
            f"n_ctx = {config['n_ctx']!r} differs from n_positions = {max_len}", where="config.json, n_ctx"
        )
    return GPTSettings(
        layout="gpt2",
        vocab_size=count_of(config, "vocab_size"),
        d_model=d_model,
        n_layers=count_of(config, "n_layer", largest=LARGEST["n_layers"]),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_ff=4 * d_model if config.get("n_inner") is None else count_of(config, "n_inner"),
        max_len=max_len,
        dropout=number_of(config, "resid_pdrop", 0.1, below=1.0),
        tie_embeddings=flag_of(config, "tie_word_embeddings", default=True),
        norm_eps=number_of(config, "layer_norm_epsilon", 1e-5, below=1.0),
    )


def _bert_settings(config: Mapping[str, Any]) -> BertSettings:
    d_model, n_heads = count_of(config, "hidden_size"), count_of(config, "num_attention_heads")
    check_divides(n_heads, d_model, "num_attention_heads", "hidden_size")
    head = _head(config, "bert")
    return BertSettings(
        layout="bert",
        vocab_size=count_of(config, "vocab_size"),
        d_model=d_model,
        n_layers=count_of(config, "num_hidden_layers", largest=LARGEST["n_layers"]),
        n_heads=n_heads,
        d_ff=count_of(config, "intermediate_size"),
        max_len=count_of(config, "max_position_embeddings", largest=LARGEST["max_len"]),
        type_vocab_size=count_of(config, "type_vocab_size"),
        dropout=number_of(config, "hidden_dropout_prob", 0.1, below=1.0),
        norm_eps=number_of(config, "layer_norm_eps", 1e-12, below=1.0),
        n_labels=len(labels_of(config).names) if head == "classifier" else 0,
        head=head,
    )


def _distilbert_settings(config: Mapping[str, Any]) -> BertSettings:
    d_model, n_heads = count_of(config, "dim"), count_of(config, "n_heads")
    check_divides(n_heads, d_model, "n_heads", "dim")
    head = _head(config, "distilbert")
    return BertSettings(
        layout="distilbert",
        vocab_size=count_of(config, "vocab_size"),
        d_model=d_model,
        n_layers=count_of(config, "n_layers", largest=LARGEST["n_layers"]),
        n_heads=n_heads,
        d_ff=count_of(config, "hidden_dim"),
        max_len=count_of(config, "max_position_embeddings", largest=LARGEST["max_len"]),
        type_vocab_size=0,
        dropout=number_of(config, "dropout", 0.1, below=1.0),
        n_labels=len(labels_of(config).names) if head == "classifier" else 0,
        head=head,
    )


def _head(config: Mapping[str, Any], model_type: str) -> Head:
    """Which head the file has, by its architecture."""
    given, known = config.get("architectures"), HEADS[model_type]
    if not isinstance(given, list) or len(given) != 1 or given[0] not in known:
        raise InputError(
            f"architectures = {given!r} is not supported",
            where="config.json, architectures",
            mend=f"one of {', '.join(known)}, in brackets",
        )
    if known[given[0]] == "masked_lm" and not flag_of(config, "tie_word_embeddings", default=True):
        raise InputError(
            "tie_word_embeddings = False is not supported",
            where="config.json, tie_word_embeddings",
            why="a masked model's decoder is the word embedding here",
        )
    return known[given[0]]


def labels_of(config: Mapping[str, Any]) -> LabelFacts:
    """The labels of a classifier's outputs, as config.json names them; LABEL_0 and LABEL_1 where it has none.

    InputError where id2label has gaps or names a label twice, where label2id says otherwise, or the kind of answer is
    unknown. One output without a kind is a regression, several are a choice of one, as in transformers.
    """
    given = config.get("id2label")
    if given is None:
        given = {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(given, dict) or not given or set(map(str, given)) != {str(i) for i in range(len(given))}:
        raise InputError("id2label must name the outputs 0, 1, 2, ...", where="config.json, id2label")
    names = tuple({str(key): name for key, name in given.items()}[str(i)] for i in range(len(given)))
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError("id2label must give each output a name of its own", where="config.json, id2label")
    if (back := config.get("label2id")) is not None and back != {name: i for i, name in enumerate(names)}:
        raise InputError("label2id does not say the same as id2label", where="config.json, label2id")
    problem_type = config.get("problem_type") or ("regression" if len(names) == 1 else "single_label_classification")
    if problem_type not in PROBLEM_TYPES:
        raise InputError(
            f"problem_type = {problem_type!r} is not known",
            where="config.json, problem_type",
            mend=f"one of {', '.join(PROBLEM_TYPES)}",
        )
    return LabelFacts(names, problem_type)


def _modern_settings(config: Mapping[str, Any], model_type: str) -> GPTSettings:
    d_model, n_heads = count_of(config, "hidden_size"), count_of(config, "num_attention_heads")
    n_kv_heads = n_heads if config.get("num_key_value_heads") is None else count_of(config, "num_key_value_heads")
    check_divides(n_heads, d_model, "num_attention_heads", "hidden_size")
    check_divides(n_kv_heads, n_heads, "num_key_value_heads", "num_attention_heads")
    implied = 128 if model_type == "qwen3" else d_model // n_heads  # transformers' own defaults
    head_size = implied if config.get("head_dim") is None else count_of(config, "head_dim")
    if head_size != d_model // n_heads or head_size % 2:
        raise InputError(
            f"head_dim = {head_size} is not supported",
            where="config.json, head_dim",
            why=f"a head has hidden_size / num_attention_heads = {d_model // n_heads} channels here, an even number",
        )
    layer_types = config.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise InputError("layer_types other than full_attention are not supported", where="config.json, layer_types")
    return GPTSettings(
        layout="qwen3" if model_type == "qwen3" else "llama",
        vocab_size=count_of(config, "vocab_size"),
        d_model=d_model,
        n_layers=count_of(config, "num_hidden_layers", largest=LARGEST["n_layers"]),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=count_of(config, "intermediate_size"),
        max_len=count_of(config, "max_position_embeddings", largest=LARGEST["max_len"]),
        dropout=number_of(config, "attention_dropout", 0.0, below=1.0),
        tie_embeddings=flag_of(config, "tie_word_embeddings", default=False),
        rope_theta=_rope_theta(config),
        norm_eps=number_of(config, "rms_norm_eps", 1e-6, below=1.0),
    )


def _rope_theta(config: Mapping[str, Any]) -> float:
    """From `rope_parameters` (transformers 5), `rope_theta` (before), or both where they agree."""
    given = {}
    if config.get("rope_theta") is not None:
        given["rope_theta"] = number_of(config, "rope_theta", 0.0, below=math.inf)
    parameters = config.get("rope_parameters")
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise InputError("rope_parameters must be a table", where="config.json, rope_parameters")
        for key, value in parameters.items():
            if key not in ("rope_theta", "rope_type") or (key == "rope_type" and value != "default"):
                raise InputError(
                    f"rope_parameters.{key} = {value!r} is not supported",
                    where=f"config.json, rope_parameters.{key}",
                    mend="we compute rope_type 'default', without scaling",
                )
        if "rope_theta" in parameters:
            given["rope_parameters.rope_theta"] = number_of(parameters, "rope_theta", 0.0, below=math.inf)
    values = set(given.values())
    if len(values) > 1 or not all(value > 0 for value in values):
        raise InputError(
            f"the rope bases {given} cannot be used",
            where="config.json, rope_theta",
            why="they must agree, and be above 0",
        )
    return values.pop() if values else 10_000.0


def count_of(config: Mapping[str, Any], key: str, *, largest: int = LARGEST["other"]) -> int:
    """A whole number of config.json, 1 to `largest`; InputError where there is none."""
    if key not in config:
        raise InputError(f"config.json has no {key}", where=f"config.json, {key}")
    value = config[key]
    if type(value) is not int or not 0 < value <= largest:
        raise InputError(
            f"{key} = {value!r} cannot be used", where=f"config.json, {key}", mend=f"a whole number, 1 to {largest}"
        )
    return value


def number_of(config: Mapping[str, Any], key: str, default: float, *, below: float) -> float:
    """A number of config.json, at least 0 and below `below`."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < below:
        raise InputError(
            f"{key} = {value!r} cannot be used",
            where=f"config.json, {key}",
            mend=f"a number, at least 0 and below {below}",
        )
    return float(value)


def flag_of(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """True or false of config.json."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise InputError(f"{key} = {value!r} cannot be used", where=f"config.json, {key}", mend="true or false")
    return value


def check_divides(part: int, whole: int, part_key: str, whole_key: str) -> None:
    """InputError unless `whole` is a multiple of `part`."""
    if whole % part:
        raise InputError(
            f"{whole_key} = {whole} is not divisible by {part_key} = {part}", where=f"config.json, {part_key}"
        )
