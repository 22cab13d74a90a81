"""Beam search: the most probable continuations, as far as a beam of K hypotheses a prompt finds them.

    score(y) = sum_t log p(y_t | prompt, y_<t) / length(y) ** length_penalty

as in Hugging Face's generate; length counts the end-of-text token. (Wu et al. 2016, eq. 14, divide by
((5 + length) / 6) ** alpha.) Only the model's own log-probabilities enter, of what may be written: bad words are left
out before softmax, as renormalize_logits has it in OPUS-MT's generation_config.json.

At each step every hypothesis of a prompt is continued by every token, and the candidates are ranked by their sum. One
that ends, and ranks among the first K, is kept as a result; the K best that do not end go on. So an ended hypothesis
takes no place from the others.

The search for a prompt stops when no hypothesis can still enter its n best. That is exact: with s <= 0 the sum of the
best one at length t, no continuation up to length M scores above s / M ** length_penalty if the penalty is positive,
and above s / (t + 1) ** length_penalty if not. `early_stopping` stops at K results instead. A beam of one stops at its
first result: it is greedy search.

Diverse beams (Vijayakumar et al. 2018) are groups of K / groups hypotheses, each a search of its own that keeps as many
results. At each step the groups choose one after another, and a later one ranks by

    score(y) - diversity_penalty * how many hypotheses of the groups before chose the same token at this step

which is their Hamming diversity: only the choice of this step counts, and no sum carries a penalty on (in Hugging
Face's it does). So the sums of a group, and the scores of what comes back, stay the model's.

Shapes: G searches (one a prompt and group), W hypotheses a search (1 at first, then K), V vocab_size, C candidates a
search.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zhixing.decoding.filters import forbidden, forced, no_bad_words, no_repeats
from zhixing.decoding.generate import Alternatives, FinishReason, prefill, room_for, token_logprobs
from zhixing.decoding.protocol import LanguageModel, S, as_reader, rearrange
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


def _way(node: _Node | None) -> list[_Node]:
    """From the first token to this one; nothing for none."""
    way: list[_Node] = []
    while node is not None:
        way.append(node)
        node = node.parent
    way.reverse()
    return way


@dataclass
class _Search:
    """The search of one group for one prompt: its live hypotheses, best first, and its results by their ids."""

    place: int
    group: int
    room: int  # the most tokens a result may have
    before: list[int]  # what each hypothesis continues; empty where the prompt is read apart
    earlier: list[_Search] = field(default_factory=list)  # the groups before, whose results are not kept again
    chosen: list[int] = field(default_factory=list)  # the tokens of this step, ends left out
    live: list[tuple[float, _Node | None]] = field(default_factory=lambda: [(0.0, None)])  # sum, way
    results: dict[tuple[int, ...], Hypothesis] = field(default_factory=dict)

    def keep(self, node: _Node, total: float, length: int, reason: FinishReason, settings: DecodingSettings) -> bool:
        """Remember a result; False if a group before has it. Two that differ in the end-of-text id only are one: the
        better stays."""
        way = _way(node)
        if reason == "stop":
            way.pop()
        ids = [n.id for n in way]
        if any(tuple(ids) in search.results for search in self.earlier):
            return False
        score: float = total / length**settings.length_penalty
        known = self.results.get(tuple(ids))
        if known is None or known.score < score:
            top = None if settings.logprobs is None else [n.top or [] for n in way]
            self.results[tuple(ids)] = Hypothesis(ids, score, reason, [n.logprob for n in way], top)
        return True

    def best(self, n: int) -> list[Hypothesis]:
        return heapq.nlargest(n, self.results.values(), key=lambda result: result.score)

    def done(self, length: int, settings: DecodingSettings) -> bool:
        """Can nothing that is still live enter the n best? `length` tokens are written."""
        if not self.live:
            return True
        if (settings.early_stopping or settings.num_beams == 1) and len(self.results) >= settings.group_size:
            return True
        wanted = min(settings.n, settings.group_size)
        if len(self.results) < wanted:
            return False
        reach = self.room if settings.length_penalty > 0 else length + 1
        bound: float = max(self.live, key=lambda pair: pair[0])[0] / reach**settings.length_penalty
        return bound <= self.best(wanted)[-1].score


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
    reads, groups = as_reader(model) is not None, range(settings.num_beam_groups)
    everything: list[list[_Search]] = []
    for place, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
        everything.append([])
        for group in groups:
            everything[-1].append(_Search(place, group, room, [] if reads else prompt, everything[-1][:]))
    searches = [search for of_prompt in everything for search in of_prompt]
    if len(groups) > 1:
        rows = torch.tensor([search.place for search in searches], device=device)
        state, hidden = state.select(rows), hidden[rows]
    never = [word[0] for word in settings.bad_words_ids if len(word) == 1]
    longer = [word for word in settings.bad_words_ids if len(word) > 1]
    length = 0
    while True:
        logits = model.logits(hidden)  # (G * W, V)
        if length == 0 and not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            refuse_not_finite()
        if never:
            logits[:, never] = float("-inf")  # in place: nobody else sees them
        if longer:
            logits = no_bad_words(logits, _pasts(searches, len(logits)), longer)
        length += 1
        origins = _choose(searches, logits.log_softmax(dim=-1), length, settings)  # one list a search, W rows each
        going: list[int] = []
        still: list[_Search] = []
        for search, rows_of in zip(searches, origins, strict=True):
            if not search.done(length, settings):
                still.append(search)
                going += rows_of
        searches = still
        if watch is not None:
            watch(len(prompts) - len({search.place for search in searches}))
        if not searches:
            return [_best_of_groups(of_prompt, settings) for of_prompt in everything]
        if going != list(range(len(state.lengths))):  # else every hypothesis went on in its place
            state = rearrange(state, torch.tensor(going, device=device))
        newest = [_padded(search, settings.group_size)[1] for search in searches]
        ids = torch.tensor([node.id for nodes in newest for node in nodes if node is not None], device=device)
        hidden = model.step(ids[:, None], torch.ones_like(ids), state)[:, 0]  # (G * W, D)


def _best_of_groups(groups: list[_Search], settings: DecodingSettings) -> list[Hypothesis]:
    """The n best of what the groups of a prompt keep, the best ones of each; where they are too few, of all results."""
    size, n = settings.group_size, settings.n
    found = [search.best(len(search.results)) for search in groups]
    kept = [h for best in found for h in best[:size]]
    spare = [h for best in found for h in best[size:]]
    kept += heapq.nlargest(n - len(kept), spare, key=lambda result: result.score)
    if not kept:
        raise InputError("nothing can be written", why="every token is excluded", mend="lower min_new_tokens")
    return heapq.nlargest(n, kept, key=lambda result: result.score)


def _padded(search: _Search, width: int) -> tuple[list[float], list[_Node | None]]:
    """Sums and ways of `width` hypotheses; the places of missing ones hold copies of the last that cannot win."""
    missing = width - len(search.live)
    sums = [total for total, _ in search.live] + [float("-inf")] * missing
    ways = [way for _, way in search.live]
    return sums, ways + ways[-1:] * missing


def _pasts(searches: list[_Search], rows: int) -> list[list[int]]:
    """The tokens of each of the `rows` hypotheses, its prompt's before them where it goes on from one."""
    width = rows // len(searches)
    return [search.before + [n.id for n in _way(way)] for search in searches for way in _padded(search, width)[1]]


def _choose(searches: list[_Search], logprobs: Tensor, length: int, settings: DecodingSettings) -> list[list[int]]:
    """`_expand` for all searches: at once, or with groups one group of every prompt after another."""
    ranked = _allowed(searches, logprobs, length, settings)
    if settings.num_beam_groups == 1:
        return _expand(searches, logprobs, ranked, length, settings)
    width = len(logprobs) // len(searches)
    chosen = {search.place: Counter[int]() for search in searches}  # of each prompt, by the groups before
    origins: list[list[int]] = [[] for _ in searches]
    for group in range(settings.num_beam_groups):
        members = [number for number, search in enumerate(searches) if search.group == group]
        if not members:
            continue
        rows = [number * width + beam for number in members for beam in range(width)]
        known = [chosen[searches[row // width].place] for row in rows]
        shunned = _shunned(ranked[rows], known, settings.diversity_penalty)
        found = _expand([searches[number] for number in members], logprobs[rows], shunned, length, settings)
        for number, came_from in zip(members, found, strict=True):
            origins[number] = [rows[at] for at in came_from]
            chosen[searches[number].place].update(searches[number].chosen)
    return origins


def _shunned(ranked: Tensor, chosen: list[Counter[int]], penalty: float) -> Tensor:
    """ranked (R, V) less the penalty for each time that others chose a token; chosen: for each row, how often."""
    places = [(row, token, times) for row, counts in enumerate(chosen) for token, times in counts.items()]
    if not places:
        return ranked
    rows, tokens, times = torch.tensor(places, device=ranked.device).unbind(1)
    return ranked.index_put((rows, tokens), -penalty * times.to(ranked.dtype), accumulate=True)


def _allowed(searches: list[_Search], logprobs: Tensor, length: int, settings: DecodingSettings) -> Tensor:
    """logprobs (G * W, V) with -inf for what may not be written; where one token is forced 0 for that."""
    rows = range(len(logprobs))
    ranked = logprobs
    if length <= settings.min_new_tokens:
        ranked = forbidden(ranked, rows, sorted(set(settings.eos_ids or ())))
    if settings.no_repeat_ngram_size:
        ranked = no_repeats(ranked, _pasts(searches, len(rows)), settings.no_repeat_ngram_size)
    width = len(rows) // len(searches)
    ids = [settings.forced_id(length, search.room) for search in searches for _ in range(width)]
    if places := {row: i for row, i in enumerate(ids) if i is not None}:
        ranked = forced(ranked, list(places), list(places.values()))
    return ranked


def _expand(
    searches: list[_Search], logprobs: Tensor, ranked: Tensor, length: int, settings: DecodingSettings
) -> list[list[int]]:
    """Continue every hypothesis by one token: logprobs (G * W, V). Each search gets its results and new live ones.

    The candidates are ranked by the hypotheses' sums and `ranked` (G * W, V), the log-probabilities but for what is
    forbidden, forced or shunned. Returns, for each search, the K rows of the batch that its new live hypotheses
    continue (for missing ones, a copy).
    """
    eos = frozenset(settings.eos_ids or ())
    beams = settings.group_size
    rows, vocab_size = logprobs.shape
    width = rows // len(searches)
    # Of K (1 + ends) candidates at least K do not end; no row can hold more of them than that, or than V.
    wanted = beams * (1 + len(eos))
    best = ranked.topk(min(wanted, vocab_size), dim=-1)  # (G * W, C)
    per_row = best.values.shape[1]
    sums = [_padded(search, width)[0] for search in searches]
    totals = torch.tensor(sums, dtype=torch.float64, device=logprobs.device).view(rows, 1) + best.values
    candidates = totals.view(len(searches), -1).topk(min(wanted, width * per_row), dim=-1)  # (G, C)
    # What was added to the ranking is no part of a sum
    values = (best.values if ranked is logprobs else logprobs.gather(1, best.indices)).tolist()
    ids = best.indices.tolist()
    tops: list[Alternatives] | None = None
    if settings.logprobs is not None:
        tops = token_logprobs(logprobs, best.indices[:, :1], settings.logprobs)[1]
    origins = []
    for place, (search, found, where) in enumerate(
        zip(searches, candidates.values.tolist(), candidates.indices.tolist(), strict=True)
    ):
        live: list[tuple[float, _Node | None]] = []
        came_from: list[int] = []
        search.chosen = []
        free = settings.costs_nothing(length, search.room)
        rank = 0
        for ranking, at in zip(found, where, strict=True):
            if ranking == float("-inf"):
                break
            beam, column = divmod(at, per_row)
            row = place * width + beam
            value = 0.0 if free else values[row][column]
            total = search.live[beam][0] + value
            top = None if tops is None else tops[row]
            node = _Node(search.live[beam][1], ids[row][column], value, top)
            ends = node.id in eos
            if ends or length == search.room:
                if rank < beams:
                    if not search.keep(node, total, length, "stop" if ends else "length", settings):
                        continue  # the next takes its rank
                    search.chosen += [] if ends else [node.id]
            elif len(live) < beams:
                live.append((total, node))
                came_from.append(row)
                search.chosen.append(node.id)
            rank += 1
        search.live = live
        origins.append(came_from + came_from[-1:] * (beams - len(came_from)))
    return origins
