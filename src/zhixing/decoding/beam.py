"""Beam search: the most probable continuations, as far as a beam of K hypotheses a prompt finds them.

    score(y) = sum_t log p(y_t | prompt, y_<t) / length(y) ** length_penalty

as in Hugging Face's generate; length counts the end-of-text token. (Wu et al. 2016, eq. 14, divide by
((5 + length) / 6) ** alpha.) Only the model's own log-probabilities enter.

At each step every hypothesis of a prompt is continued by every token, and the candidates are ranked by their sum. One
that ends, and ranks among the first K, is kept as a result; the K best that do not end go on. So an ended hypothesis
takes no place from the others.

The search for a prompt stops when no hypothesis can still enter its n best. That is exact: with s <= 0 the sum of the
best one at length t, no continuation up to length M scores above s / M ** length_penalty if the penalty is positive,
and above s / (t + 1) ** length_penalty if not. `early_stopping` stops at K results instead. A beam of one stops at its
first result: it is greedy search.

Shapes: G prompts, W hypotheses a prompt (1 at first, then K), V vocab_size, C candidates a prompt.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zhixing.decoding.filters import forbidden
from zhixing.decoding.generate import Alternatives, FinishReason, prefill, room_for, token_logprobs
from zhixing.decoding.protocol import LanguageModel, S
from zhixing.decoding.sampling import refuse_not_finite
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError


@dataclass(frozen=True)
class Hypothesis:
    """One result. The end-of-text token is counted in `score`, and is not in `ids`, `logprobs` and `top`."""

    ids: list[int]
    score: float
    finish_reason: FinishReason
    logprobs: list[float]
    top: list[Alternatives] | None


@dataclass(frozen=True, slots=True)
class _Node:
    """A hypothesis as its last token and the way to the one before."""

    parent: _Node | None
    id: int
    logprob: float
    top: Alternatives | None


@dataclass
class _Search:
    """The search for one prompt: its live hypotheses, best first, and its results by their ids."""

    place: int
    room: int  # the most tokens a result may have
    live: list[tuple[float, _Node | None]] = field(default_factory=lambda: [(0.0, None)])  # sum, way
    results: dict[tuple[int, ...], Hypothesis] = field(default_factory=dict)

    def keep(self, node: _Node, total: float, length: int, reason: FinishReason, settings: DecodingSettings) -> None:
        """Remember a result. Two that differ in the end-of-text id only are one: the better stays."""
        way: list[_Node] = []
        step: _Node | None = node
        while step is not None:
            way.append(step)
            step = step.parent
        way.reverse()
        if reason == "stop":
            way.pop()
        ids = [n.id for n in way]
        score: float = total / length**settings.length_penalty
        known = self.results.get(tuple(ids))
        if known is None or known.score < score:
            top = None if settings.logprobs is None else [n.top or [] for n in way]
            self.results[tuple(ids)] = Hypothesis(ids, score, reason, [n.logprob for n in way], top)

    def best(self, n: int) -> list[Hypothesis]:
        return heapq.nlargest(n, self.results.values(), key=lambda result: result.score)

    def done(self, length: int, settings: DecodingSettings) -> bool:
        """Can nothing that is still live enter the n best? `length` tokens are written."""
        if not self.live:
            return True
        if (settings.early_stopping or settings.num_beams == 1) and len(self.results) >= settings.num_beams:
            return True
        if len(self.results) < settings.n:
            return False
        reach = self.room if settings.length_penalty > 0 else length + 1
        bound: float = self.live[0][0] / reach**settings.length_penalty
        return bound <= self.best(settings.n)[-1].score


@torch.inference_mode()
def beam_search(
    model: LanguageModel[S],
    prompts: Sequence[Sequence[int]],
    settings: DecodingSettings,
    *,
    batch_size: int = 64,
    watch: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """The settings.n best results of each prompt, best first, all different.

    At most about `batch_size` hypotheses run at once. Fewer than n results come back only where the vocabulary and the
    room allow no more. `watch` is called after each step with the number of prompts that are done. Errors as in
    `generate_ids`.
    """
    settings.check()
    rooms = []
    for place, prompt in enumerate(prompts):
        try:
            rooms.append(room_for(model, list(prompt), settings))
        except InputError as error:
            where = f"prompt {place + 1} of {len(prompts)}" if len(prompts) > 1 else ""
            raise InputError(error.what, where=where, why=error.why, mend=error.mend) from None
    at_once = max(1, batch_size // settings.num_beams)
    training = model.training
    if training:
        model.train(False)
    try:
        results: list[list[Hypothesis]] = []
        for first in range(0, len(prompts), at_once):
            part = [list(prompt) for prompt in prompts[first : first + at_once]]
            told = None if watch is None else lambda done, before=first: watch(before + done)
            results += _search(model, part, rooms[first : first + at_once], settings, told)
        return results
    finally:
        if training:
            model.train(True)


def _search(
    model: LanguageModel[S],
    prompts: list[list[int]],
    rooms: list[int],
    settings: DecodingSettings,
    watch: Callable[[int], object] | None,
) -> list[list[Hypothesis]]:
    device = model.head().device
    state, hidden = prefill(model, prompts, max(len(p) + r for p, r in zip(prompts, rooms, strict=True)))
    searches = [_Search(place, room) for place, room in enumerate(rooms)]
    finished: dict[int, list[Hypothesis]] = {}
    length = 0
    while True:
        logits = model.logits(hidden)  # (G * W, V)
        if length == 0 and not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            refuse_not_finite()
        length += 1
        origins = _expand(searches, logits.log_softmax(dim=-1), length, settings)  # one list a search, W rows each
        going: list[int] = []
        for search, rows in zip(searches, origins, strict=True):
            if search.done(length, settings):
                finished[search.place] = search.best(settings.n)
            else:
                going += rows
        searches = [search for search in searches if search.place not in finished]
        if watch is not None:
            watch(len(finished))
        if not searches:
            return [finished[place] for place in range(len(prompts))]
        if going != list(range(len(state.lengths))):  # else every hypothesis went on in its place
            state = state.select(torch.tensor(going, device=device))
        newest = [_padded(search, settings.num_beams)[1] for search in searches]
        ids = torch.tensor([node.id for nodes in newest for node in nodes if node is not None], device=device)
        hidden = model.step(ids[:, None], torch.ones_like(ids), state)[:, 0]  # (G * W, D)


def _padded(search: _Search, width: int) -> tuple[list[float], list[_Node | None]]:
    """Sums and ways of `width` hypotheses; the places of missing ones hold copies of the last that cannot win."""
    missing = width - len(search.live)
    sums = [total for total, _ in search.live] + [float("-inf")] * missing
    ways = [way for _, way in search.live]
    return sums, ways + ways[-1:] * missing


def _expand(searches: list[_Search], logprobs: Tensor, length: int, settings: DecodingSettings) -> list[list[int]]:
    """Continue every hypothesis by one token: logprobs (G * W, V). Each search gets its results and new live ones.

    Returns, for each search, the K rows of the batch that its new live hypotheses continue (for missing ones, a copy).
    """
    eos = frozenset(settings.eos_ids or ())
    beams = settings.num_beams
    rows, vocab_size = logprobs.shape
    width = rows // len(searches)
    ranked = logprobs
    if length <= settings.min_new_tokens:
        ranked = forbidden(logprobs, range(rows), sorted(eos))
    # Of K (1 + ends) candidates at least K do not end; no row can hold more of them than that, or than V.
    wanted = beams * (1 + len(eos))
    best = ranked.topk(min(wanted, vocab_size), dim=-1)  # (G * W, C)
    per_row = best.values.shape[1]
    sums = [_padded(search, width)[0] for search in searches]
    totals = torch.tensor(sums, dtype=torch.float64, device=logprobs.device).view(rows, 1) + best.values
    candidates = totals.view(len(searches), -1).topk(min(wanted, width * per_row), dim=-1)  # (G, C)
    tops: list[Alternatives] | None = None
    if settings.logprobs is not None:
        tops = token_logprobs(logprobs, best.indices[:, :1], settings.logprobs)[1]
    ids, values = best.indices.tolist(), best.values.tolist()
    origins = []
    for place, (search, found, where) in enumerate(
        zip(searches, candidates.values.tolist(), candidates.indices.tolist(), strict=True)
    ):
        live: list[tuple[float, _Node | None]] = []
        came_from: list[int] = []
        for rank, (total, at) in enumerate(zip(found, where, strict=True)):
            if total == float("-inf"):
                break
            beam, column = divmod(at, per_row)
            row = place * width + beam
            top = None if tops is None else tops[row]
            node = _Node(search.live[beam][1], ids[row][column], values[row][column], top)
            ends = node.id in eos
            if ends or length == search.room:
                if rank < beams:
                    search.keep(node, total, length, "stop" if ends else "length", settings)
            elif len(live) < beams:
                live.append((total, node))
                came_from.append(row)
        search.live = live
        origins.append(came_from + came_from[-1:] * (beams - len(came_from)))
    return origins
