"""The Transformer that reads one text and writes another, as T5 has it (Raffel et al. 2020, section 2.1).

    encoder block   x = x + SelfAttention(RMSNorm(x)),  x = x + FFN(RMSNorm(x))
    decoder block   y = y + causal SelfAttention(RMSNorm(y)),  y = y + CrossAttention(RMSNorm(y), x),
                    y = y + FFN(RMSNorm(y))
    after each stack                                        RMSNorm
    attention       softmax(Q K^T + bias[bucket(key's position - query's)]) V
    FFN, v1.1       W_down (gelu(W_gate x) * W_up x)        (Shazeer 2020, eq. 6, GEGLU)
    FFN, v1.0       W_down max(0, W_up x)
    logits          y U^T in v1.1;  y E^T / sqrt(D) in v1.0, where the head is the embedding E

What differs from Vaswani et al. 2017: nothing has a bias, norms stand before and only scale, nothing is added to the
embeddings for positions, and Q K^T is not divided by sqrt(K): the queries start that much smaller. A head of a stack
has one number for each bucket of distances, the same in all layers: short distances have a bucket each, longer ones
share buckets that grow with the logarithm. So no text is too long for the arithmetic; max_len is what we allow.

The encoder runs once a text. Its keys and values in every decoder block are the memory of an `EncoderDecoderState`;
hypotheses of the same text share one memory: they stand beside each other as queries of one attention.

Shapes: B rows, G texts that are read, W rows a text, T tokens written, S tokens read, D d_model, H heads, K head size,
F d_ff, L decoder layers, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.models.encoder_decoder_state import EncoderDecoderState, new_state, read_by_length
from zhixing.models.layers import (
    BiasedAttention,
    CrossAttention,
    JoinedLinear,
    KeyValueCache,
    Linear,
    Memory,
    RMSNorm,
    ScoreBias,
    compiled_loops,
    source_mask,
)
from zhixing.models.products import linear

FeedForwardKind = Literal["gated-gelu", "relu"]


@dataclass(frozen=True)
class T5Settings:
    """d_kv is a head's size: n_heads * d_kv need not be d_model. v1.1 is gated-gelu, not tied; v1.0 relu and tied."""

    vocab_size: int
    d_model: int = 512
    d_kv: int = 64
    n_encoder_layers: int = 8
    n_layers: int = 8
    n_heads: int = 6
    d_ff: int = 1024
    max_len: int = 512
    dropout: float = 0.1
    n_buckets: int = 32
    max_distance: int = 128
    feed_forward: FeedForwardKind = "gated-gelu"
    tie_embeddings: bool = False
    start_id: int = 0
    norm_eps: float = 1e-6


def position_buckets(distances: Tensor, n_buckets: int, max_distance: int, *, both_ways: bool) -> Tensor:
    """Key's position minus query's (...) int64 -> the bucket of each (...), 0 to n_buckets - 1 (section 2.1).

    Of the buckets of one direction the first half has a distance each, the other half grows by the same factor up to
    max_distance, and all beyond share the last. both_ways: later keys have the upper half of the buckets; else they
    count as distance 0, for nobody looks at them.

    8 buckets up to distance 16, both ways: distances back 0 1 2 3 4 5 6 .. 15 16 .. -> buckets 0 1 2 2 2 2 3 .. 3 3 ..
    """
    if both_ways:
        n_buckets //= 2
        first = torch.where(distances > 0, n_buckets, 0)
        distances = distances.abs()
    else:
        first = torch.zeros_like(distances)
        distances = (-distances).clamp(min=0)
    n_exact = n_buckets // 2
    growth = torch.log(distances.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)  # 1: max_distance
    shared = (n_exact + (growth * (n_buckets - n_exact)).long()).clamp(max=n_buckets - 1)
    return first + torch.where(distances < n_exact, distances, shared)


class PositionBias(nn.Embedding):
    """What a pair of positions adds to the scores of each head: one table a stack, a row (H,) for each bucket."""

    def __init__(self, s: T5Settings, *, both_ways: bool) -> None:
        if not 4 <= s.n_buckets < 2 * s.max_distance:
            raise ValueError(
                f"expected n_buckets of 4 at least and below 2 * max_distance, got {s.n_buckets} and {s.max_distance}"
            )
        super().__init__(s.n_buckets, s.n_heads)
        self.max_distance, self.both_ways = s.max_distance, both_ways

    def bias(self, positions: Tensor, seen: int, mask: Tensor | None = None) -> ScoreBias:
        """Positions of the queries (T,) or (B, T), of the keys 0 to seen - 1 -> values (1 or B, H, T, seen).

        mask (B, 1, 1, seen): the keys that are no padding. One way, later keys have -inf.
        """
        distances = torch.arange(seen, device=positions.device) - positions[..., None]  # (..., T, S)
        buckets = position_buckets(distances, self.num_embeddings, self.max_distance, both_ways=self.both_ways)
        bias: Tensor = self(buckets).movedim(-1, -3)  # (..., H, T, S)
        if not self.both_ways:
            bias = bias.masked_fill((distances > 0).unsqueeze(-3), -torch.inf)
        return ScoreBias(bias.reshape(-1, *bias.shape[-3:]).contiguous(), mask)


class FeedForward(nn.Module):
    """W_down (gelu(W_gate x) * W_up x), gate and up as one product, or W_down max(0, W_up x)."""

    def __init__(self, s: T5Settings) -> None:
        super().__init__()
        self.gated = s.feed_forward == "gated-gelu"
        self.up = JoinedLinear(s.d_model, (s.d_ff, s.d_ff) if self.gated else (s.d_ff,), bias=False)
        self.down = Linear(s.d_ff, s.d_model, bias=False)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x)  # (B, T, 2F) or (B, T, F)
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)  # (B, T, F) each
            inner = gelu(gate) * up
        else:
            inner = inner.relu()
        return self.down(self.dropout(inner))  # type: ignore[no-any-return]


def gelu(x: Tensor) -> Tensor:
    """The tanh form of Hendrycks & Gimpel 2016, which is what T5 was trained with."""
    if compiled_loops(x):
        from zhixing.models.activations import activation  # numba comes with it: only who trains waits for it

        return activation(x, "gelu")
    return F.gelu(x, approximate="tanh")


class EncoderBlock(nn.Module):
    def __init__(self, s: T5Settings) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(s.d_model, s.norm_eps)
        self.attention = BiasedAttention(s.d_model, s.n_heads, s.d_kv, causal=False, dropout=s.dropout)
        self.feed_forward_norm = RMSNorm(s.d_model, s.norm_eps)
        self.feed_forward = FeedForward(s)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor, bias: ScoreBias) -> Tensor:
        """x (B, S, D), bias (1, H, S, S)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    def __init__(self, s: T5Settings) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(s.d_model, s.norm_eps)
        self.attention = BiasedAttention(s.d_model, s.n_heads, s.d_kv, causal=True, dropout=s.dropout)
        self.cross_attention_norm = RMSNorm(s.d_model, s.norm_eps)
        self.cross_attention = CrossAttention(
            s.d_model, s.n_heads, dropout=s.dropout, head_size=s.d_kv, bias=False, divided=False
        )
        self.feed_forward_norm = RMSNorm(s.d_model, s.norm_eps)
        self.feed_forward = FeedForward(s)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, y: Tensor, bias: ScoreBias, memory: Tensor, mask: Tensor | None) -> Tensor:
        """y (B, T, D) over memory (B, S, D); bias (1, H, T, T), mask (B, 1, 1, S)."""
        y = y + self.dropout(self.attention(self.attention_norm(y), bias))
        k, v = self.cross_attention.keys_and_values(memory)
        y = y + self.dropout(self.cross_attention(self.cross_attention_norm(y), k, v, mask))
        return y + self.dropout(self.feed_forward(self.feed_forward_norm(y)))  # type: ignore[no-any-return]

    def weights(self, y: Tensor, bias: ScoreBias, memory: Tensor, mask: Tensor | None) -> Tensor:
        """How much each token of y takes from each that was read: (B, H, T, S)."""
        y = self.cross_attention_norm(y + self.attention(self.attention_norm(y), bias))
        return self.cross_attention.weights(y, self.cross_attention.keys_and_values(memory)[0], mask)

    def step(
        self,
        y: Tensor,
        bias: ScoreBias,
        cache: KeyValueCache,
        positions: Tensor | int,
        memory: Memory,
        layer: int,
    ) -> Tensor:
        """The same for T new tokens of B rows; layer: which of the memory's is this block's."""
        y = y + self.attention.step(self.attention_norm(y), bias, cache, positions)
        y = y + self.cross_attention.step(self.cross_attention_norm(y), memory, layer)
        return y + self.feed_forward(self.feed_forward_norm(y))  # type: ignore[no-any-return]


class T5(nn.Module):
    """Hidden states of what is written, from the ids of both sides; `logits` turns them into scores."""

    def __init__(self, settings: T5Settings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.positions_read = PositionBias(s, both_ways=True)
        self.positions_written = PositionBias(s, both_ways=False)
        self.encoder = nn.ModuleList(EncoderBlock(s) for _ in range(s.n_encoder_layers))
        self.encoder_norm = RMSNorm(s.d_model, s.norm_eps)
        self.decoder = nn.ModuleList(DecoderBlock(s) for _ in range(s.n_layers))
        self.norm = RMSNorm(s.d_model, s.norm_eps)
        self.lm_head = None if s.tie_embeddings else nn.Linear(s.d_model, s.vocab_size, bias=False)
        self.dropout = nn.Dropout(s.dropout)
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None) -> None:
        """As T5's own code in Mesh TensorFlow: N(0, 1 / inputs), and what Q K^T is not divided by goes into Q.

        q N(0, 1 / (D K)); k, v and the feed-forward's in N(0, 1 / D); attention's out N(0, 1 / (H K)); the
        feed-forward's out N(0, 1 / F); embeddings N(0, 1); biases of positions and a head of its own N(0, 1 / D).
        (transformers starts a head of its own from N(0, 1): logits of a variance of D.)
        """
        s = self.settings
        inputs = {"attention.out": s.n_heads * s.d_kv, "feed_forward.down": s.d_ff, "embedding": 1}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    size = next((n for part, n in inputs.items() if f"{part}.weight" in name), s.d_model)
                    parameter.normal_(0.0, size**-0.5, generator=generator)
            for block in [*self.encoder, *self._decoder_blocks()]:
                block.attention.qkv.weight[: s.n_heads * s.d_kv] *= s.d_kv**-0.5
            for block in self._decoder_blocks():
                block.cross_attention.q.weight *= s.d_kv**-0.5

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, S), mask (B, 1, 1, S) as of `source_mask` -> memory (B, S, D)."""
        count = ids.shape[1]
        bias = self.positions_read.bias(torch.arange(count, device=ids.device), count, mask)  # (1, H, S, S)
        x = self.dropout(self.embedding(ids))
        for block in self.encoder:
            x = block(x, bias)
        return self.dropout(self.encoder_norm(x))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """ids (B, T) of what is written, from start_id on; source_ids (B, S) right-padded -> hidden (B, T, D)."""
        mask = source_mask(source_lengths, source_ids.shape[1])
        memory = self.encode(source_ids, mask)
        count = ids.shape[1]
        bias = self.positions_written.bias(torch.arange(count, device=ids.device), count)  # (1, H, T, T)
        y = self.dropout(self.embedding(ids))
        for block in self.decoder:
            y = block(y, bias, memory, mask)
        return self._output(y)

    def attention_weights(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """How much each token that is written takes from each that is read: (B, T, S), rows sum to 1; without dropout.

        The mean of the heads of the layer before the last, which aligns words best (Garg et al. 2019, section 4.1).
        """
        mask = source_mask(source_lengths, source_ids.shape[1])
        memory = self.encode(source_ids, mask)
        count = ids.shape[1]
        bias = self.positions_written.bias(torch.arange(count, device=ids.device), count)  # (1, H, T, T)
        y = self.embedding(ids)
        *below, block = self._decoder_blocks()[: max(1, self.settings.n_layers - 1)]
        for lower in below:
            y = lower(y, bias, memory, mask)
        return block.weights(y, bias, memory, mask).mean(dim=1)

    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) fp32."""
        return linear(hidden, self.head(), None).float()

    @property
    def longest_source(self) -> int:
        """The most tokens of a text that is read."""
        return self.settings.max_len

    @property
    def source_vocab_size(self) -> int:
        return self.settings.vocab_size

    def read_sources(self, sources: Sequence[Sequence[int]], capacity: int) -> tuple[EncoderDecoderState, Tensor]:
        """Read the texts, one row each, and write the start id: the state, and the hidden state (G, D) of the start."""
        pairs, lengths = read_by_length(sources, self._keys_and_values, self.embedding.weight.device)
        state = new_state(pairs, lengths, min(capacity, self.settings.max_len))
        start = torch.full_like(lengths, self.settings.start_id)[:, None]
        return state, self.step(start, torch.ones_like(lengths), state)[:, 0]

    def _keys_and_values(self, ids: Tensor, lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What each decoder block looks at of the texts ids (G, S), lengths (G,): keys and values (G, H, S, K)."""
        memory = self.encode(ids, source_mask(lengths, ids.shape[1]))
        return [block.cross_attention.keys_and_values(memory) for block in self._decoder_blocks()]

    def step(self, ids: Tensor, n_new: Tensor, state: EncoderDecoderState) -> Tensor:
        """Feed T more tokens a row: ids (B, T) right-padded, row b has n_new[b] real ones. -> hidden (B, T, D)."""
        state.hold(ids.shape[1])
        slots, places = state.written.positions(ids.shape[1])
        most = state.written.capacity + 1
        seen = slots + ids.shape[1] if isinstance(slots, int) else min(int(slots.max()) + 1, most)
        bias = self.positions_written.bias(places, seen)  # (1 or B, H, T, seen)
        y = self.dropout(self.embedding(ids))
        for layer, block in enumerate(self._decoder_blocks()):
            y = block.step(y, bias, state.written.cache(layer), slots, state.memory(), layer)
        state.written.advance(n_new)
        return self._output(y)

    def _output(self, y: Tensor) -> Tensor:
        """The stream (B, T, D) -> hidden (B, T, D). A tied head sees it smaller, for embeddings have the variance 1."""
        hidden = self.dropout(self.norm(y))
        return hidden * self.settings.d_model**-0.5 if self.lm_head is None else hidden  # type: ignore[no-any-return]

    def _decoder_blocks(self) -> list[DecoderBlock]:
        return [block for block in self.decoder if isinstance(block, DecoderBlock)]
