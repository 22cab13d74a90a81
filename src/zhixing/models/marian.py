"""The Transformer that reads one text and writes another (Vaswani et al. 2017), in the layout of Marian and OPUS-MT.

    encoder block   x = LN(x + SelfAttention(x)),  x = LN(x + FFN(x))                             (section 3.1)
    decoder block   y = LN(y + causal SelfAttention(y)),  y = LN(y + CrossAttention(y, x)),  y = LN(y + FFN(y))
    input           sqrt(D) E[id] + position,  position of channel i: sin or cos of p / 10000^(2i / D)   (section 3.5)
    logits          y E^T + b

What differs from the paper: the sines of a position stand in the first half of its channels and the cosines in the
second (a permutation), the feed-forward's activation is a setting (OPUS-MT takes x sigmoid(x)), and the logits have a
bias. What is written starts from a start id, which OPUS-MT has pad for.

The encoder runs once a text. Its keys and values in every decoder block are the memory of an `EncoderDecoderState`;
hypotheses of the same text share one memory: they stand beside each other as queries of one attention.

Shapes: B rows, G texts that are read, W rows a text, T tokens written, S tokens read, D d_model, H heads, K head size,
L decoder layers, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.models.encoder_decoder_state import EncoderDecoderState, new_state, read_by_length
from zhixing.models.layers import (
    BidirectionalAttention,
    CrossAttention,
    KeyValueCache,
    Linear,
    Memory,
    SelfAttention,
    outlined,
    source_mask,
)
from zhixing.models.products import linear

Activation = Literal["silu", "gelu", "relu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class MarianSettings:
    """vocab_size is the side's that is written; source_vocab_size 0 means that both sides share one table."""

    vocab_size: int
    source_vocab_size: int = 0
    d_model: int = 512
    n_encoder_layers: int = 6
    n_layers: int = 6
    n_heads: int = 8
    d_ff: int = 2048
    max_len: int = 512
    dropout: float = 0.1
    activation: Activation = "silu"
    scale_embedding: bool = True
    start_id: int = 0
    norm_eps: float = 1e-5


def sinusoids(max_len: int, d_model: int) -> Tensor:
    """Position p, channel i of the first half: sin(p / 10000^(2i / D)); of the second: cos. (max_len, D) fp32."""
    if outlined():
        return torch.empty(max_len, d_model)
    speeds = 10_000 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (D / 2,)
    angles = torch.arange(max_len, dtype=torch.float64)[:, None] * speeds  # (max_len, D / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class FeedForward(nn.Module):
    """W2 activation(W1 x + b1) + b2 (Vaswani et al. 2017, eq. 2, where it is max(0, x))."""

    def __init__(self, s: MarianSettings) -> None:
        super().__init__()
        self.up = Linear(s.d_model, s.d_ff)
        self.down = Linear(s.d_ff, s.d_model)
        self.activation = ACTIVATIONS[s.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    def __init__(self, s: MarianSettings) -> None:
        super().__init__()
        self.attention = BidirectionalAttention(s.d_model, s.n_heads, dropout=s.dropout)
        self.attention_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.feed_forward = FeedForward(s)
        self.feed_forward_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    def __init__(self, s: MarianSettings) -> None:
        super().__init__()
        self.attention = SelfAttention(
            s.d_model, s.n_heads, s.n_heads, bias=True, qk_norm=False, norm_eps=s.norm_eps, dropout=s.dropout
        )
        self.attention_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.cross_attention = CrossAttention(s.d_model, s.n_heads, dropout=s.dropout)
        self.cross_attention_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.feed_forward = FeedForward(s)
        self.feed_forward_norm = nn.LayerNorm(s.d_model, s.norm_eps)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """y (B, T, D) over memory (B, S, D), mask (B, 1, 1, S)."""
        y = self.attention_norm(y + self.dropout(self.attention(y, None)))
        k, v = self.cross_attention.keys_and_values(memory)
        y = self.cross_attention_norm(y + self.dropout(self.cross_attention(y, k, v, mask)))
        return self.feed_forward_norm(y + self.dropout(self.feed_forward(y)))  # type: ignore[no-any-return]

    def weights(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """How much each token of y takes from each that was read: (B, H, T, S)."""
        y = self.attention_norm(y + self.attention(y, None))
        return self.cross_attention.weights(y, self.cross_attention.keys_and_values(memory)[0], mask)

    def step(
        self,
        y: Tensor,
        cache: KeyValueCache,
        positions: Tensor | int,
        memory: Memory,
        layer: int,
    ) -> Tensor:
        """The same for T new tokens of B rows; layer: which of the memory's is this block's."""
        y = self.attention_norm(y + self.attention.step(y, None, cache, positions))
        y = self.cross_attention_norm(y + self.cross_attention.step(y, memory, layer))
        return self.feed_forward_norm(y + self.feed_forward(y))  # type: ignore[no-any-return]


class Marian(nn.Module):
    """Hidden states of what is written, from the ids of both sides; `logits` turns them into scores."""

    positions: Tensor
    logits_bias: Tensor

    def __init__(self, settings: MarianSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.source_embedding = nn.Embedding(s.source_vocab_size, s.d_model) if s.source_vocab_size else None
        self.encoder = nn.ModuleList(EncoderBlock(s) for _ in range(s.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderBlock(s) for _ in range(s.n_layers))
        self.dropout = nn.Dropout(s.dropout)
        self.register_buffer("logits_bias", torch.zeros(s.vocab_size))
        self.make_tables()
        self.initialise(generator)

    def make_tables(self) -> None:
        """What follows from the settings alone and is stored in no file."""
        self.register_buffer("positions", sinusoids(self.settings.max_len, self.settings.d_model), persistent=False)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Glorot's uniform for matrices (Glorot & Bengio 2010, eq. 16), biases 0, norms 1.

        Embeddings N(0, 1 / D), so that sqrt(D) E has the variance 1 that positions are made for.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif name.endswith("embedding.weight"):
                    parameter.normal_(0.0, self.settings.d_model**-0.5, generator=generator)
                elif parameter.dim() == 2:
                    nn.init.xavier_uniform_(parameter, generator=generator)

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, S), mask (B, 1, 1, S) as of `source_mask` -> memory (B, S, D)."""
        table = self.embedding if self.source_embedding is None else self.source_embedding
        x = self._input(table, ids, self.positions[: ids.shape[1]])
        for block in self.encoder:
            x = block(x, mask)
        return x

    def forward(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """ids (B, T) of what is written, from start_id on; source_ids (B, S) right-padded -> hidden (B, T, D)."""
        mask = source_mask(source_lengths, source_ids.shape[1])
        memory = self.encode(source_ids, mask)
        y = self._input(self.embedding, ids, self.positions[: ids.shape[1]])
        for block in self.decoder:
            y = block(y, memory, mask)
        return y

    def attention_weights(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """How much each token that is written takes from each that is read: (B, T, S), rows sum to 1; without dropout.

        The mean of the heads of the layer before the last, which aligns words best (Garg et al. 2019, section 4.1).
        """
        mask = source_mask(source_lengths, source_ids.shape[1])
        memory = self.encode(source_ids, mask)
        y = self._input(self.embedding, ids, self.positions[: ids.shape[1]])
        *below, block = self._decoder_blocks()[: max(1, self.settings.n_layers - 1)]
        for lower in below:
            y = lower(y, memory, mask)
        return block.weights(y, memory, mask).mean(dim=1)

    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits: the embedding of the side that is written."""
        return self.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) fp32."""
        return linear(hidden, self.head(), self.logits_bias).float()

    @property
    def longest_source(self) -> int:
        """The most tokens of a text that is read."""
        return self.settings.max_len

    @property
    def source_vocab_size(self) -> int:
        return self.settings.source_vocab_size or self.settings.vocab_size

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
        y = self._input(self.embedding, ids, self.positions[places.clamp(max=self.settings.max_len - 1)])
        for layer, block in enumerate(self._decoder_blocks()):
            y = block.step(y, state.written.cache(layer), slots, state.memory(), layer)
        state.written.advance(n_new)
        return y

    def _decoder_blocks(self) -> list[DecoderBlock]:
        return [block for block in self.decoder if isinstance(block, DecoderBlock)]

    def _input(self, table: nn.Embedding, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        scale = math.sqrt(self.settings.d_model) if self.settings.scale_embedding else 1.0
        return self.dropout(table(ids) * scale + positions)  # type: ignore[no-any-return]
