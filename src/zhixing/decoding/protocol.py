"""What decoding asks of a model, and nothing more: the one protocol of GPT, LSTM and whatever comes later.

A model makes a state, steps it, and the state's rows can be picked, repeated, dropped and joined. A key-value cache and
an LSTM's (h, c) are both state; decoding never looks inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor


class State(Protocol):
    """What a model remembers of some rows between steps.

    It may have more, where that is faster or can be done at all:
    `keep(places) -> Self`, as `select` with the places of `leave`, in place: the state itself is used up;
    `rearrange(rows) -> Self`, as `select` of as many rows as there are, in place: the state itself is used up;
    `fit(capacity) -> Self`, the same with less room, which must hold what is written;
    `piece(start)` and `take(piece)`, which make it a `Pieced`.
    """

    lengths: Tensor  # (B,) int64, tokens seen

    def select(self, rows: Tensor) -> Self:
        """The given rows (int64) in that order; a row may come twice or not at all."""
        ...

    def append(self, other: Self) -> Self:
        """This state's rows, then the other's. This state is used up."""
        ...


class Pieced(Protocol):
    """A state of one row of which what it learnt from some tokens can be kept, and given to another row.

    So a prompt that begins as an earlier one need not be read from its beginning: a cache of keys and values can be cut
    anywhere, and of an LSTM's (h, c) each piece is all of it.
    """

    def piece(self, start: int) -> object:
        """What the only row has more than a row that has read its first `start` tokens."""
        ...

    def take(self, piece: Any) -> None:
        """Let the only row have read what the piece is of, behind what it has read."""
        ...


class Sizes(Protocol):
    """The two numbers of a model's settings that decoding needs."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_len(self) -> int: ...


S = TypeVar("S", bound=State)
Made = TypeVar("Made", bound=State, covariant=True)
Taken = TypeVar("Taken", bound=State, contravariant=True)


class LanguageModel(Protocol[Taken]):
    """A model that predicts the next token. B rows, T new tokens, D d_model, V vocab_size.

    It may have more. `most_probable(hidden (B, D), excluded ids) -> ids (B,) or None`: where a row's greatest logit is
    all that is asked for, a model may know a faster way to it than all logits. How it takes a prompt in makes it a
    `Continuer` or a `Reader`.
    """

    training: bool

    @property
    def settings(self) -> Sizes: ...

    def train(self, mode: bool = True) -> object: ...

    def head(self) -> Tensor:
        """The weight (V, D) that turns hidden states into logits."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> (..., V) fp32."""
        ...

    def step(self, ids: Tensor, n_new: Tensor, state: Taken) -> Tensor:
        """ids (B, T) right-padded, row b has n_new[b] real ones -> hidden (B, T, D); the state moves on in place."""
        ...


class Continuer(Protocol[Made]):
    """A model that writes on where its prompt ends: the prompt goes through `step`."""

    def new_state(self, rows: int, max_len: int) -> Made:
        """A state of `rows` rows that have seen nothing and will see at most `max_len` tokens."""
        ...


class Reader(Protocol[Made]):
    """A model whose prompts are texts of another side: they are read apart and take no room of what is written."""

    @property
    def longest_source(self) -> int:
        """The most tokens of a prompt."""
        ...

    @property
    def source_vocab_size(self) -> int:
        """How many ids a prompt may hold."""
        ...

    def read_sources(self, sources: Sequence[Sequence[int]], capacity: int) -> tuple[Made, Tensor]:
        """A row for each prompt with room for `capacity` tokens, and the hidden states (P, D) to start writing from."""
        ...


def as_reader(model: LanguageModel[S]) -> Reader[S] | None:
    """The model, if it reads its prompts apart."""
    return cast(Reader[S], model) if hasattr(model, "read_sources") else None


def as_continuer(model: LanguageModel[S]) -> Continuer[S]:
    """The model, which is no Reader."""
    return cast(Continuer[S], model)


def as_pieced(state: State) -> Pieced | None:
    """The state, if it can be kept in pieces."""
    return cast(Pieced, state) if hasattr(state, "piece") else None


def rearrange(state: S, rows: Tensor) -> S:
    """The given rows in that order, in place where the state can and none go. The state is used up."""
    in_place: Callable[[Tensor], S] | None = getattr(state, "rearrange", None)
    return state.select(rows) if in_place is None or len(rows) != len(state.lengths) else in_place(rows)


def leave(state: S, leaving: Sequence[int]) -> tuple[S, list[int]]:
    """Some rows leave, not all: the state without them, and which row now stands at each place. The state is used up.

    The others stay in their order, or in place where the state can: then the last ones take the free places, so that
    few move. Of 6 rows 1 and 4 leave: rows 0 2 3 5 stay, in place as 0 5 2 3.
    """
    gone, count = set(leaving), len(state.lengths)
    keep: Callable[[Sequence[int]], S] | None = getattr(state, "keep", None)
    if keep is None:
        places = [row for row in range(count) if row not in gone]
        return state.select(torch.tensor(places, device=state.lengths.device)), places
    left = count - len(gone)
    behind = [row for row in range(left, count) if row not in gone]
    places = [behind.pop() if row in gone else row for row in range(left)]
    return keep(places), places


def context_length(model: LanguageModel[S]) -> int | None:
    """The most tokens, prompt and output together, that a row may hold; None if there is no such limit.

    It is `settings.max_len`, unless the model has a `context_length` of its own: an LSTM, which forgets instead of
    filling up, may say None.
    """
    limit: int | None = getattr(model, "context_length", model.settings.max_len)
    return limit
