"""Writing token by token: greedy or sampled, for every model that keeps the protocol; rows of a batch come and go.

A `Decoder` holds the rows that are being written. Prompts of any lengths join it at any time: they are read in chunks,
once for all samples of a prompt, and their state is appended to that of the running rows. A row that has ended leaves
before the next step. What a row writes does not depend on the rows beside it, up to the rounding of sums in another
order (about 1e-6 in fp32); a GPT on a processor in fp32 writes with the same bits (models/gpt_packed.py).

Shapes: R live rows, P prompts, T tokens, D d_model, V vocab_size.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, Literal, NamedTuple

import torch
from torch import Tensor

from zhixing.decoding.filters import filtered, forbidden, forced, no_bad_words, no_repeats, repetition_penalty
from zhixing.decoding.protocol import LanguageModel, S, as_continuer, as_reader, context_length, leave
from zhixing.decoding.sampling import draw, most_probable, random_stream, refuse_not_finite, sample
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError

CHUNK = 64  # tokens of a prompt that is read alone: what one pass of models/gpt_packed.py takes
PREFILL_TOKENS = 4096  # of all prompts together that go through the model at once: bounds the memory of reading

FinishReason = Literal["stop", "length"]
Alternatives = list[tuple[int, float]]  # the most probable tokens and their log-probabilities, best first


class Token(NamedTuple):
    """One row wrote one token. An end-of-text id is the last token of its row and is reported too."""

    row: int
    id: int
    finish_reason: FinishReason | None  # of the row's last token
    logprob: float | None  # under the model itself: before temperature, filters and penalty
    top: Alternatives | None


class _Row:
    """What is known of one row beside its state."""

    __slots__ = ("choice", "eos", "finished", "ids", "number", "prompt", "room", "settings", "stream")

    def __init__(
        self, number: int, prompt: list[int], settings: DecodingSettings, room: int, stream: random.Random
    ) -> None:
        self.number, self.prompt, self.settings, self.room, self.stream = number, prompt, settings, room, stream
        self.eos = frozenset(settings.eos_ids or ())
        self.choice = _choice(settings)
        self.ids: list[int] = []  # written so far
        self.finished = False


def _choice(settings: DecodingSettings) -> DecodingSettings:
    """The settings with all else at its default that says nothing of how a token is chosen from the scores."""
    neutral = DecodingSettings()
    sampled = settings.temperature != 0
    return replace(
        settings,
        max_new_tokens=max(settings.min_new_tokens, len(settings.prefix_ids), 1),
        eos_ids=settings.eos_ids if settings.min_new_tokens else None,
        top_k=settings.top_k if sampled else neutral.top_k,
        top_p=settings.top_p if sampled else neutral.top_p,
        min_p=settings.min_p if sampled else neutral.min_p,
        stop=(),
        n=1,
        seed=None,
        logprobs=None,
    )


class _Part:
    """The rows whose tokens are chosen in the same way, and so as one."""

    def __init__(
        self, settings: DecodingSettings, rows: list[_Row], index: Tensor | None, seen: Tensor | None, reads: bool
    ) -> None:
        self.settings, self.rows = settings, rows
        self.index = index  # where they stand in the batch; None: they are all of it
        self.seen = seen  # (rows, V) bool, which tokens each holds; None: no penalty asks
        self.reads = reads  # the prompts are read apart, and are no beginning of what is written

    def early(self) -> list[int]:
        """The rows that may not end yet."""
        least = self.settings.min_new_tokens
        return [i for i, row in enumerate(self.rows) if len(row.ids) < least] if least else []

    def forced(self) -> dict[int, int]:
        """The rows whose next token is settled, by the beginning or the end they must have, and which it is."""
        settings = self.settings
        if not settings.beginning and settings.forced_eos_token_id is None:
            return {}
        ids = (settings.forced_id(len(row.ids) + 1, row.room) for row in self.rows)
        return {i: token for i, token in enumerate(ids) if token is not None}

    def histories(self) -> list[list[int]]:
        """What each row holds so far; a prompt that is read apart is no part of it."""
        return [row.ids if self.reads else row.prompt + row.ids for row in self.rows]

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row: logits (R, V) of the whole batch -> ids (rows,)."""
        settings = self.settings
        if self.index is not None:
            logits = logits[self.index]
        if self.seen is not None:
            logits = repetition_penalty(logits, self.seen, settings.repetition_penalty)
        if settings.bad_words_ids:
            logits = no_bad_words(logits, self.histories(), settings.bad_words_ids)
        if settings.min_new_tokens:
            logits = forbidden(logits, self.early(), settings.eos_ids or ())
        if settings.no_repeat_ngram_size:
            logits = no_repeats(logits, self.histories(), settings.no_repeat_ngram_size)
        if settled := self.forced():
            logits = forced(logits, list(settled), list(settled.values()))
        if settings.temperature == 0:
            ids = most_probable(logits)
        else:
            ids = sample(filtered(logits, settings), [draw(row.stream) for row in self.rows])
        if self.seen is not None:
            self.seen.scatter_(1, ids[:, None], True)
        return ids


class Decoder(Generic[S]):
    """The rows being written: `add` prompts, `step` while `busy`, `stop` a row early."""

    def __init__(self, model: LanguageModel[S]) -> None:
        self.model = model
        self._device = model.head().device
        self._waiting: list[list[_Row]] = []  # the samples of one prompt each
        self._read: list[tuple[list[_Row], S, Tensor]] = []  # of a prompt that was read elsewhere: state, hidden (1, D)
        self._rows: list[_Row] = []
        self._parts: list[_Part] = []
        self._state: S | None = None
        self._ids = torch.empty(0, 1, dtype=torch.int64)  # (R, 1), each row's newest token
        self._ones = torch.empty(0, dtype=torch.int64)  # (R,)
        self._n_top: int | None = None  # the most alternatives that a row asks for
        self._ended = False  # has some row ended since the last step
        self._next_row = 0

    @property
    def busy(self) -> bool:
        """Is there a row that has not ended?"""
        return self.live > 0

    @property
    def live(self) -> int:
        """How many rows have not ended, those that wait for their first step included."""
        return sum(not row.finished for row in (*self._rows, *self._joining()))

    def add(self, prompt: Sequence[int], settings: DecodingSettings) -> list[int]:
        """Rows for the settings.n samples of a prompt; they join at the next step. Their numbers, counted up from 0."""
        rows = self._rows_of(list(prompt), settings)
        self._waiting.append(rows)
        return [row.number for row in rows]

    def join(self, prompt: Sequence[int], settings: DecodingSettings, state: S, hidden: Tensor) -> list[int]:
        """The same for a prompt that has been read: the state, of one row, and hidden (1, D) of its last token."""
        rows = self._rows_of(list(prompt), settings)
        self._read.append((rows, state, hidden))
        return [row.number for row in rows]

    def fit(self, capacity: int) -> None:
        """Give back the room beyond `capacity` tokens a row, which only rows needed that have left."""
        if self._ended:
            self._leave()
        fit: Callable[[int], S] | None = getattr(self._state, "fit", None)
        if fit is not None:
            self._state = fit(capacity)

    def _joining(self) -> list[_Row]:
        """The rows that wait for their first step."""
        return [row for rows in (*self._waiting, *(rows for rows, _, _ in self._read)) for row in rows]

    def _rows_of(self, ids: list[int], settings: DecodingSettings) -> list[_Row]:
        settings.check()
        assert settings.num_beams == 1, "beam search is beam.py's"
        room = room_for(self.model, ids, settings)
        seed = secrets.randbits(64) if settings.seed is None else settings.seed
        rows = []
        for number in range(settings.n):
            stream = random_stream(seed, ids, number)
            rows.append(_Row(self._next_row, ids, settings, room, stream))
            self._next_row += 1
        return rows

    def stop(self, row: int) -> None:
        """End a row: it writes no further token. Nothing happens if it has ended already."""
        for candidate in (*self._rows, *self._joining()):
            if candidate.number == row and not candidate.finished:
                candidate.finished = self._ended = True

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Each live row writes one token; [] if there is none. Dropout is off meanwhile."""
        training = self.model.training
        if training:
            self.model.train(False)
        try:
            return self._step()
        finally:
            if training:
                self.model.train(True)

    def _step(self) -> list[Token]:
        if self._ended:
            self._leave()
        hidden = None
        if self._state is not None:
            hidden = self.model.step(self._ids, self._ones, self._state)[:, 0]  # (R, D)
        joining = bool(self._waiting or self._read)
        if joining:
            hidden = self._join(hidden)
        if hidden is None:
            return []
        if not joining and (ids := self._greedy(hidden)) is not None:
            self._ids = ids[:, None]
            return self._written(ids.tolist(), None)
        logits = self.model.logits(hidden)  # (R, V)
        if joining and not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            refuse_not_finite()
        if len(self._parts) == 1:
            ids = self._parts[0].choose(logits)
        else:
            ids = torch.empty(len(self._rows), dtype=torch.int64, device=self._device)
            for part in self._parts:
                ids[part.index] = part.choose(logits)
        self._ids = ids[:, None]
        return self._written(ids.tolist(), logits)

    def _greedy(self, hidden: Tensor) -> Tensor | None:
        """The next ids (R,) where nobody asks for more than the greatest score, and the model finds it faster alone."""
        find: Callable[[Tensor, tuple[int, ...]], Tensor | None] | None = getattr(self.model, "most_probable", None)
        if find is None or len(self._parts) != 1 or self._n_top is not None:
            return None
        part = self._parts[0]
        settings = part.settings
        if settings.temperature != 0 or part.seen is not None or settings.no_repeat_ngram_size:
            return None
        if settings.bad_words_ids or part.forced():
            return None
        early = part.early()
        if early and len(early) < len(part.rows):
            return None  # each row excludes other ids
        return find(hidden, tuple(settings.eos_ids or ()) if early else ())

    def _written(self, ids: list[int], logits: Tensor | None) -> list[Token]:
        scored = (
            None
            if self._n_top is None or logits is None
            else token_logprobs(logits.log_softmax(dim=-1), self._ids, self._n_top)
        )
        tokens = []
        for place, (row, token) in enumerate(zip(self._rows, ids, strict=True)):
            row.ids.append(token)
            reason: FinishReason | None = None
            if token in row.eos:
                reason = "stop"
            elif len(row.ids) >= row.room:
                reason = "length"
            if reason is not None:
                row.finished = self._ended = True
            wanted = row.settings.logprobs
            if scored is None or wanted is None:
                tokens.append(Token(row.number, token, reason, None, None))
            else:
                tokens.append(Token(row.number, token, reason, scored[0][place], scored[1][place][:wanted]))
        return tokens

    def _leave(self) -> None:
        """The rows that have ended leave."""
        self._ended = False
        self._waiting = [rows for group in self._waiting if (rows := [row for row in group if not row.finished])]
        self._read = [
            (rows, state, hidden)
            for group, state, hidden in self._read
            if (rows := [row for row in group if not row.finished])
        ]
        leaving = [place for place, row in enumerate(self._rows) if row.finished]
        if not leaving:
            return
        if len(leaving) == len(self._rows) or self._state is None:
            self._rows, self._state = [], None
        else:
            self._state, places = leave(self._state, leaving)
            self._rows = [self._rows[place] for place in places]
            self._ids = self._ids[torch.tensor(places, device=self._device)]
        self._regroup()

    def _join(self, hidden: Tensor | None) -> Tensor:
        """The waiting prompts become rows: hidden (R, D) of the running rows -> that of all."""
        all_hidden = [] if hidden is None else [hidden]
        for rows, state, last in self._arrivals():
            self._state = state if self._state is None else self._state.append(state)
            self._rows += rows
            all_hidden.append(last)
        self._regroup()
        return torch.cat(all_hidden) if len(all_hidden) > 1 else all_hidden[0]

    def _arrivals(self) -> Iterator[tuple[list[_Row], S, Tensor]]:
        """New rows, their state and hidden (rows, D): what has been read elsewhere, then what is read now."""
        while self._read:
            group, state, last = self._read.pop(0)
            yield group, *self._repeated(state, last, [len(group)])
        if self._waiting:
            groups, self._waiting = self._waiting, []
            capacity = max(len(rows[0].prompt) + rows[0].room for rows in groups)
            state, last = prefill(self.model, [rows[0].prompt for rows in groups], capacity)
            everyone = [row for rows in groups for row in rows]
            yield everyone, *self._repeated(state, last, [len(rows) for rows in groups])

    def _repeated(self, state: S, hidden: Tensor, times: list[int]) -> tuple[S, Tensor]:
        """Each row as many times as it has samples."""
        if max(times) == 1:
            return state, hidden
        index = torch.tensor([place for place, count in enumerate(times) for _ in range(count)], device=self._device)
        return state.select(index), hidden[index]

    def _regroup(self) -> None:
        """What depends on which rows there are."""
        self._ones = torch.ones(len(self._rows), dtype=torch.int64, device=self._device)
        self._n_top = max(
            (row.settings.logprobs for row in self._rows if row.settings.logprobs is not None), default=None
        )
        places: dict[DecodingSettings, list[int]] = {}
        for place, row in enumerate(self._rows):
            places.setdefault(row.choice, []).append(place)
        self._parts = []
        for settings, where in places.items():
            rows = [self._rows[place] for place in where]
            index = None if len(places) == 1 else torch.tensor(where, device=self._device)
            seen = None if settings.repetition_penalty == 1 else self._seen(rows)
            self._parts.append(_Part(settings, rows, index, seen, as_reader(self.model) is not None))

    def _seen(self, rows: list[_Row]) -> Tensor:
        seen = torch.zeros(len(rows), self.model.settings.vocab_size, dtype=torch.bool, device=self._device)
        for place, row in enumerate(rows):
            known = row.ids if as_reader(self.model) else row.prompt + row.ids
            seen[place, torch.tensor(known, dtype=torch.int64, device=self._device)] = True
        return seen


def room_for(model: LanguageModel[S], prompt: list[int], settings: DecodingSettings) -> int:
    """How many tokens may follow the prompt: max_new_tokens, or fewer where the context is full before.

    InputError for a prompt that is empty, holds an unknown id, or leaves no room for a single token or for the tokens
    that what is written must begin with.
    """
    context, reader = context_length(model), as_reader(model)
    vocab_size = model.settings.vocab_size
    if not prompt:
        raise InputError("the prompt holds no token", mend="start from the tokenizer's end-of-text id")
    read = vocab_size if reader is None else reader.source_vocab_size
    settled = [i for i in (settings.forced_bos_token_id, settings.forced_eos_token_id) if i is not None]
    for name, ids, size in (
        ("the prompt", prompt, read),
        ("eos_ids", settings.eos_ids, vocab_size),
        ("prefix_ids", settings.prefix_ids, vocab_size),
        ("bad_words_ids", [i for word in settings.bad_words_ids for i in word], vocab_size),
        ("forced_bos_token_id or forced_eos_token_id", settled, vocab_size),
    ):
        if ids and not (min(ids) >= 0 and max(ids) < size):
            wrong = next(i for i in ids if not 0 <= i < size)
            raise InputError(
                f"{name} has the id {wrong}, the model knows 0 to {size - 1}",
                why="the tokenizer and the model are not of the same run",
            )
    if reader is not None:
        if len(prompt) > reader.longest_source:
            raise InputError(
                f"the text has {len(prompt)} tokens, the model reads {reader.longest_source} at most",
                mend="split it into sentences",
            )
        left = None if context is None else context - 1
    else:
        left = None if context is None else context - len(prompt)
    if left is not None and left < 1:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, the model's context is {context}",
            why="prompt and new tokens together must fit into the context",
            mend=f"shorten the prompt to {(context or 0) - 1} tokens or fewer",
        )
    if left is not None and left < len(settings.beginning):
        raise InputError(
            f"what is written must begin with {len(settings.beginning)} tokens, and there is room for {left}",
            why=f"the model's context is {context}",
            mend="shorten prefix_ids, or the prompt" if reader is None else "shorten prefix_ids",
        )
    return settings.max_new_tokens if left is None else min(settings.max_new_tokens, left)


def prefill(
    model: LanguageModel[S], prompts: list[list[int]], capacity: int, budget: int = PREFILL_TOKENS
) -> tuple[S, Tensor]:
    """A state of P rows that have read their prompts, and the hidden state (P, D) of each one's last token.

    The prompts are read side by side, in chunks of about `budget` tokens in all, a single one in chunks of CHUNK;
    `capacity` is what a row will hold in the end, prompt and output.
    """
    if (reader := as_reader(model)) is not None:
        return reader.read_sources(prompts, capacity)
    device = model.head().device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (P,)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(device)
    rows = torch.arange(len(prompts), device=device)
    state = as_continuer(model).new_state(len(prompts), capacity)
    last: Tensor | None = None
    at_once = max(1, budget // len(prompts))
    for chunk in torch.split(ids, min(CHUNK, at_once) if len(prompts) == 1 else at_once, dim=1):  # (P, T)
        n_new = (lengths - state.lengths).clamp(max=chunk.shape[1])  # 0 where the prompt has ended
        hidden = model.step(chunk, n_new, state)[rows, (n_new - 1).clamp(min=0)]  # (P, D)
        last = hidden if last is None else torch.where((n_new > 0)[:, None], hidden, last)
    assert last is not None
    return state, last


def token_logprobs(logprobs: Tensor, ids: Tensor, n_top: int) -> tuple[list[float], list[Alternatives]]:
    """Of logprobs (R, V): those of ids (R, 1), and each row's n_top greatest with their ids."""
    chosen: list[float] = logprobs.gather(1, ids)[:, 0].tolist()
    if n_top == 0:
        return chosen, [[] for _ in chosen]
    values, places = logprobs.topk(min(n_top, logprobs.shape[-1]), dim=-1)  # (R, n_top)
    return chosen, [list(zip(*pair, strict=True)) for pair in zip(places.tolist(), values.tolist(), strict=True)]


def generate_ids(
    model: LanguageModel[S],
    prompts: Sequence[Sequence[int]],
    settings: DecodingSettings,
    *,
    batch_size: int = 64,
    ended: Callable[[int, int], bool] | None = None,
) -> Iterator[list[Token]]:
    """Each step's tokens. Row p * n + s is sample s of prompt p; n is settings.n.

    All prompts are checked before the first token is written. At most about `batch_size` rows run at once (the samples
    of one prompt stay together); further prompts join when half of them have ended. `ended(row, id)` is asked for each
    token but an end-of-text id; True ends the row there with the reason "stop".
    """
    settings.check()
    for place, prompt in enumerate(prompts):
        try:
            room_for(model, list(prompt), settings)
        except InputError as error:
            where = f"prompt {place + 1} of {len(prompts)}" if len(prompts) > 1 else ""
            raise InputError(error.what, where=where, why=error.why, mend=error.mend) from None
    return _run(Decoder(model), prompts, settings, batch_size, ended)


def _run(
    decoder: Decoder[S],
    prompts: Sequence[Sequence[int]],
    settings: DecodingSettings,
    batch_size: int,
    ended: Callable[[int, int], bool] | None,
) -> Iterator[list[Token]]:
    waiting, live = 0, 0
    while live or waiting < len(prompts):
        if live <= batch_size // 2:
            while waiting < len(prompts) and (live == 0 or live + settings.n <= batch_size):
                decoder.add(prompts[waiting], settings)
                waiting += 1
                live += settings.n
        tokens = decoder.step()
        for place, token in enumerate(tokens):
            if ended is not None and token.finish_reason != "stop" and ended(token.row, token.id):
                decoder.stop(token.row)
                token = tokens[place] = token._replace(finish_reason="stop")
            live -= token.finish_reason is not None
        yield tokens
