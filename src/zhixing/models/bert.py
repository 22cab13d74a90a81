"""BERT: a Transformer encoder that looks both ways, and what is put on top of it.

    x = LayerNorm(word + position + type),   h = Blocks(x)
    block:  x <- LayerNorm(x + attention(x)),   x <- LayerNorm(x + W_down gelu(W_up x))

Trained to fill in words that were hidden (`BertMaskedLM`), then to label whole texts (`BertClassifier`), or used as it
is for the vector of a sentence (`Bert` and `pooled`). Two layouts:

* `bert` (Devlin et al. 2019): token types; a classifier reads tanh(W h_0), the pooled first token [CLS].
* `distilbert` (Sanh et al. 2019): no token types; a classifier reads relu(W h_0). Half as deep by custom.

What differs from the papers: q, k, v are one matrix product, and pretraining has no next-sentence task, which does not
help (Liu et al. 2019, section 4.2). One dropout serves all places.

Shapes: B rows, T tokens, D d_model, H heads, V vocab_size, C n_labels. Masks are boolean, True = a real token; padding
is on the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.layers import BidirectionalAttention, GELUFeedForward, Linear


@dataclass(frozen=True)
class BertSettings:
    vocab_size: int
    layout: Literal["bert", "distilbert"] = "bert"
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int = 1024
    max_len: int = 256
    type_vocab_size: int = 2  # 0 in distilbert
    dropout: float = 0.1
    norm_eps: float = 1e-12
    n_labels: int = 0  # of a classifier; else 0
    head: Literal["none", "masked_lm", "classifier"] = "none"  # set by the class that is built

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise InputError(f"d_model = {self.d_model} is not divisible by n_heads = {self.n_heads}")
        if self.layout == "distilbert":
            object.__setattr__(self, "type_vocab_size", 0)
            if self.norm_eps != 1e-12:
                raise InputError(f"norm_eps = {self.norm_eps} cannot be", why="the distilbert layout has 1e-12 fixed")


def layer_of(name: str, settings: BertSettings) -> int:
    """How deep a parameter stands: embeddings 0, blocks 1 .. n_layers, poolers and heads n_layers + 1.

    For learning rates that fall with depth (Howard & Ruder 2018, section 3.2) and for freezing from below.
    """
    if block := re.search(r"(?:^|\.)blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if re.search(r"(?:^|\.)(?:embedding|positions|types|embedding_norm)\.", name) else settings.n_layers + 1


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens' hidden states (B, T, D) -> (B, D): a sentence's vector (Reimers & Gurevych 2019)."""
    weights = mask.to(hidden.dtype)  # (B, T)
    return torch.einsum("btd,bt->bd", hidden, weights) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Matrices N(0, 0.02^2), biases 0, norms 1 (Devlin et al. 2019, their code)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() >= 2:
                parameter.normal_(0.0, 0.02, generator=generator)


class Block(nn.Module):
    """LayerNorm(x + attention(x)), then LayerNorm(x + feed_forward(x)): the norms stand after the sums."""

    def __init__(self, s: BertSettings) -> None:
        super().__init__()
        self.attention = BidirectionalAttention(s.d_model, s.n_heads, dropout=s.dropout)
        self.attention_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.feed_forward = GELUFeedForward(s.d_model, s.d_ff, exact=True)
        self.feed_forward_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Hidden states from ids.

    `pooler` is the matrix that a bert-layout classifier reads the first token through. A masked model has none, as in
    transformers; nothing but a classifier uses it.
    """

    def __init__(self, settings: BertSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.positions = nn.Embedding(s.max_len, s.d_model)
        self.types = nn.Embedding(s.type_vocab_size, s.d_model) if s.type_vocab_size else None
        self.embedding_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.dropout = nn.Dropout(s.dropout)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.n_layers))
        has_pooler = s.layout == "bert" and s.head != "masked_lm"
        self.pooler = Linear(s.d_model, s.d_model) if has_pooler else None
        initialise(self, generator)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> the words' own vectors (B, T, D), before positions, types and norm."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def encode(self, embedded: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Words' vectors (B, T, D), mask (B, T), token types (B, T) or all 0 -> hidden (B, T, D).

        Every row has a real token, and padding stands on the right. Hidden states at padding mean nothing.
        """
        x, allowed = self._input(embedded, mask, types)
        for block in self.blocks:
            x = block(x, allowed)
        return x

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """ids (B, T), T <= max_len -> hidden (B, T, D)."""
        return self.encode(self.embed(ids), mask, types)

    def attentions(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> list[Tensor]:
        """The attention maps of every block, (B, H, T, T) each: row = the token that looks, column = looked at."""
        x, allowed = self._input(self.embed(ids), mask, types)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attention.weights(x, allowed))
            x = block(x, allowed)
        return maps

    def _input(self, embedded: Tensor, mask: Tensor | None, types: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the first block gets (B, T, D), and its attention's mask (B, 1, 1, T), None where none is needed."""
        x = embedded + self.positions.weight[: embedded.shape[1]]
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        x = self.dropout(self.embedding_norm(x))
        if mask is None or bool(mask.all()):  # without a mask attention takes its fastest path
            return x, None
        return x, mask[:, None, None, :]


class BertMaskedLM(nn.Module):
    """What word was here? logits = W LayerNorm(gelu(W_t h)) + b, where W is the word embedding itself."""

    def __init__(self, settings: BertSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = replace(settings, head="masked_lm", n_labels=0)
        self.encoder = Bert(s)
        self.transform = Linear(s.d_model, s.d_model)
        self.transform_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.bias = nn.Parameter(torch.zeros(s.vocab_size))
        initialise(self, generator)

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """ids (B, T) -> hidden (B, T, D) of the encoder. The head is apart: an objective needs it in few places."""
        return self.encoder(ids, mask, types)  # type: ignore[no-any-return]

    def transformed(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> what the decoder multiplies (..., D)."""
        return self.transform_norm(F.gelu(self.transform(hidden)))  # type: ignore[no-any-return]

    def head(self) -> Tensor:
        """The weight (V, D) of the decoder: the embedding. `bias` (V,) is added."""
        return self.encoder.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """The encoder's hidden (..., D) -> logits (..., V) fp32."""
        return F.linear(self.transformed(hidden), self.head(), self.bias).float()

    def attentions(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> list[Tensor]:
        return self.encoder.attentions(ids, mask, types)


class BertClassifier(nn.Module):
    """Labels of whole texts: logits = W_c f(W_p h_0) + b, f = tanh (bert) or relu (distilbert), h_0 of [CLS]."""

    def __init__(self, settings: BertSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if settings.n_labels < 1:
            raise InputError(f"n_labels = {settings.n_labels} cannot be", mend="a classifier has at least one output")
        s = self.settings = replace(settings, head="classifier")
        self.encoder = Bert(s)
        self.pre_classifier = Linear(s.d_model, s.d_model) if s.layout == "distilbert" else None
        self.dropout = nn.Dropout(s.dropout)
        self.classifier = Linear(s.d_model, s.n_labels)
        initialise(self, generator)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D): the words' own vectors, which explanations are made of."""
        return self.encoder.embed(ids)

    def classify(self, embedded: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Words' vectors (B, T, D), mask (B, T) -> logits (B, C) fp32."""
        first = self.encoder.encode(embedded, mask, types)[:, 0]  # (B, D)
        if self.pre_classifier is not None:
            summary = F.relu(self.pre_classifier(first))
        else:
            assert self.encoder.pooler is not None
            summary = torch.tanh(self.encoder.pooler(first))
        return self.classifier(self.dropout(summary)).float()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """ids (B, T) -> logits (B, C) fp32."""
        return self.classify(self.embed(ids), mask, types)

    def attentions(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> list[Tensor]:
        return self.encoder.attentions(ids, mask, types)


def take_encoder(model: BertMaskedLM | BertClassifier, pretrained: Bert | BertMaskedLM | BertClassifier) -> list[str]:
    """Copy the encoder of a pretrained model into another; -> the parameters that keep their random start.

    InputError where the two are not of the same sizes.
    """
    source: Any = pretrained if isinstance(pretrained, Bert) else pretrained.encoder
    weights, own = source.state_dict(), model.encoder.state_dict()
    for name, tensor in own.items():
        if name in weights and weights[name].shape != tensor.shape:
            raise InputError(
                f"the pretrained {name} has the shape {list(weights[name].shape)}, this model's {list(tensor.shape)}",
                mend="give the same tokenizer and sizes as in pretraining",
            )
    fresh = [name for name in own if name not in weights]
    if any(not name.startswith("pooler.") for name in fresh):
        raise InputError(f"the pretrained model has no {fresh[0]}", mend="give the same layout and depth")
    if any(name.startswith("blocks.") for name in weights.keys() - own.keys()):
        raise InputError("the pretrained model is deeper than this one", mend="give the same depth")
    model.encoder.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
    heads = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    return [*(f"encoder.{name}" for name in fresh), *heads]
