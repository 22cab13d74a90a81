"""LSTM: a memory that is written, kept and read through gates; as a language model and as a classifier.

Long short-term memory (Hochreiter & Schmidhuber 1997) with the forget gate of Gers, Schmidhuber & Cummins (2000),
stacked in layers as Graves (2013). For one layer, with x_t the layer's input, σ the logistic function and ⊙ the
product by elements:

    i_t = σ(W_i x_t + U_i h_{t-1} + b_i)        input gate: how much of the candidate is written
    f_t = σ(W_f x_t + U_f h_{t-1} + b_f)        forget gate: how much of the memory is kept
    g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)     candidate
    o_t = σ(W_o x_t + U_o h_{t-1} + b_o)        output gate: how much of the memory is shown
    c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t             memory cell
    h_t = o_t ⊙ tanh(c_t)                       hidden state

No peepholes (Greff et al. 2017 find that they gain nothing). The four products are one: the rows of the weights are
stacked in the order i, f, g, o, which is `nn.LSTM`'s.

`lstm_cell` and `lstm_reference` write the equations out; over many tokens the model runs `nn.LSTM`, the same function
in one fused kernel. Forward and backward of (16, 128) tokens, d_model 256, 2 layers, one CPU thread, fp32, torch 2.13:
reference 299 ms, `nn.LSTM` 132 ms, so 2.3 times as fast; they agree in value and gradient (tests/test_lstm.py). For one
token it is the other way round, 881 µs against 265 µs for one row, so decoding runs the cell.

Initialisation: weights uniform in ±1/√D, biases 0 but for the forget gate, whose bias is 1, so that the memory is
kept until there is a reason to forget it (Gers et al. 2000; Jozefowicz, Zaremba & Sutskever 2015, section 5).
Embeddings uniform in ±0.1, or given vectors. Dropout on the connections upwards only, never on those through time
(Zaremba, Sutskever & Vinyals 2014).

Training starts each window from a zero state: windows are shuffled, so the state of one says nothing of the next,
and the gradient reaches back to the start of the window. Decoding carries (h, c) from token to token and so has no
longest length; `max_len` is the length of a training window.

`LSTMClassifier` reads a text in both directions (Schuster & Paliwal 1997) and pools over its words: the largest and the
mean of each hidden unit, side by side (Conneau et al. 2017, section 3.1, has both, one or the other).

Legend: B rows, T tokens, D d_model, L n_layers, V vocab_size, H units a direction, C labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zhixing.models.layers import load_rows


@dataclass(frozen=True)
class LSTMSettings:
    vocab_size: int
    d_model: int = 256  # size of the embeddings, of h and of c
    n_layers: int = 2
    max_len: int = 256  # tokens in a training window
    dropout: float = 0.0
    tie_embeddings: bool = True  # the head is the embedding matrix (Press & Wolf 2017)


class LSTMWeights(NamedTuple):
    """One layer's weights; rows are stacked i, f, g, o. The two biases are added: only their sum matters."""

    w_ih: Tensor  # (4D, D_in)
    w_hh: Tensor  # (4D, D)
    b_ih: Tensor  # (4D,)
    b_hh: Tensor  # (4D,)


def lstm_cell(x: Tensor, h: Tensor, c: Tensor, weights: LSTMWeights) -> tuple[Tensor, Tensor]:
    """One step of one layer: x (B, D_in), h (B, D), c (B, D) -> the next h (B, D), c (B, D)."""
    gates = F.linear(x, weights.w_ih, weights.b_ih) + F.linear(h, weights.w_hh, weights.b_hh)  # (B, 4D)
    i, f, g, o = gates.chunk(4, dim=-1)  # (B, D) each
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_reference(x: Tensor, h: Tensor, c: Tensor, layers: list[LSTMWeights]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The equations over time, layer by layer, without dropout; what `nn.LSTM` is held against.

    x (B, T, D_in), h and c (L, B, D) -> the last layer's h_1..h_T (B, T, D), and (h_T, c_T) of all layers (L, B, D).
    """
    last_h, last_c = [], []
    for weights, h_l, c_l in zip(layers, h, c, strict=True):
        outputs = []
        for x_t in x.unbind(dim=1):  # (B, D_in)
            h_l, c_l = lstm_cell(x_t, h_l, c_l, weights)
            outputs.append(h_l)
        x = torch.stack(outputs, dim=1)  # (B, T, D)
        last_h.append(h_l)
        last_c.append(c_l)
    return x, (torch.stack(last_h), torch.stack(last_c))


def _initialise_recurrence(recurrence: nn.LSTM, n_hidden: int, generator: torch.Generator | None) -> None:
    """Weights uniform in ±1/√H, biases 0, the forget gate's 1."""
    for name, parameter in recurrence.named_parameters():
        if name.startswith("weight"):
            nn.init.uniform_(parameter, -1 / math.sqrt(n_hidden), 1 / math.sqrt(n_hidden), generator=generator)
        else:
            nn.init.zeros_(parameter)
        if name.startswith("bias_ih"):
            parameter[n_hidden : 2 * n_hidden] = 1.0  # the forget gate's; bias_hh adds 0 to it


@dataclass
class LSTMState:
    """Decoding state of some rows: what the network remembers of all tokens so far. `step` advances it in place."""

    lengths: Tensor  # (B,) int64, tokens seen
    h: Tensor  # (L, B, D)
    c: Tensor  # (L, B, D)

    def select(self, rows: Tensor) -> LSTMState:
        """A new state of the given rows, int64, in that order; a row may come twice or not at all."""
        return LSTMState(self.lengths[rows], self.h[:, rows], self.c[:, rows])

    def append(self, other: LSTMState) -> LSTMState:
        """A new state: the rows of this one, then those of the other."""
        return LSTMState(
            torch.cat([self.lengths, other.lengths]),
            torch.cat([self.h, other.h], dim=1),
            torch.cat([self.c, other.c], dim=1),
        )


class LSTM(nn.Module):
    """Hidden states from ids; `logits` turns hidden states into scores of the next token."""

    context_length = None  # it forgets instead of filling up: decoding may go on beyond max_len

    def __init__(self, settings: LSTMSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(settings.vocab_size, settings.d_model)
        self.recurrence = nn.LSTM(
            settings.d_model,
            settings.d_model,
            settings.n_layers,
            batch_first=True,
            dropout=settings.dropout if settings.n_layers > 1 else 0.0,  # it stands between layers
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.lm_head = None if settings.tie_embeddings else nn.Linear(settings.d_model, settings.vocab_size, bias=False)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """Fresh parameters, as the module docstring says."""
        d_model = self.settings.d_model
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1, generator=generator)
        _initialise_recurrence(self.recurrence, d_model, generator)
        if self.lm_head is not None:
            nn.init.uniform_(self.lm_head.weight, -0.1, 0.1, generator=generator)

    def load_embeddings(self, matrix: Tensor, found: Tensor | None = None) -> None:
        """Start from given word vectors: matrix (V, D); where `found` (V,) is False the random row stays."""
        load_rows(self.embedding, matrix, found)

    def layers(self) -> list[LSTMWeights]:
        """The weights of each layer, as `lstm_reference` takes them."""
        return [LSTMWeights(*weights) for weights in self.recurrence.all_weights]

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> hidden (B, T, D), each row from a zero state."""
        hidden, _ = self.recurrence(self.dropout(self.embedding(ids)))  # (B, T, D)
        return self.dropout(hidden)  # type: ignore[no-any-return]

    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> (..., V), fp32."""
        return F.linear(hidden, self.head()).float()

    def new_state(self, rows: int, max_len: int | None = None) -> LSTMState:
        """A state of `rows` rows that have seen nothing. Its size does not depend on `max_len`."""
        weight = self.embedding.weight
        zeros = weight.new_zeros(self.settings.n_layers, rows, self.settings.d_model)
        return LSTMState(torch.zeros(rows, dtype=torch.int64, device=weight.device), zeros, zeros)

    def step(self, ids: Tensor, n_new: Tensor, state: LSTMState) -> Tensor:
        """Read n_new[b] more tokens of each row b; advances the state in place.

        ids (B, T) int64, right-padded; n_new (B,) int64 from 0 to T; -> hidden (B, T, D), of which row b's first
        n_new[b] positions mean something. For example ids [[5, 6, 7], [8, 0, 0]] with n_new [3, 1]: row 1 keeps the
        (h, c) that it has after 8.
        """
        x = self.embedding(ids)  # (B, T, D)
        some = (n_new > 0)[None, :, None]
        if ids.shape[1] == 1:
            hidden, (h, c) = lstm_reference(x, state.h, state.c, self.layers())  # one cell a layer
        elif bool((n_new == ids.shape[1]).all()):
            hidden, (h, c) = self.recurrence(x, (state.h, state.c))
        else:
            # nn.LSTM takes no empty row: a row with nothing new reads one pad, and its state is put back
            packed = pack_padded_sequence(x, n_new.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
            output, (h, c) = self.recurrence(packed, (state.h, state.c))
            hidden, _ = pad_packed_sequence(output, batch_first=True, total_length=ids.shape[1])  # (B, T, D)
        state.h = torch.where(some, h, state.h)
        state.c = torch.where(some, c, state.c)
        state.lengths = state.lengths + n_new
        return hidden

    def for_decoding(self) -> LSTM:
        """The form that decoding uses: the model itself."""
        return self


@dataclass(frozen=True)
class LSTMClassifierSettings:
    vocab_size: int
    n_labels: int
    d_model: int = 128  # size of the embeddings
    d_hidden: int = 128  # units of each direction
    n_layers: int = 1
    max_len: int = 512
    dropout: float = 0.5
    freeze_embeddings: bool = False


def pool_max_and_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The largest and the mean of each unit over the real tokens: hidden (B, T, D), mask (B, T) -> (B, 2D).

    Each row has one real token at least.
    """
    largest = hidden.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)  # (B, D)
    total = hidden.masked_fill(~mask[..., None], 0.0).sum(dim=1)  # (B, D)
    return torch.cat([largest, total / mask.sum(dim=1, keepdim=True)], dim=1)


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """The first lengths[b] of each row in reverse order, the padding where it was: x (B, T, D), lengths (B,)."""
    steps = torch.arange(x.shape[1], device=x.device)  # (T,)
    places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)  # (B, T)
    return x.gather(1, places[..., None].expand_as(x))


def read_both_ways(recurrence: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """What a bidirectional `recurrence` makes of ragged rows: x (B, T, D), lengths (B,) -> (B, T, 2H).

    The same as packing the rows, at real tokens; behind them stands anything. Packed rows go the slow way through
    torch, a product a step and direction: 64 rows of about 200 tokens, 128 units, forward and backward on 2 cores take
    919 ms, and 180 ms by oneDNN's layer, which wants whole rows (118 ms in bf16). Padding on the right disturbs no
    forward direction; the backward one is a forward one over the turned rows.
    """
    layer: Any = torch.lstm
    n_hidden, weights = recurrence.hidden_size, recurrence.all_weights
    zeros = x.new_zeros(1, x.shape[0], n_hidden)
    for number in range(recurrence.num_layers):
        if number:
            x = F.dropout(x, recurrence.dropout, recurrence.training)
        ways = []
        for y, own in ((x, weights[2 * number]), (turned(x, lengths), weights[2 * number + 1])):
            # ..., biases, layers, dropout, training, both ways, batch first
            ways.append(layer(y, (zeros, zeros), own, True, 1, 0.0, recurrence.training, False, True)[0])
        x = torch.cat([ways[0], turned(ways[1], lengths)], dim=2)  # (B, T, 2H)
    return x


class LSTMClassifier(nn.Module):
    """Logits from ids: a bidirectional LSTM over the embeddings, pooled."""

    def __init__(self, settings: LSTMClassifierSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.recurrence = nn.LSTM(
            s.d_model,
            s.d_hidden,
            s.n_layers,
            batch_first=True,
            dropout=s.dropout if s.n_layers > 1 else 0.0,
            bidirectional=True,
        )
        self.dropout = nn.Dropout(s.dropout)
        self.head = nn.Linear(4 * s.d_hidden, s.n_labels)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """As the language model's; the head uniform in ±1/√(4H), its bias 0."""
        n_hidden = self.settings.d_hidden
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1, generator=generator)
        self.embedding.weight.requires_grad_(not self.settings.freeze_embeddings)
        _initialise_recurrence(self.recurrence, n_hidden, generator)
        bound = 1 / math.sqrt(4 * n_hidden)
        nn.init.uniform_(self.head.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.head.bias)

    def load_embeddings(self, matrix: Tensor, found: Tensor | None = None) -> None:
        """Start from given word vectors: matrix (V, D); where `found` (V,) is False the random row stays."""
        load_rows(self.embedding, matrix, found)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, D)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded (B, T, D), mask (B, T) bool, right padding -> logits (B, C) fp32.

        The backward direction starts at each row's last real token, so a row's padding changes nothing. A text of
        nothing is read as one zero vector.
        """
        embedded = embedded.masked_fill(~mask[..., None], 0.0)
        lengths = mask.sum(dim=1).clamp(min=1)  # (B,)
        hidden = read_both_ways(self.recurrence, self.dropout(embedded), lengths)  # (B, T, 2H)
        real = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]  # (B, T)
        return self.head(self.dropout(pool_max_and_mean(hidden, real))).float()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.embed(ids), mask)
