"""LSTM: a memory that is written, kept and read through gates; as a language model and as a classifier.

Long short-term memory (Hochreiter & Schmidhuber 1997) with the forget gate of Gers, Schmidhuber & Cummins (2000),
stacked in layers as Graves (2013). `models/recurrence.py` has the equations, and says when the fused kernel runs and
when the cell.

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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zhixing.models.layers import load_rows
from zhixing.models.recurrence import LSTMWeights, lstm_reference, read_both_ways, start_bias


@dataclass(frozen=True)
class LSTMSettings:
    vocab_size: int
    d_model: int = 256  # size of the embeddings, of h and of c
    n_layers: int = 2
    max_len: int = 256  # tokens in a training window
    dropout: float = 0.0
    tie_embeddings: bool = True  # the head is the embedding matrix (Press & Wolf 2017)


def _initialise_recurrence(recurrence: nn.LSTM, n_hidden: int, generator: torch.Generator | None) -> None:
    """Weights uniform in ±1/√H, biases 0, the forget gate's 1."""
    for name, parameter in recurrence.named_parameters():
        if name.startswith("weight"):
            nn.init.uniform_(parameter, -1 / math.sqrt(n_hidden), 1 / math.sqrt(n_hidden), generator=generator)
        else:
            start_bias(name, parameter)


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

    def piece(self, start: int) -> tuple[int, Tensor, Tensor]:
        """What the only row knows more than one of its first `start` tokens: how many more, and all of (h, c)."""
        return int(self.lengths) - start, self.h.clone(), self.c.clone()

    def take(self, piece: tuple[int, Tensor, Tensor]) -> None:
        """Let the only row have read what a `piece` is of, behind what it has read."""
        count, self.h, self.c = piece
        self.lengths = self.lengths + count


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
