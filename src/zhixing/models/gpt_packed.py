"""One decoding step of a GPT as compiled loops: the fast path of `GPT.step` for few tokens on a processor.

A step of one token a row is a row of matrix-vector products: each weight is read once and used B times, so what counts
is to read the weights in one pass, with all cores, and do nothing else. torch runs some twenty operators a layer for it
and a matrix product made for large B; here a step is one call. Measured gain over the eager step: docs/log.md.

Each token's sums are added in the same order whatever stands beside it, so its hidden state has the same bits alone, in
a batch, and as one of several tokens of a prompt. `tests/test_gpt_packed.py` holds that too.

numba compiles the loops at their first use (about half a minute, kept on disk afterwards). `tests/test_gpt_packed.py`
holds them against `GPT.step`.

Shapes: L layers, B rows, D d_model, H query heads, G key and value heads, K head size, F d_ff, V vocab_size, S slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from zhixing.models.activations import gelu_rows, swiglu_rows
from zhixing.models.exponential import FAST
from zhixing.models.few_rows import UNSCALED, Array, matmul, quantise, use_threads
from zhixing.models.gpt import GPT
from zhixing.models.layers import DecodingState
from zhixing.models.screened_argmax import HAS_VNNI, ScreenedArgmax
from zhixing.models.step_attention import attention

MOST_TOKENS = 64  # in one pass; more tokens of prompts than that are torch's, rows of one token take several passes


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _rms_norm(x: Array, weight: Array, eps: float, out: Array) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, for each row."""
    for b in range(x.shape[0]):
        total = np.float32(0)
        for k in range(x.shape[1]):
            total += x[b, k] * x[b, k]
        scale = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
        for k in range(x.shape[1]):
            out[b, k] = x[b, k] * scale * weight[k]


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
    """out = (x - mean) / sqrt(var + eps) * weight + bias, for each row."""
    for b in range(x.shape[0]):
        mean = np.float32(0)
        for k in range(x.shape[1]):
            mean += x[b, k]
        mean /= np.float32(x.shape[1])
        total = np.float32(0)
        for k in range(x.shape[1]):
            total += (x[b, k] - mean) * (x[b, k] - mean)
        scale = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
        for k in range(x.shape[1]):
            out[b, k] = (x[b, k] - mean) * scale * weight[k] + bias[k]


@njit(fastmath=FAST, cache=True, error_model="numpy")
def modern_step(
    x: Array,
    attention_norm: Array,
    qkv: Array,
    qkv_scale: Array,
    q_norm: Array,
    k_norm: Array,
    out: Array,
    out_scale: Array,
    feed_forward_norm: Array,
    gate_up: Array,
    gate_up_scale: Array,
    down: Array,
    down_scale: Array,
    final_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    owner: Array,
    places: Array,
    threads: int,
) -> None:
    """x (B, D) embeddings -> hidden states, in place. Weights are stacked over layers, (L, rows, columns)."""
    layers, rows, d_model = qkv.shape[0], x.shape[0], x.shape[1]
    heads = out.shape[2] // keys.shape[4]
    normed = np.empty((rows, d_model), np.float32)
    projected = np.empty((rows, qkv.shape[1]), np.float32)
    mixed = np.empty((rows, out.shape[2]), np.float32)
    change = np.empty((rows, d_model), np.float32)
    both = np.empty((rows, gate_up.shape[1]), np.float32)
    inner = np.empty((rows, down.shape[2]), np.float32)
    scores = np.empty((rows, heads, keys.shape[3]), np.float32)
    for layer in range(layers):
        _rms_norm(x, attention_norm[layer], eps, normed)
        matmul(qkv[layer], qkv_scale[layer], normed, projected, threads)
        attention(
            projected,
            q_norm[layer],
            k_norm[layer],
            eps,
            rotary,
            keys[layer],
            values[layer],
            owner,
            places,
            scores,
            mixed,
        )
        matmul(out[layer], out_scale[layer], mixed, change, threads)
        x += change
        _rms_norm(x, feed_forward_norm[layer], eps, normed)
        matmul(gate_up[layer], gate_up_scale[layer], normed, both, threads)
        swiglu_rows(both, inner)
        matmul(down[layer], down_scale[layer], inner, change, threads)
        x += change
    _rms_norm(x, final_norm, eps, x)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def classic_step(
    x: Array,
    attention_norm: Array,
    attention_norm_bias: Array,
    qkv: Array,
    qkv_scale: Array,
    qkv_bias: Array,
    out: Array,
    out_scale: Array,
    out_bias: Array,
    feed_forward_norm: Array,
    feed_forward_norm_bias: Array,
    up: Array,
    up_scale: Array,
    up_bias: Array,
    down: Array,
    down_scale: Array,
    down_bias: Array,
    final_norm: Array,
    final_norm_bias: Array,
    eps: float,
    no_norm: Array,
    no_rotary: Array,
    keys: Array,
    values: Array,
    owner: Array,
    places: Array,
    threads: int,
) -> None:
    """The same for GPT-2's blocks: LayerNorm, biases, GELU in its tanh form."""
    layers, rows, d_model = qkv.shape[0], x.shape[0], x.shape[1]
    heads = out.shape[2] // keys.shape[4]
    normed = np.empty((rows, d_model), np.float32)
    projected = np.empty((rows, qkv.shape[1]), np.float32)
    mixed = np.empty((rows, out.shape[2]), np.float32)
    change = np.empty((rows, d_model), np.float32)
    inner = np.empty((rows, up.shape[1]), np.float32)
    scores = np.empty((rows, heads, keys.shape[3]), np.float32)
    for layer in range(layers):
        _layer_norm(x, attention_norm[layer], attention_norm_bias[layer], eps, normed)
        matmul(qkv[layer], qkv_scale[layer], normed, projected, threads)
        projected += qkv_bias[layer]
        attention(projected, no_norm, no_norm, eps, no_rotary, keys[layer], values[layer], owner, places, scores, mixed)
        matmul(out[layer], out_scale[layer], mixed, change, threads)
        x += change + out_bias[layer]
        _layer_norm(x, feed_forward_norm[layer], feed_forward_norm_bias[layer], eps, normed)
        matmul(up[layer], up_scale[layer], normed, inner, threads)
        inner += up_bias[layer]
        gelu_rows(inner, inner)
        matmul(down[layer], down_scale[layer], inner, change, threads)
        x += change + down_bias[layer]
    _layer_norm(x, final_norm, final_norm_bias, eps, x)


MATRICES = {
    "gpt2": ("attention.qkv.weight", "attention.out.weight", "feed_forward.up.weight", "feed_forward.down.weight"),
    "modern": (
        "attention.qkv.weight",
        "attention.out.weight",
        "feed_forward.gate_up.weight",
        "feed_forward.down.weight",
    ),
}
NOT_ASKED = 15  # steps
# How many tokens to guess, by the share of guesses that held lately: a guess costs a quarter of a step (int8 weights)
GUESSES = ((0.9, 8), (0.8, 5), (0.65, 3), (0.4, 2), (0.2, 1))


@dataclass
class Ahead:
    """What one row will be after each of some tokens, the first given and the others guessed.

    hidden (n, D) and logits (n, V) are the model's own, in fp32, after ids[0..i]; they are right for as long as the
    tokens that come are those of `ids`.
    """

    state: DecodingState
    first: int  # where ids[0] stands in the row
    ids: list[int]
    hidden: Tensor
    logits: Tensor
    used: int = 1


class PackedGPT:
    """A GPT that takes its small steps through the compiled loops; the rest it leaves to the model.

    Keeps the decoding protocol (new_state, step, logits) and shares the model's memory: the parameters of one kind
    become views of one array over the layers. fp32 on the CPU only.

    One row alone waits for memory: every token reads all weights. So a copy of the model in int8, a quarter of the
    size, guesses some tokens, and one fp32 pass over all of them says what the model makes of each (speculative
    decoding, Leviathan et al. 2023, with the model as its own draft). The caller sees nothing of it: where the token
    that comes is the one that was guessed, its hidden state and logits are at hand already, and they are fp32's.
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.settings = model, model.settings
        self.classic = self.settings.layout == "gpt2"
        self.head_weight = model.head().detach().numpy()
        self.embedding = model.embedding.weight.detach()
        blocks: list[Any] = list(model.blocks)
        paths = MATRICES["gpt2" if self.classic else "modern"]
        unscaled = np.zeros((len(blocks), 0), np.float32)
        self.matrices = [(_stacked([block.get_parameter(path) for block in blocks]), unscaled) for path in paths]
        self.arguments = self._arguments(self.matrices)
        self.rounded: tuple[list[Any], Array, Array] | None = None  # arguments, head and its scale in int8
        self.screened: ScreenedArgmax | None = None  # the head in int8, for several rows
        self.not_asked = 0  # for how many steps it is left alone, after it could not tell
        self.ahead: Ahead | None = None
        self.held = 0.85  # share of guesses that held lately

    def _arguments(self, matrices: list[tuple[Array, Array]]) -> list[Any]:
        """What the compiled step takes after x, with these matrices and their scales."""
        blocks: list[Any] = list(self.model.blocks)

        def of(path: str) -> Array:
            return _stacked([block.get_parameter(path) for block in blocks])

        final: Any = self.model.norm
        eps = self.settings.norm_eps
        nothing = np.zeros((len(blocks), 0), np.float32)
        qkv, out, up, down = matrices
        if self.classic:
            return [
                of("attention_norm.weight"),
                of("attention_norm.bias"),
                *qkv,
                of("attention.qkv.bias"),
                *out,
                of("attention.out.bias"),
                of("feed_forward_norm.weight"),
                of("feed_forward_norm.bias"),
                *up,
                of("feed_forward.up.bias"),
                *down,
                of("feed_forward.down.bias"),
                final.weight.detach().numpy(),
                final.bias.detach().numpy(),
                eps,
                nothing[0],
                np.zeros((1, 2, 0), np.float32),
            ]
        normed = self.settings.layout == "qwen3"
        return [
            of("attention_norm.weight"),
            *qkv,
            of("attention.q_norm.weight") if normed else nothing,
            of("attention.k_norm.weight") if normed else nothing,
            *out,
            of("feed_forward_norm.weight"),
            *up,
            *down,
            final.weight.detach().numpy(),
            eps,
            self.model.rotary.numpy(),
        ]

    @property
    def training(self) -> bool:
        return self.model.training

    def train(self, mode: bool = True) -> PackedGPT:
        self.model.train(mode)
        return self

    def head(self) -> Tensor:
        return self.model.head()

    def new_state(self, rows: int, max_len: int | None = None) -> DecodingState:
        return self.model.new_state(rows, max_len)

    def step(self, ids: Tensor, n_new: Tensor, state: DecodingState) -> Tensor:
        """As GPT.step; one token a row, and few tokens in all, go the fast way."""
        rows, count = ids.shape
        real = np.arange(count) < n_new.numpy()[:, None]  # (B, T)
        owner, along = map(np.ascontiguousarray, np.nonzero(real))  # (N,) each; loops are compiled for contiguous ones
        places = state.lengths.numpy()[owner] + along
        if (count > 1 and len(owner) > MOST_TOKENS) or places.max(initial=0) >= state.capacity:
            return self.model.step(ids, n_new, state)
        if rows == count == len(owner) == 1:
            hidden = self._next_of_one_row(int(ids), state)
            state.advance(n_new)
            return hidden.unsqueeze(1)
        flat = ids[torch.from_numpy(real)]
        parts = [slice(first, first + MOST_TOKENS) for first in range(0, len(flat), MOST_TOKENS)]
        passed = [self._pass(flat[part], state, owner[part], places[part], self.arguments) for part in parts]
        state.advance(n_new)
        if len(passed) == 1 and len(flat) == rows * count:
            return passed[0].view(rows, count, -1)
        hidden = self.embedding.new_zeros(rows, count, self.embedding.shape[1])
        hidden[torch.from_numpy(owner), torch.from_numpy(along)] = torch.cat(passed)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) fp32."""
        ahead = self.ahead
        if ahead is not None and hidden.data_ptr() == ahead.hidden[ahead.used - 1].data_ptr() and hidden.dim() == 2:
            return ahead.logits[ahead.used - 1 : ahead.used].clone()
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self._scores(flat.contiguous(), self.head_weight, UNSCALED).view(*hidden.shape[:-1], -1)

    def most_probable(self, hidden: Tensor, excluded: tuple[int, ...]) -> Tensor | None:
        """hidden (B, D) -> the ids (B,) of the greatest logits but the excluded; None where it takes all logits."""
        if not HAS_VNNI or hidden.shape[-1] % 4 or not 1 < len(hidden) <= MOST_TOKENS:
            return None
        if self.not_asked:
            self.not_asked -= 1
            return None
        self.screened = self.screened or ScreenedArgmax(self.head_weight)
        found = self.screened(hidden, excluded)
        self.not_asked = 0 if found is not None else NOT_ASKED
        return found

    def _scores(self, hidden: Tensor, head: Array, scale: Array) -> Tensor:
        """hidden (B, D) -> (B, V) by a head in fp32 or int8."""
        out = torch.empty(len(hidden), len(head))
        matmul(head, scale, hidden.numpy(), out.numpy(), use_threads())
        return out

    def _pass(self, ids: Tensor, state: DecodingState, owner: Array, places: Array, arguments: list[Any]) -> Tensor:
        """Tokens ids (B,) of rows owner (B,) at places (B,) through all blocks -> hidden (B, D)."""
        x = self.embedding[ids]  # (B, D), a copy
        if self.model.positions is not None:
            x += self.model.positions.weight.detach()[torch.from_numpy(places)]
        step: Any = classic_step if self.classic else modern_step
        step(x.numpy(), *arguments, state.keys.numpy(), state.values.numpy(), owner, places, use_threads())
        return x

    def _next_of_one_row(self, token: int, state: DecodingState) -> Tensor:
        """Hidden state (1, D) after one more token of the only row: known already, or looked up ahead."""
        place = int(state.lengths)
        ahead = self.ahead
        if ahead is not None and ahead.state is state and place == ahead.first + ahead.used:
            if ahead.used < len(ahead.ids) and ahead.ids[ahead.used] == token:
                ahead.used += 1
                return ahead.hidden[ahead.used - 1 : ahead.used]
            if len(ahead.ids) > 1:
                tried = min(ahead.used, len(ahead.ids) - 1)
                self.held += 0.1 * tried * ((ahead.used - 1) / tried - self.held)
        self.held = min(1.0, self.held + 0.005)  # so that guessing is tried again some time
        count = next((count for least, count in GUESSES if self.held >= least), 0)
        self.ahead = self._look_ahead(token, place, min(count, state.capacity - place - 1), state)
        return self.ahead.hidden[:1]

    def _look_ahead(self, token: int, place: int, count: int, state: DecodingState) -> Ahead:
        """Guess `count` tokens after this one with the int8 weights, then run all of them in fp32."""
        ids = [token]
        one, owner = torch.empty(1, dtype=torch.int64), np.zeros(count + 1, np.int64)
        places = np.arange(place, place + count + 1)
        if count:
            arguments, head, scale = self.rounded = self.rounded or self._rounded()
            for i in range(count):
                one[0] = ids[-1]
                hidden = self._pass(one, state, owner[:1], places[i : i + 1], arguments)
                ids.append(int(self._scores(hidden, head, scale).numpy().argmax()))
        hidden = self._pass(torch.tensor(ids), state, owner, places, self.arguments)
        return Ahead(state, place, ids, hidden, self._scores(hidden, self.head_weight, UNSCALED))

    def _rounded(self) -> tuple[list[Any], Array, Array]:
        """The matrices and the head in int8, made when first needed."""

        def rounded(w: Array) -> tuple[Array, Array]:
            small, scale = np.empty(w.shape, np.int8), np.empty(w.shape[:-1], np.float32)
            quantise(w.reshape(-1, w.shape[-1]), small.reshape(-1, w.shape[-1]), scale.reshape(-1))
            return small, scale

        return self._arguments([rounded(w) for w, _ in self.matrices]), *rounded(self.head_weight)


def _stacked(parameters: list[nn.Parameter]) -> Array:
    """Parameters of equal shape as one array (L, ...), of which each becomes a view (again no copy the next time)."""
    first = parameters[0].data
    size = first.numel() * first.element_size()
    in_place = all(
        p.data.is_contiguous() and p.data_ptr() == first.data_ptr() + i * size for i, p in enumerate(parameters)
    )
    same_storage = all(p.data.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for p in parameters)
    if in_place and same_storage:
        return first.as_strided((len(parameters), *first.shape), (first.numel(), *first.stride())).numpy()
    stacked = torch.stack([p.data for p in parameters])
    for parameter, view in zip(parameters, stacked, strict=True):
        parameter.data = view
    return stacked.numpy()
