"""GPT: a Transformer decoder that predicts the next token, and as a classifier reads the label off the last one.

    p(x) = prod_t p(x_t | x_<t),   h = Blocks(embed(x)),   logits = W h

Two layouts, which differ in what stands inside a block:

* classic, `gpt2` (Radford et al. 2019): LayerNorm before each half, learned positions, GELU, biases.
* modern, `qwen3` and `llama`: RMSNorm before each half, rotary positions, SwiGLU, no biases, grouped queries; qwen3
  also norms queries and keys (Yang et al. 2025, section 2).

What differs from the papers: nothing in the arithmetic; q, k, v and gate, up are each one matrix product.

Shapes: B rows, T tokens, D d_model, V vocab_size, K head size.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from zhixing.models.layers import (
    DecodingState,
    GELUFeedForward,
    KeyValueCache,
    RMSNorm,
    SelfAttention,
    SwiGLU,
    rotary_table,
)


@dataclass(frozen=True)
class GPTSettings:
    vocab_size: int
    layout: Literal["qwen3", "llama", "gpt2"] = "qwen3"
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 4
    d_ff: int = 704
    max_len: int = 256
    dropout: float = 0.0
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


def layer_of(name: str, settings: GPTSettings) -> int:
    """How deep a parameter stands: embeddings 0, blocks 1 .. n_layers, what follows them n_layers + 1.

    For learning rates that fall with depth (Howard & Ruder 2018, section 3.2) and for freezing from below. A model that
    holds the GPT inside may put its name before: "gpt.blocks.0.attention.out.weight" -> 1.
    """
    if block := re.search(r"(?:^|\.)blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if re.search(r"(?:^|\.)(?:embedding|positions)\.", name) else settings.n_layers + 1


class Decoder(Protocol):
    """What decoding needs of a model."""

    settings: GPTSettings

    @property
    def training(self) -> bool: ...
    def train(self, mode: bool = True) -> object: ...
    def head(self) -> Tensor: ...
    def new_state(self, rows: int, max_len: int | None = None) -> DecodingState: ...
    def step(self, ids: Tensor, n_new: Tensor, state: DecodingState) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...


class ClassicBlock(nn.Module):
    """x + attention(LayerNorm(x)), then x + feed_forward(LayerNorm(x))."""

    def __init__(self, s: GPTSettings) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.attention = SelfAttention(
            s.d_model, s.n_heads, s.n_heads, bias=True, qk_norm=False, norm_eps=s.norm_eps, dropout=s.dropout
        )
        self.feed_forward_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.feed_forward = GELUFeedForward(s.d_model, s.d_ff)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]

    def step(self, x: Tensor, rotary: Tensor | None, cache: KeyValueCache, positions: Tensor | int) -> Tensor:
        x = x + self.attention.step(self.attention_norm(x), rotary, cache, positions)
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class ModernBlock(nn.Module):
    """x + attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))."""

    def __init__(self, s: GPTSettings) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(s.d_model, s.norm_eps)
        self.attention = SelfAttention(
            s.d_model,
            s.n_heads,
            s.n_kv_heads,
            bias=False,
            qk_norm=s.layout == "qwen3",
            norm_eps=s.norm_eps,
            dropout=s.dropout,
        )
        self.feed_forward_norm = RMSNorm(s.d_model, s.norm_eps)
        self.feed_forward = SwiGLU(s.d_model, s.d_ff)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]

    def step(self, x: Tensor, rotary: Tensor | None, cache: KeyValueCache, positions: Tensor | int) -> Tensor:
        x = x + self.attention.step(self.attention_norm(x), rotary, cache, positions)
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Hidden states from ids; `logits` turns hidden states into scores of the next token."""

    rotary: Tensor

    def __init__(self, settings: GPTSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        classic = s.layout == "gpt2"
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.positions = nn.Embedding(s.max_len, s.d_model) if classic else None
        self.dropout = nn.Dropout(s.dropout)
        self.blocks = nn.ModuleList(ClassicBlock(s) if classic else ModernBlock(s) for _ in range(s.n_layers))
        self.norm = nn.LayerNorm(s.d_model, s.norm_eps) if classic else RMSNorm(s.d_model, s.norm_eps)
        self.lm_head = None if s.tie_embeddings else nn.Linear(s.d_model, s.vocab_size, bias=False)
        self.make_tables()
        self.initialise(generator)

    def make_tables(self) -> None:
        """What follows from the settings alone and is stored in no file."""
        s = self.settings
        if s.layout != "gpt2":
            table = rotary_table(s.d_model // s.n_heads, s.max_len, s.rope_theta)
            self.register_buffer("rotary", table, persistent=False)

    def initialise(self, generator: torch.Generator | None) -> None:
        """N(0, 0.02^2) for matrices, and 0.02 / sqrt(2 n_layers) where a block writes to the residual stream.

        Each of the 2 n_layers writes adds its variance, so the smaller one keeps the stream's independent of depth
        (Radford et al. 2019, section 2.3). Biases 0, norms 1.
        """
        residual = 0.02 / math.sqrt(2 * self.settings.n_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() >= 2:
                    std = residual if name.endswith(("attention.out.weight", "feed_forward.down.weight")) else 0.02
                    parameter.normal_(0.0, std, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T), T <= max_len -> hidden (B, T, D), after the last norm."""
        return self.read(self.embedding(ids))

    def read(self, x: Tensor) -> Tensor:
        """The same from the tokens' vectors x (B, T, D), positions not yet in them."""
        count = x.shape[1]
        rotary = None
        if self.positions is not None:
            x = x + self.positions.weight[:count]
        else:
            rotary = self.rotary[:count]  # (T, 2, K / 2)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotary)
        return self.norm(x)  # type: ignore[no-any-return]

    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits: the embedding itself if tied."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) fp32."""
        return nn.functional.linear(hidden, self.head()).float()

    def new_state(self, rows: int, max_len: int | None = None) -> DecodingState:
        """An empty state for `rows` rows of at most `max_len` tokens (the context's length if not given)."""
        s = self.settings
        capacity = min(max_len or s.max_len, s.max_len)
        weight = self.embedding.weight
        n_kv_heads = s.n_heads if s.layout == "gpt2" else s.n_kv_heads
        shape = (s.n_layers, rows, n_kv_heads, capacity + 1, s.d_model // s.n_heads)
        lengths = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        return DecodingState(weight.new_zeros(shape), weight.new_zeros(shape), lengths)

    def step(self, ids: Tensor, n_new: Tensor, state: DecodingState) -> Tensor:
        """Feed T more tokens a row: ids (B, T) right-padded, row b has n_new[b] real ones. -> hidden (B, T, D).

        The state is changed in place. What stands at padded places of the result means nothing.
        """
        slots, positions = state.positions(ids.shape[1])
        x = self.embedding(ids)  # (B, T, D)
        rotary = None
        limit = self.settings.max_len - 1  # padding may point behind the table
        if self.positions is not None:
            x = x + self.positions(positions.clamp(max=limit))
        else:
            rotary = self.rotary[positions.clamp(max=limit)]  # (T, 2, K / 2) or (B, T, 2, K / 2)
        blocks: Any = self.blocks
        for layer, block in enumerate(blocks):
            x = block.step(x, rotary, state.cache(layer), slots)
        state.advance(n_new)
        return self.norm(x)  # type: ignore[no-any-return]

    def for_decoding(self) -> Decoder:
        """This model, or on a processor in fp32 its fast form: the same protocol, steps of one token compiled."""
        weight = self.embedding.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return self
        from zhixing.models.gpt_packed import PackedGPT  # numba comes with it: only who decodes waits for it

        return PackedGPT(self)


@dataclass(frozen=True)
class GPTClassifierSettings:
    gpt: GPTSettings
    n_labels: int

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def d_model(self) -> int:
        return self.gpt.d_model

    @property
    def max_len(self) -> int:
        return self.gpt.max_len


class GPTClassifier(nn.Module):
    """Logits from the hidden state of a text's last token, the only one that has seen the whole text.

    As Radford et al. (2018), section 3.3, and as the sequence classifiers of transformers: one matrix, no bias.
    """

    def __init__(self, settings: GPTClassifierSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.gpt = GPT(replace(settings.gpt, tie_embeddings=True), generator)  # it has no use for a head of its own
        self.score = nn.Linear(settings.d_model, settings.n_labels, bias=False)
        with torch.no_grad():
            self.score.weight.normal_(0.0, 0.02, generator=generator)

    def start_from(self, gpt: GPT) -> None:
        """Take over the weights of a trained language model, and as many of its positions as this one has."""
        tensors = {k: v for k, v in gpt.state_dict().items() if not k.startswith("lm_head.")}
        if "positions.weight" in tensors:
            tensors["positions.weight"] = tensors["positions.weight"][: self.settings.max_len]
        self.gpt.load_state_dict(tensors)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, D)."""
        return self.gpt.embedding(ids)  # type: ignore[no-any-return]

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded (B, T, D), mask (B, T) bool, right padding -> logits (B, C) fp32.

        No token sees a later one, so padding needs no mask. A text of nothing is judged by its first padding.
        """
        hidden = self.gpt.read(embedded)  # (B, T, D)
        last = (mask.sum(dim=1) - 1).clamp(min=0)  # (B,)
        rows = torch.arange(len(last), device=last.device)
        return self.score(hidden[rows, last]).float()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.embed(ids), mask)
