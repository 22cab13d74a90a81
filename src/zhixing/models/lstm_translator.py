"""The recurrent encoder-decoder with attention: it reads one text and writes another, as before the Transformer.

    encoder    h̄_1 .. h̄_S: a bidirectional LSTM over what is read, D / 2 units each way (as in models/recurrence.py)
    start      [h_0; c_0] = tanh(W_s [forward h̄_S; backward h̄_1] + b_s), for every layer of the decoder
    weights    a_t(s) = softmax over s of score(., h̄_s), over real tokens only
    context    z_t = Σ_s a_t(s) h̄_s                                   (c_t in the papers; here c is the LSTM's cell)
    hidden     h~_t = tanh(W_c [z_t; h_t])                                         (Luong et al. 2015, eq. 5)
    logits     h~ E^T, or h~ U^T where the head is not tied                        (eq. 6)

    luong      h_t = LSTM(h_{t-1}, E y_t),          score(h_t, h̄_s) = h_t^T W_a h̄_s                   (eq. 8, general)
    bahdanau   h_t = LSTM(h_{t-1}, [E y_t; z_t]),   score(h_{t-1}, h̄_s) = v^T tanh(W_q h_{t-1} + b + W_a h̄_s)
                                                             (Bahdanau, Cho & Bengio 2015, appendix A.1.2)

With a pointer the model may take a token from the text that it reads instead of writing one (See, Liu & Manning 2017):

    share      p_t = sigmoid(w^T [z_t; h_t] + b)                          (1 - p_gen; eq. 8, without y_t)
    p(y)       (1 - p_t) softmax(logits)_y + p_t Σ_{s: x_s = y} a_t(s)    (eq. 9)

Both sides have one vocabulary of byte pairs, so no word is unknown and none needs a place of its own. What the decoder
hands on is then [h~; p_t Σ a_t], and `logits` gives log p(y).

Luong's attention looks after the cell, and what it finds does not enter the next cell: no input feeding (their section
3.3). So training runs all of a text through `nn.LSTM` at once. Bahdanau's looks before the cell and its context enters
it: time steps run one after another. Forward and backward of 32 texts of 30 tokens, d_model 256, 2 and 2 layers, one
CPU thread, fp32, torch 2.13: 0.45 s against 0.85 s.

What differs from the papers. Bahdanau's recurrence is a GRU; here it is the LSTM. His maxout before the output
(A.2.2) is replaced by h~, so that one head, and one table, serves both. His first state comes from the backward h̄_1
alone; Luong's is the encoder's last, which has another size here. Both sides share one table of embeddings.

Parameters start uniform in ±0.1 (Luong et al. 2015, section 4.1), biases at 0 but the forget gate's, which is 1.
Dropout stands before and between layers and before the output, never on connections through time.

The encoder runs once a text. h̄ and W_a h̄ are its memory, which hypotheses of the same text share and which is never
copied for them: they stand beside each other as queries. The arithmetic has no longest text; max_len is what we allow.

Shapes: B rows, G texts that are read, W rows a text, T tokens written, S tokens read, Q queries, D d_model, L decoder
layers, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.encoder_decoder_state import padded_sources
from zhixing.models.layers import Linear, source_mask
from zhixing.models.products import linear
from zhixing.models.recurrence import LSTMWeights, lstm_cell, read_both_ways, start_bias

AttentionKind = Literal["bahdanau", "luong"]
LEAST = 1e-12  # a probability whose logarithm is taken


@dataclass(frozen=True)
class LSTMTranslatorSettings:
    """d_model is even: each direction of the encoder has half of it."""

    vocab_size: int
    d_model: int = 512  # size of the embeddings, of h, of c and of h~
    n_encoder_layers: int = 2
    n_layers: int = 2
    max_len: int = 512
    dropout: float = 0.2
    attention: AttentionKind = "luong"
    tie_embeddings: bool = True  # the head is the embedding matrix (Press & Wolf 2017)
    start_id: int = 0
    pointer: bool = False  # tokens may be copied from what is read


class Memory(NamedTuple):
    """What is kept of the texts that are read, and which rows look at which.

    Row b is query places[b] of G W; None: row b is query b. E.g. rows of the texts [1, 0, 1]: W = 2, places [2, 0, 3].
    """

    values: Tensor  # (G, S, D), h̄
    keys: Tensor  # (G, S, D), W_a h̄
    ids: Tensor  # (G, S), what is read
    mask: Tensor | None  # (G, 1, S), True where a real token stands; None where all are real
    places: Tensor | None = None  # (B,)
    width: int = 1  # W

    def ids_by_row(self, n_rows: int) -> Tensor:
        """What each row reads: (B, S)."""
        places = torch.arange(n_rows, device=self.ids.device) if self.places is None else self.places
        return self.ids[places // self.width]


def places_beside(owners: Tensor, n_texts: int) -> tuple[Tensor | None, int]:
    """`places` and `width` of a Memory for rows of the texts `owners` (B,), each of which has a row."""
    counts = torch.bincount(owners, minlength=n_texts)  # (G,)
    order = owners.argsort(stable=True)
    steps = torch.arange(len(owners), device=owners.device)
    ranks = torch.empty_like(owners)  # how many rows of the same text stand before
    ranks[order] = steps - (counts.cumsum(0) - counts)[owners[order]]
    width = int(counts.max())
    places = owners * width + ranks
    regular = len(owners) == n_texts * width and torch.equal(places, steps)
    return None if regular else places, width


class GeneralAttention(nn.Module):
    """score(q, h̄) = q^T W_a h̄ (Luong et al. 2015, eq. 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.key = Linear(d_model, d_model, bias=False)

    def scores(self, q: Tensor, keys: Tensor) -> Tensor:
        """q (G, Q, D), keys (G, S, D) -> (G, Q, S)."""
        return q @ keys.transpose(1, 2)


class AdditiveAttention(nn.Module):
    """score(q, h̄) = v^T tanh(W_q q + b + W_a h̄) (Bahdanau et al. 2015, appendix A.1.2)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.key = Linear(d_model, d_model, bias=False)
        self.query = Linear(d_model, d_model)
        self.v = nn.Parameter(torch.empty(d_model))

    def scores(self, q: Tensor, keys: Tensor) -> Tensor:
        """q (G, Q, D), keys (G, S, D) -> (G, Q, S)."""
        return torch.tanh(self.query(q)[:, :, None] + keys[:, None]) @ self.v  # of (G, Q, S, D)


class Decoder(nn.Module):
    """h~ of what is written, over the memory of what was read."""

    def __init__(self, s: LSTMTranslatorSettings) -> None:
        super().__init__()
        self.first = s.attention == "bahdanau"  # attention looks before the cell
        self.recurrence = nn.LSTM(
            2 * s.d_model if self.first else s.d_model,
            s.d_model,
            s.n_layers,
            batch_first=True,
            dropout=s.dropout if s.n_layers > 1 else 0.0,  # it stands between layers
        )
        self.attention = AdditiveAttention(s.d_model) if self.first else GeneralAttention(s.d_model)
        self.start = Linear(s.d_model, 2 * s.n_layers * s.d_model)
        self.join = Linear(2 * s.d_model, s.d_model, bias=False)
        self.pointer = Linear(2 * s.d_model, 1) if s.pointer else None
        self.vocab_size = s.vocab_size
        self.dropout = nn.Dropout(s.dropout)

    def start_state(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Where the encoder ended in h̄ (G, S, D) of texts of `lengths` (G,) -> h_0 and c_0 (L, G, D) each."""
        rows = torch.arange(len(values), device=values.device)
        forward, _ = values[rows, lengths - 1].chunk(2, dim=1)  # (G, D / 2)
        _, backward = values[:, 0].chunk(2, dim=1)
        state = torch.tanh(self.start(torch.cat([forward, backward], dim=1))).to(self.start.weight.dtype)
        h, c = state.view(len(values), 2, -1, values.shape[2]).permute(1, 2, 0, 3).contiguous()  # (2, L, G, D)
        return h, c

    def look(self, q: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The context (G, Q, D) of q (G, Q, D) and its weights (G, Q, S), fp32 at least."""
        scores = self.attention.scores(q, memory.keys)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if memory.mask is not None:
            scores = scores.masked_fill(~memory.mask, -torch.inf)
        weights = scores.softmax(dim=-1)
        return weights.to(memory.values.dtype) @ memory.values, weights

    def look_by_row(self, h: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The same for one query a row: h (B, D) -> (B, D), (B, S)."""
        n_texts, _, d_model = memory.values.shape
        q = h
        if memory.places is not None:
            q = h.new_zeros(n_texts * memory.width, d_model).index_copy(0, memory.places, h)
        found, weights = (x.flatten(0, 1) for x in self.look(q.view(n_texts, memory.width, d_model), memory))
        if memory.places is not None:
            found, weights = found[memory.places], weights[memory.places]
        return found, weights

    def hidden(self, context: Tensor, h: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """h~ (..., D) of the context and the last layer's h, (..., D) each.

        With a pointer (..., D + V): behind h~ the probability to copy each token, of the weights (..., S) and the ids
        (..., S) that they stand for.
        """
        both = torch.cat([context, h], dim=-1)
        hidden = self.dropout(torch.tanh(self.join(both)))
        if self.pointer is None:
            return hidden  # type: ignore[no-any-return]
        share = torch.sigmoid(self.pointer(both).to(weights.dtype))  # (..., 1)
        nothing = weights.new_zeros(*weights.shape[:-1], self.vocab_size)
        return torch.cat([hidden.to(weights.dtype), nothing.scatter_add(-1, ids, share * weights)], dim=-1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Embedded tokens x (B, T, D), each row over its own text, from h, c (L, B, D) -> h~ (B, T, D), (B, T, S)."""
        if not self.first:
            y, _ = self.recurrence(x, (h, c))  # (B, T, D)
            context, weights = self.look(y, memory)
            return self.hidden(context, y, weights, memory.ids[:, None].expand_as(weights)), weights
        steps = []
        for x_t in x.unbind(dim=1):
            hidden, weights, h, c = self.step(x_t, h, c, memory)
            steps.append((hidden, weights))
        hiddens, all_weights = zip(*steps, strict=True)
        return torch.stack(hiddens, dim=1), torch.stack(all_weights, dim=1)

    def step(self, x: Tensor, h: Tensor, c: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One token a row: x (B, D), h and c (L, B, D) -> h~ (B, D), weights (B, S), the next h and c."""
        context = weights = None
        if self.first:
            context, weights = self.look_by_row(h[-1], memory)
            x = torch.cat([x, context], dim=1)  # (B, 2D)
        next_h, next_c = [], []
        for layer, own in enumerate(self.recurrence.all_weights):
            if layer:
                x = F.dropout(x, self.recurrence.dropout, self.training)
            x, c_l = lstm_cell(x, h[layer], c[layer], LSTMWeights(*own))  # (B, D)
            next_h.append(x)
            next_c.append(c_l)
        if context is None or weights is None:
            context, weights = self.look_by_row(x, memory)
        hidden = self.hidden(context, x, weights, memory.ids_by_row(len(x)))
        return hidden, weights, torch.stack(next_h), torch.stack(next_c)


class LSTMTranslatorState:
    """What the decoder remembers of some rows, and the memory of their texts. `step` advances it in place.

    h and c (L, B, D), lengths (B,) of what is written; values and keys (G, S, D), ids (G, S) and source_lengths (G,) of
    the texts; owners (B,): the text of each row. Each text has a row.
    """

    def __init__(
        self,
        h: Tensor,
        c: Tensor,
        lengths: Tensor,
        values: Tensor,
        keys: Tensor,
        ids: Tensor,
        source_lengths: Tensor,
        owners: Tensor,
    ) -> None:
        self.h, self.c, self.lengths = h, c, lengths
        self.values, self.keys, self.ids = values, keys, ids
        self.source_lengths, self.owners = source_lengths, owners
        self._memory: Memory | None = None

    def select(self, rows: Tensor) -> LSTMTranslatorState:
        """The given rows in that order; a text that no row reads any more is forgotten."""
        texts, owners = torch.unique(self.owners[rows], return_inverse=True)
        kept = self.values, self.keys, self.ids, self.source_lengths
        if len(texts) < len(self.source_lengths):
            kept = self.values[texts], self.keys[texts], self.ids[texts], self.source_lengths[texts]
        return LSTMTranslatorState(self.h[:, rows], self.c[:, rows], self.lengths[rows], *kept, owners)

    def append(self, other: LSTMTranslatorState) -> LSTMTranslatorState:
        """The rows of both, this one's first."""
        longest = max(self.values.shape[1], other.values.shape[1])
        values, keys = (
            torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in pair])
            for pair in ((self.values, other.values), (self.keys, other.keys))
        )
        ids = torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in (self.ids, other.ids)])
        return LSTMTranslatorState(
            torch.cat([self.h, other.h], dim=1),
            torch.cat([self.c, other.c], dim=1),
            torch.cat([self.lengths, other.lengths]),
            values,
            keys,
            ids,
            torch.cat([self.source_lengths, other.source_lengths]),
            torch.cat([self.owners, other.owners + len(self.source_lengths)]),
        )

    def memory(self) -> Memory:
        """The texts as they lie, and where the rows stand as queries."""
        if self._memory is None:
            mask = source_mask(self.source_lengths, self.values.shape[1])
            places, width = places_beside(self.owners, len(self.source_lengths))
            mask = None if mask is None else mask[:, 0]
            self._memory = Memory(self.values, self.keys, self.ids, mask, places, width)
        return self._memory


class LSTMTranslator(nn.Module):
    """Hidden states h~ of what is written, from the ids of both sides; `logits` turns them into scores."""

    def __init__(self, settings: LSTMTranslatorSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        if s.d_model % 2:
            raise InputError(
                f"d_model = {s.d_model} is not even", why="each direction of the encoder has half of its units"
            )
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.encoder = nn.LSTM(
            s.d_model,
            s.d_model // 2,
            s.n_encoder_layers,
            batch_first=True,
            dropout=s.dropout if s.n_encoder_layers > 1 else 0.0,
            bidirectional=True,
        )
        self.decoder = Decoder(s)
        self.dropout = nn.Dropout(s.dropout)
        self.lm_head = None if s.tie_embeddings else nn.Linear(s.d_model, s.vocab_size, bias=False)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """Fresh parameters, as the module docstring says."""
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2].startswith("bias"):
                start_bias(name, parameter)
            else:
                nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)

    def encode(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (B, S) right-padded, lengths (B,) of 1 or more -> h̄ (B, S, D); behind a text stands anything."""
        return read_both_ways(self.encoder, self.dropout(self.embedding(ids)), lengths)

    def forward(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """ids (B, T) of what is written, from start_id on; source_ids (B, S) right-padded -> hidden (B, T, D)."""
        return self._write(ids, source_ids, source_lengths)[0]

    def attention_weights(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """How much each token that is written takes from each that is read: (B, T, S), rows sum to 1."""
        return self._write(ids, source_ids, source_lengths)[1]

    def _write(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        values = self.encode(source_ids, source_lengths)
        mask = source_mask(source_lengths, source_ids.shape[1])
        memory = Memory(values, self.decoder.attention.key(values), source_ids, None if mask is None else mask[:, 0])
        h, c = self.decoder.start_state(values, source_lengths)
        return self.decoder(self.dropout(self.embedding(ids)), h, c, memory)  # type: ignore[no-any-return]

    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) fp32; with a pointer (..., D + V) -> the log-probabilities."""
        if not self.settings.pointer:
            return linear(hidden, self.head(), None).float()
        own, copied = hidden[..., : self.settings.d_model], hidden[..., self.settings.d_model :]
        written = linear(own, self.head(), None).softmax(dim=-1, dtype=copied.dtype)
        probabilities: Tensor = (1 - copied.sum(dim=-1, keepdim=True)) * written + copied
        return probabilities.clamp_min(LEAST).log().float()

    @property
    def longest_source(self) -> int:
        """The most tokens of a text that is read."""
        return self.settings.max_len

    @property
    def source_vocab_size(self) -> int:
        return self.settings.vocab_size

    def read_sources(self, sources: Sequence[Sequence[int]], capacity: int) -> tuple[LSTMTranslatorState, Tensor]:
        """Read the texts, one row each, and write the start id: the state, and the hidden state (G, D) of the start.

        The state's size does not depend on `capacity`.
        """
        ids, lengths = padded_sources(sources, self.embedding.weight.device)  # (G, S), (G,)
        values = self.encode(ids, lengths)
        h, c = self.decoder.start_state(values, lengths)
        keys = self.decoder.attention.key(values)
        owners = torch.arange(len(sources), device=keys.device)
        state = LSTMTranslatorState(h, c, torch.zeros_like(lengths), values, keys, ids, lengths, owners)
        start = torch.full_like(lengths, self.settings.start_id)[:, None]
        return state, self.step(start, torch.ones_like(lengths), state)[:, 0]

    def step(self, ids: Tensor, n_new: Tensor, state: LSTMTranslatorState) -> Tensor:
        """Feed T more tokens a row: ids (B, T) right-padded, row b has n_new[b] real ones. -> hidden (B, T, D)."""
        memory, hiddens = state.memory(), []
        for t, x in enumerate(self.embedding(ids).unbind(dim=1)):  # (B, D)
            hidden, _, h, c = self.decoder.step(x, state.h, state.c, memory)
            goes_on = (n_new > t)[None, :, None]
            state.h, state.c = torch.where(goes_on, h, state.h), torch.where(goes_on, c, state.c)
            hiddens.append(hidden)
        state.lengths = state.lengths + n_new
        return torch.stack(hiddens, dim=1)
