"""The operators that the families share: norms, rotary positions, attention with its cache, feed-forward.

Shapes: B rows, T new tokens, S tokens a query may look at, D d_model, H query heads, G key and value heads, K head
size (D / H), F d_ff. Masks are boolean, True = may attend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.products import linear

FEWEST_NUMBERS = 2**14  # below, a loop is not worth numba's start
FEWEST_CHANNELS = 128  # of a step; decided by the model alone, so that a row is the same in any company
SPARE_ROWS = 8  # where rows join, there is room for a multiple of so many
MOST_KEPT = 2**23  # B H T S, of a layer's attention weights that are kept for the way back: 32 MB in fp32


def compiled_loops(x: Tensor) -> bool:
    """Whether training goes through our own loops for a processor: with gradients, in fp32 or bf16, not traced."""
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() >= FEWEST_NUMBERS
        and not torch.compiler.is_compiling()
    )


def compiled_step(x: Tensor) -> bool:
    """Whether one new token a row, x (B, 1, D), goes through our own loops: fp32 on a processor, without gradients."""
    return (
        x.shape[1] == 1
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[2] >= FEWEST_CHANNELS
        and not torch.is_autocast_enabled("cpu")
    )


def own_attention(q: Tensor, k: Tensor, dropout: float) -> bool:
    """Whether models/cpu_attention.py leads: torch's own does where P is too large to keep, but not with dropout."""
    return compiled_loops(q) and (dropout > 0 or q[..., 0].numel() * k.shape[2] <= MOST_KEPT)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        # bf16 beside fp32 weights: torch computes the same in fp32 and rounds, but warns each user that it does
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


def outlined() -> bool:
    """Whether a model is only outlined (on the meta device), where nothing has numbers and an arange takes two seconds:
    it loads torch's compiler."""
    return torch.empty(0).device.type == "meta"


def rotary_table(head_size: int, max_len: int, theta: float) -> Tensor:
    """cos and sin of every position and pair of channels (Su et al. 2021, eq. 34): (max_len, 2, K / 2) fp32.

    Pair i of a head turns by position * theta^(-2i / K). The two channels of a pair are i and i + K/2, the order that
    Llama and Qwen checkpoints are stored in (the paper's is 2i and 2i + 1: a permutation of the same thing).
    """
    if outlined():
        return torch.empty(max_len, 2, head_size // 2)
    speeds = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)  # (K / 2,)
    angles = torch.arange(max_len, dtype=torch.float64)[:, None] * speeds  # (max_len, K / 2)
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Turn each pair of channels of x (B, H, T, K) by its position's angle; cos_sin (T, 2, K/2) or (B, T, 2, K/2)."""
    cos, sin = cos_sin.unsqueeze(-4).unbind(-2)  # (1 or B, 1, T, K / 2) once broadcast over heads
    first, second = x.chunk(2, dim=-1)  # (B, H, T, K / 2) each
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@torch.no_grad()
def load_rows(embedding: nn.Embedding, matrix: Tensor, found: Tensor | None) -> None:
    """Start an embedding from given word vectors: matrix (V, D); where `found` (V,) is False the row stays."""
    expected = tuple(embedding.weight.shape)
    if tuple(matrix.shape) != expected:
        raise InputError(
            f"the word vectors have the shape {tuple(matrix.shape)}, the model's embeddings {expected}",
            mend=f"set model.d_model = {matrix.shape[-1]}" if matrix.shape[-1] != expected[1] else "",
        )
    if not torch.isfinite(matrix).all():
        raise InputError("the word vectors hold a number that is not finite")
    rows = torch.ones(expected[0], dtype=torch.bool) if found is None else found
    embedding.weight[rows] = matrix[rows].to(embedding.weight)


class KeyValueCache:
    """Keys and values of one layer for the tokens seen so far: (rows, G, capacity + 1, K) each.

    The last slot is never read: right padding that would fall behind the capacity is written there.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def write(self, k: Tensor, v: Tensor, positions: Tensor | int) -> None:
        """Store k, v (B, G, T, K): at one start for all rows (an int), or at positions (B, T)."""
        if isinstance(positions, int):
            stop = positions + k.shape[2]
            self.keys[:, :, positions:stop] = k
            self.values[:, :, positions:stop] = v
        else:
            slots = positions.clamp(max=self.keys.shape[2] - 1)  # (B, T)
            rows = torch.arange(k.shape[0], device=k.device)[:, None]  # (B, 1)
            self.keys[rows, :, slots] = k.transpose(1, 2)  # (B, T, G, K)
            self.values[rows, :, slots] = v.transpose(1, 2)


class DecodingState:
    """What a Transformer decoder remembers between steps.

    keys and values (L, rows, G, capacity + 1, K) of every layer, and lengths (rows,): how many tokens each row has.
    `start` is the common length while all rows have the same one, else None: equal rows need no mask.
    Behind the rows there may be room for more: rows come and go in place, as copying all caches takes longer than a
    step (16 rows of a model of 17M parameters: 26 ms beside 15).
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths
        self.start = _common(lengths)

    @property
    def capacity(self) -> int:
        """Tokens a row can hold."""
        return self.keys.shape[3] - 1

    def cache(self, layer: int) -> KeyValueCache:
        """One layer's keys and values, as views."""
        rows = len(self.lengths)
        return KeyValueCache(self.keys[layer, :rows], self.values[layer, :rows])

    def select(self, rows: Tensor, capacity: int | None = None) -> DecodingState:
        """The given rows, in that order; rows (R,) int64 may repeat (beams, samples) or leave out (finished).

        With a smaller `capacity` less is copied; it must hold what is written.
        """
        slots = slice(None if capacity is None else capacity + 1)
        keys, values = self.keys[:, :, :, slots], self.values[:, :, :, slots]
        return DecodingState(keys[:, rows], values[:, rows], self.lengths[rows])

    def rearrange(self, rows: Tensor) -> DecodingState:
        """As `select` of as many rows, in place: only what is written in rows that change is copied. Uses this up."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        sources, written = rows[moved], slice(int(self.lengths.max()))
        for cache in (self.keys, self.values):
            cache[:, moved, :, written] = cache[:, sources, :, written]
        return DecodingState(self.keys, self.values, self.lengths[rows])

    def keep(self, places: Sequence[int]) -> DecodingState:
        """As `select`, in place; a row moves only from behind the places, as in `protocol.leave`. Uses this up."""
        for place, row in enumerate(places):
            if row != place:
                assert row >= len(places), "a row that stays would be overwritten"
                self.keys[:, place], self.values[:, place] = self.keys[:, row], self.values[:, row]
        return DecodingState(self.keys, self.values, self.lengths[torch.tensor(places, device=self.lengths.device)])

    def hold(self, capacity: int) -> None:
        """Make room for at least so many tokens a row."""
        if capacity > self.capacity:
            self.keys, self.values = _widen(self.keys, capacity), _widen(self.values, capacity)

    def fit(self, capacity: int) -> DecodingState:
        """The same with no more room than for `capacity` tokens a row, which must hold what is written."""
        if capacity >= self.capacity:
            return self
        return self.select(torch.arange(len(self.lengths), device=self.lengths.device), capacity)

    def append(self, other: DecodingState) -> DecodingState:
        """The rows of both, this one's first; the longer capacity of the two. Uses this state up."""
        mine, rows = len(self.lengths), len(self.lengths) + len(other.lengths)
        keys, values = self.keys, self.values
        if rows > keys.shape[1] or other.capacity > self.capacity:
            capacity, room = max(self.capacity, other.capacity), -(-rows // SPARE_ROWS) * SPARE_ROWS
            keys, values = _room(self.keys, mine, room, capacity), _room(self.values, mine, room, capacity)
        slots = other.capacity + 1
        for cache, joining in ((keys, other.keys), (values, other.values)):
            cache[:, mine:rows, :, :slots] = joining[:, : rows - mine]
            cache[:, mine:rows, :, slots:] = 0  # a row that left may have held numbers that are not finite
        return DecodingState(keys, values, torch.cat([self.lengths, other.lengths]))

    def piece(self, start: int) -> tuple[Tensor, Tensor]:
        """What the only row has more than a row of its first `start` tokens: keys and values (L, G, count, K)."""
        slots = slice(start, int(self.lengths))
        return self.keys[:, 0, :, slots].clone(), self.values[:, 0, :, slots].clone()

    def take(self, piece: tuple[Tensor, Tensor]) -> None:
        """Let the only row have read what a `piece` is of, behind what it has read."""
        start, count = int(self.lengths), piece[0].shape[2]
        for cache, part in zip((self.keys, self.values), piece, strict=True):
            cache[:, 0, :, start : start + count] = part
        self.advance(torch.full_like(self.lengths, count))

    def positions(self, count: int) -> tuple[Tensor | int, Tensor]:
        """Where `count` new tokens a row go: a start for the caches (int, or (B, T)), and the positions to embed."""
        steps = torch.arange(count, device=self.lengths.device)
        if self.start is not None and self.start + count <= self.capacity + 1:
            return self.start, self.start + steps  # (T,)
        where = self.lengths[:, None] + steps  # (B, T)
        return where, where

    def advance(self, n_new: Tensor) -> None:
        """Count the new tokens of each row."""
        self.lengths = self.lengths + n_new
        self.start = _common(self.lengths)


def _common(lengths: Tensor) -> int | None:
    values = lengths.tolist()
    return values[0] if values and min(values) == max(values) else None


def _widen(x: Tensor, capacity: int) -> Tensor:
    return F.pad(x, (0, 0, 0, capacity + 1 - x.shape[3]))


def _room(x: Tensor, rows: int, room: int, capacity: int) -> Tensor:
    """The first `rows` rows of x (L, rows, G, S, K) in a larger one."""
    layers, _, groups, slots, size = x.shape
    larger = x.new_zeros(layers, room, groups, capacity + 1, size)
    larger[:, :rows, :, :slots] = x[:, :rows]
    return larger


class Linear(nn.Linear):
    """y = x W^T + b, by the library that multiplies faster on this processor."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return linear(input, self.weight, self.bias)


class JoinedLinear(Linear):
    """Several products with the same input as one: the weight (sum of sizes, D) is `sizes` matrices one above another.

    One large product is faster than several small ones; `sizes` lets an optimizer that works on matrices (Muon) still
    see each by itself.
    """

    def __init__(self, d_in: int, sizes: tuple[int, ...], *, bias: bool) -> None:
        super().__init__(d_in, sum(sizes), bias=bias)
        self.sizes = sizes


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(K) + mask) V over earlier tokens (Vaswani et al. 2017, eq. 1).

    With n_kv_heads < n_heads several query heads share a key and value head (grouped queries, Ainslie et al. 2023);
    with qk_norm each head's query and key are RMS-normed before they are turned (Henry et al. 2020; Qwen3).
    """

    def __init__(
        self, d_model: int, n_heads: int, n_kv_heads: int, *, bias: bool, qk_norm: bool, norm_eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_size = n_heads, n_kv_heads, d_model // n_heads
        self.dropout = dropout
        sizes = tuple(n * self.head_size for n in (n_heads, n_kv_heads, n_kv_heads))
        self.qkv = JoinedLinear(d_model, sizes, bias=bias)
        self.out = Linear(n_heads * self.head_size, d_model, bias=bias)
        self.q_norm = RMSNorm(self.head_size, norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_size, norm_eps) if qk_norm else None

    def heads(self, x: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, T, K), k and v (B, G, T, K) of x (B, T, D)."""
        rows, count, _ = x.shape
        qkv = self.qkv(x).view(rows, count, -1, self.head_size)  # (B, T, H + 2G, K)
        q, k, v = qkv.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q, k, v

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """x (B, T, D) -> (B, T, D); each token sees itself and what is before it."""
        q, k, v = self.heads(x, rotary)
        dropout = self.dropout if self.training else 0.0
        if own_attention(q, k, dropout):
            from zhixing.models.cpu_attention import attention  # numba comes with it: only who trains waits for it

            shared = self.n_heads // self.n_kv_heads
            mixed = attention(q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), None, dropout)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=self.n_kv_heads != self.n_heads
            )  # (B, H, T, K)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """How much each token (the row) takes from each (the column): (B, H, T, T), rows sum to 1, 0 for later ones.

        The naive path, for looking at: `forward` never has them.
        """
        q, k, _ = self.heads(x, rotary)
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, 1)  # (B, H, T, K)
        scores = q @ k.transpose(-1, -2) / self.head_size**0.5  # (B, H, T, T)
        count = x.shape[1]
        seen = _causal_mask(torch.arange(count, device=x.device), count)  # (T, T)
        weights: Tensor = scores.masked_fill(~seen, -torch.inf).float().softmax(dim=-1)
        return weights

    def step(self, x: Tensor, rotary: Tensor | None, cache: KeyValueCache, positions: Tensor | int) -> Tensor:
        """The same for T new tokens a row, with the earlier ones in the cache."""
        if isinstance(positions, int) and rotary is None and self.q_norm is None and compiled_step(x):
            from zhixing.models.step_attention import attend_and_store  # numba comes with it

            mixed = attend_and_store(self.qkv(x)[:, 0], cache.keys, cache.values, positions)  # (B, H K)
            return self.out(mixed[:, None])  # type: ignore[no-any-return]
        q, k, v = self.heads(x, rotary)
        cache.write(k, v, positions)
        count = x.shape[1]
        if isinstance(positions, int):
            seen = positions + count
            mask = None if count == 1 else _causal_mask(torch.arange(positions, seen, device=x.device), seen)  # (T, S)
        else:
            seen = min(int(positions.max()) + 1, cache.keys.shape[2])
            mask = _causal_mask(positions, seen).unsqueeze(1)  # (B, 1, T, S)
        mixed = F.scaled_dot_product_attention(
            q,
            cache.keys[:, :, :seen],
            cache.values[:, :, :seen],
            attn_mask=mask,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _causal_mask(positions: Tensor, seen: int) -> Tensor:
    """(..., T) positions -> (..., T, seen): True where the key is not later than the query.

    positions [2, 3], seen 4 -> [[T, T, T, F], [T, T, T, T]].
    """
    return torch.arange(seen, device=positions.device) <= positions[..., None]


def _real_tokens(k: Tensor, mask: Tensor | None) -> Tensor | None:
    """How many tokens each row has before its padding (B,); None where padding stands elsewhere than on the right."""
    if mask is None:
        return torch.full((len(k),), k.shape[2])
    real = mask[:, 0, 0]  # (B, T)
    lengths = real.sum(dim=1)
    return lengths if torch.equal(real, torch.arange(real.shape[1]) < lengths[:, None]) else None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V over all keys that the mask (B, 1, 1, S) allows, None allowing all -> (B, H, T, K)."""
    if own_attention(q, k, dropout):
        lengths = _real_tokens(k, mask)
        if lengths is not None:
            from zhixing.models.cpu_attention import attention

            return attention(q, k, v, lengths, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class BidirectionalAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V over all real tokens, earlier and later (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, d_model: int, n_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.head_size, self.dropout = n_heads, d_model // n_heads, dropout
        self.qkv = JoinedLinear(d_model, (d_model, d_model, d_model), bias=True)
        self.out = Linear(d_model, d_model)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, T, K) each of x (B, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, self.head_size))  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask (B, 1, 1, T), True = may be looked at, or None where all may."""
        q, k, v = self.heads(x)
        mixed = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, K)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """How much each token (the row) takes from each (the column): (B, H, T, T), rows sum to 1.

        The naive path, for looking at: `forward` never has them.
        """
        q, k, _ = self.heads(x)
        scores = q @ k.transpose(-1, -2) / self.head_size**0.5  # (B, H, T, T)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights: Tensor = scores.float().softmax(dim=-1)
        return weights


class ScoreBias:
    """What positions add to the scores of every attention of a stack: made once a pass, for all its layers.

    values (1 or B, H, T, S), contiguous, -inf where the key is later than a query that sees earlier ones only;
    mask (B, 1, 1, S), True where a real token stands, or None where all are.
    """

    def __init__(self, values: Tensor, mask: Tensor | None) -> None:
        self.values, self.mask = values, mask

    @cached_property
    def masked(self) -> Tensor:
        """Both as one, (1 or B, H, T, S)."""
        return self.values if self.mask is None else self.values.masked_fill(~self.mask, -torch.inf)


class BiasedAttention(nn.Module):
    """softmax(Q K^T + bias) V, not divided by sqrt(K), and no bias in the products (Raffel et al. 2020, section 2.1).

    causal: each token sees itself and what is before it, which the bias must say too. H K need not be D.
    """

    def __init__(self, d_model: int, n_heads: int, head_size: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.head_size, self.causal, self.dropout = n_heads, head_size, causal, dropout
        size = n_heads * head_size
        self.qkv = JoinedLinear(d_model, (size, size, size), bias=False)
        self.out = Linear(size, d_model, bias=False)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, T, K) each of x (B, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, self.head_size))  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor, bias: ScoreBias) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        q, k, v = self.heads(x)
        dropout = self.dropout if self.training else 0.0
        lengths = None if self.causal else _real_tokens(k, bias.mask)
        covered = bias.mask is None if self.causal else lengths is not None
        if covered and own_attention(q, k, dropout):
            from zhixing.models.cpu_attention import attention

            root = self.head_size**0.5  # what the loops divide by
            mixed = attention(q * root, k, v, lengths, dropout, bias.values[0].to(q.dtype) * root)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias.masked.to(q.dtype), dropout_p=dropout, scale=1.0
            )
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Tensor, bias: ScoreBias) -> Tensor:
        """How much each token (the row) takes from each (the column): (B, H, T, T), rows sum to 1.

        The naive path, for looking at: `forward` never has them.
        """
        q, k, _ = self.heads(x)
        weights: Tensor = (q @ k.transpose(-1, -2) + bias.masked).float().softmax(dim=-1)
        return weights

    def step(self, x: Tensor, bias: ScoreBias, cache: KeyValueCache, positions: Tensor | int) -> Tensor:
        """The same for T new tokens a row, with the earlier ones in the cache; bias (1 or B, H, T, seen)."""
        q, k, v = self.heads(x)
        cache.write(k, v, positions)
        seen = bias.values.shape[-1]
        keys, values = cache.keys[:, :, :seen], cache.values[:, :, :seen]
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias.masked.to(q.dtype), scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Memory:
    """What was read: keys and values (L, G, H, S, K) of G texts, lengths (G,), and each row's text, owners (B,)."""

    keys: Tensor
    values: Tensor
    lengths: Tensor
    owners: Tensor

    @cached_property
    def beside(self) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Keys and values, (L, G, H, S, K), their mask (G, 1, 1, S) or None, and the rows W that share each.

        Shared as they lie where every text has its W rows beside each other; else each row gets a copy, W = 1.
        """
        keys, values, lengths = self.keys, self.values, self.lengths
        width = max(1, len(self.owners) // len(lengths))
        beside = torch.arange(len(lengths), device=self.owners.device).repeat_interleave(width)
        if not torch.equal(self.owners, beside):
            keys, values, lengths, width = keys[:, self.owners], values[:, self.owners], lengths[self.owners], 1
        return keys, values, source_mask(lengths, keys.shape[3]), width


def source_mask(lengths: Tensor, longest: int) -> Tensor | None:
    """(G, 1, 1, S), True where a real token stands; None where all are real."""
    if int(lengths.min()) == longest:
        return None
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, None]


class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V: Q of what is written, K and V of what was read (Vaswani et al. 2017, 3.2.3).

    A head has d_model / n_heads channels unless head_size says otherwise. Not divided by sqrt(K), it is T5's.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        dropout: float,
        head_size: int | None = None,
        bias: bool = True,
        divided: bool = True,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_size, self.dropout = n_heads, head_size or d_model // n_heads, dropout
        self.q_scale = 1.0 if divided else self.head_size**0.5  # what `attend` divides by, whichever way it goes
        size = n_heads * self.head_size
        self.q = Linear(d_model, size, bias=bias)
        self.kv = JoinedLinear(d_model, (size, size), bias=bias)
        self.out = Linear(size, d_model, bias=bias)

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (B, H, S, K) each of what was read (B, S, D): once a text."""
        k, v = self.kv(memory).unflatten(-1, (2, self.n_heads, self.head_size)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """y (B, T, D) looks at k, v (B, H, S, K); mask (B, 1, 1, S) or None -> (B, T, D)."""
        mixed = attend(self._queries(y), k, v, mask, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def step(self, y: Tensor, memory: Memory, layer: int) -> Tensor:
        """The same for T new tokens y (B, T, D) of the rows that share a memory."""
        if compiled_step(y):
            from zhixing.models.step_attention import look

            q = self.q(y)[:, 0] if self.q_scale == 1 else self.q(y)[:, 0] * self.q_scale  # (B, H K)
            mixed = look(q, memory.keys[layer], memory.values[layer], memory.owners, memory.lengths)
            return self.out(mixed[:, None])  # type: ignore[no-any-return]
        keys, values, mask, width = memory.beside
        beside = y.reshape(-1, width * y.shape[1], y.shape[2])  # (G, W T, D)
        return self(beside, keys[layer], values[layer], mask).view_as(y)  # type: ignore[no-any-return]

    def weights(self, y: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """How much each token of y (B, T, D) takes from each that was read: (B, H, T, S), rows sum to 1.

        The naive path, for looking at: `forward` never has them.
        """
        scores = self._queries(y) @ k.transpose(-1, -2) / self.head_size**0.5  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights: Tensor = scores.float().softmax(dim=-1)
        return weights

    def _queries(self, y: Tensor) -> Tensor:
        q: Tensor = self.q(y).unflatten(-1, (self.n_heads, self.head_size)).transpose(1, 2)  # (B, H, T, K)
        return q if self.q_scale == 1 else q * self.q_scale


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x) (Shazeer 2020, eq. 6); gate and up are one product."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_up = JoinedLinear(d_model, (d_ff, d_ff), bias=False)
        self.down = Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up(x)  # (B, T, 2F)
        if compiled_loops(both):
            from zhixing.models.activations import activation

            return self.down(activation(both, "swiglu"))  # type: ignore[no-any-return]
        gate, up = both.chunk(2, dim=-1)  # (B, T, F) each
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class GELUFeedForward(nn.Module):
    """W_down gelu(W_up x), with biases (Hendrycks & Gimpel 2016): GPT-2's tanh form of gelu, or BERT's exact one."""

    def __init__(self, d_model: int, d_ff: int, *, exact: bool = False) -> None:
        super().__init__()
        self.up = Linear(d_model, d_ff)
        self.down = Linear(d_ff, d_model)
        self.form = "none" if exact else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if self.form == "tanh" and compiled_loops(inner):
            from zhixing.models.activations import activation

            return self.down(activation(inner, "gelu"))  # type: ignore[no-any-return]
        return self.down(F.gelu(inner, approximate=self.form))  # type: ignore[no-any-return]
