"""One text from another: translations and summaries, by any model that reads its prompts apart.

A text that a model translates is cut into lines and these into sentences, which is what it learnt from; they are
written side by side and put together again as they stood. How many tokens a sentence's translation may take follows
from its own length, so what is written for a text never depends on the texts beside it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol, cast

import torch
from torch import Tensor

from zhixing.decoding.protocol import LanguageModel, S, as_reader
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.tasks.generation import Completion, generate, source_ids
from zhixing.text.sentences import split_sentences
from zhixing.tokens.tokenizer import Tokenizer

OnTooLong = Literal["error", "split", "truncate"]

ROOM_CELL = 16  # tokens: sources of the same cell may write as much
COVERED_AT_ONCE = 64  # hypotheses that are looked at together
# Languages whose sentences stand without a space between
NO_SPACES = frozenset(
    {"zh", "zho", "chi", "cmn", "yue", "ja", "jpn", "th", "tha", "lo", "lao", "km", "khm", "my", "mya"}
)


@dataclass(frozen=True)
class Written:
    """What a model wrote for a text. `alternatives`: the n best of a single sentence, best first, with their scores.

    score: the mean log-probability of the best one's tokens (sum / length ** length_penalty), with a coverage penalty
    what that adds too; of several sentences the mean of theirs; None for a text that is only blank, and where nothing
    was searched (one beam). Alternatives that were sampled have the mean log-probability of their tokens without the
    end. No text is among the alternatives twice.
    """

    source: str
    text: str
    score: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Asked:
    """Sources of which texts are to be written, all by the same settings (`room_of` says how long each may be)."""

    sources: list[str]
    settings: DecodingSettings


# What `translation` and `summary` ask for, round by round; they are sent what was written, and return the answers and
# how many texts were too long. Whoever drives them writes as they like: `write_each`, or a server's engine.
Rounds = Generator[Asked, list[list[Completion]], tuple[list[Written], int]]


class Attentive(Protocol):
    """A model that tells how much each token that is written takes from each that is read."""

    def attention_weights(self, ids: Tensor, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
        """(B, T, S), rows sum to 1."""
        ...

    def head(self) -> Tensor: ...


def fit_sources(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, on_too_long: OnTooLong
) -> tuple[list[list[str]], int]:
    """The pieces of each text that a model of `longest` tokens can read, and how many texts were too long.

    InputError for a longer text where on_too_long is "error".
    """
    room = longest - len(tokenizer.with_ends([]))
    pieces: list[list[str]] = []
    too_long = 0
    for number, (text, ids) in enumerate(zip(texts, tokenizer.encode_batch(texts), strict=True), 1):
        if len(ids) <= room:
            pieces.append([text])
            continue
        if on_too_long == "error":
            raise InputError(
                f"a text has {len(ids):,} tokens, the model reads {room:,} at most",
                where=f"text {number}",
                mend='shorten it, or set task.on_too_long = "split" or "truncate"',
            )
        too_long += 1
        if on_too_long == "truncate":
            _, spans = tokenizer.encode_with_spans(text[: 64 * room])
            before = tokenizer.with_ends([-1]).index(-1)  # a language's tag, perhaps
            spans = spans[before : before + len(spans) - len(tokenizer.with_ends([]))]
            text = text[: spans[:room][-1][1]]
        cut = _halves(tokenizer, text, room)
        pieces.append(cut if on_too_long == "split" else cut[:1])
    return pieces, too_long


def _halves(tokenizer: Tokenizer, text: str, room: int) -> list[str]:
    """Pieces of at most `room` tokens: halves, and halves of these, cut at the last blank before the middle."""
    text = text.strip()
    if len(text) < 2 or len(tokenizer.encode(text)) <= room:
        return [text] if text else []
    middle = len(text) // 2
    blank = text.rfind(" ", middle // 2, middle + 1)
    middle = blank if blank > 0 else middle
    return _halves(tokenizer, text[:middle], room) + _halves(tokenizer, text[middle:], room)


def write_each(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    sources: Sequence[str],
    settings: DecodingSettings,
    *,
    coverage_penalty: float = 0.0,
) -> list[list[Completion]]:
    """The settings.n texts that a model writes for each source, best first. settings.max_new_tokens is the most.

    Sources of like lengths are written together. A coverage penalty chooses among the hypotheses that are finished, by
    `covering`. Samples, if several, come in the order of their mean log-probability. InputError as in `generate`.
    """
    assert as_reader(model) is not None, "the model does not read its prompts apart"
    settings.check()
    _check_coverage(coverage_penalty, settings)
    sampled = settings.temperature > 0 and settings.n > 1
    asked = dataclasses.replace(
        settings,
        n=settings.num_beams if coverage_penalty else settings.n,
        logprobs=0 if sampled else settings.logprobs,
    )
    rooms: dict[int, list[int]] = {}
    for number, ids in enumerate(tokenizer.encode_batch(sources)):
        rooms.setdefault(room_of(len(ids), settings), []).append(number)
    found: list[list[Completion]] = [[] for _ in sources]
    for room, numbers in sorted(rooms.items()):
        limited = with_room(asked, room)
        numbers.sort(key=lambda number: len(sources[number]))
        texts = [sources[number] for number in numbers]
        written = generate(model, tokenizer, texts, limited)
        if coverage_penalty:
            written = covering(model, source_ids(tokenizer, texts), written, coverage_penalty)
        if sampled:
            written = [best_first(completions) for completions in written]
        for number, completions in zip(numbers, written, strict=True):
            found[number] = completions[: settings.n]
    return found


def room_of(tokens: int, settings: DecodingSettings) -> int:
    """How many tokens may be written for a source of so many."""
    cell = -(-max(1, tokens) // ROOM_CELL) * ROOM_CELL
    return min(settings.max_new_tokens, 2 * cell + ROOM_CELL + len(settings.prefix_ids))


def with_room(settings: DecodingSettings, room: int) -> DecodingSettings:
    """The settings for sources of which at most `room` tokens may be written."""
    return dataclasses.replace(settings, max_new_tokens=room, min_new_tokens=min(settings.min_new_tokens, room))


def best_first(samples: Sequence[Completion]) -> list[Completion]:
    """Samples of a source in the order of their mean log-probability, which becomes their score."""
    return sorted(map(_scored, samples), key=_rank)


def _scored(sample: Completion) -> Completion:
    """With the mean log-probability of its tokens for a score, if it has any."""
    logprobs = sample.logprobs
    return dataclasses.replace(sample, score=sum(logprobs) / len(logprobs) if logprobs else None)


def _rank(completion: Completion) -> float:
    """The smaller, the better; an empty sample is the worst."""
    return math.inf if completion.score is None else -completion.score


def coverage(weights: Tensor, lengths: Tensor, source_lengths: Tensor) -> Tensor:
    """sum_i log(min(sum_t a_ti, 1)) of each hypothesis (B,): 0 if every token of its source was read whole.

    weights (B, T, S): what each of the lengths (B,) tokens written took from each of the source_lengths (B,) tokens
    read (Wu et al. 2016, eq. 14). For example a = ((1, 0), (0.5, 0.5)): log 1 + log 0.5.
    """
    _, count, width = weights.shape
    written = torch.arange(count, device=weights.device) < lengths[:, None]  # (B, T)
    read = torch.arange(width, device=weights.device) < source_lengths[:, None]  # (B, S)
    sums = (weights.double() * written[:, :, None]).sum(dim=1)  # (B, S)
    least = torch.finfo(torch.float32).tiny  # a token that nothing was taken from is no infinity
    return torch.where(read, sums.clamp(least, 1).log(), 0.0).sum(dim=1)


@torch.inference_mode()
def covering(
    model: LanguageModel[S], sources: Sequence[Sequence[int]], written: Sequence[list[Completion]], penalty: float
) -> list[list[Completion]]:
    """The hypotheses of each source ordered by score + penalty * coverage, which becomes their score.

    It reorders hypotheses that are finished, after one pass of the model over all of them, and does not steer the
    search as Wu et al. do: what was cut away cannot come back. The end of a text that was written counts as a token.
    """
    attentive, device = cast(Attentive, model), model.head().device
    start_id: int = model.settings.start_id  # type: ignore[attr-defined]  # of every model that reads a source
    pairs = [(place, completion) for place, completions in enumerate(written) for completion in completions]
    scored: list[list[Completion]] = [[] for _ in written]
    for first in range(0, len(pairs), COVERED_AT_ONCE):
        part = pairs[first : first + COVERED_AT_ONCE]
        rows = [[start_id, *(c.ids if c.finish_reason == "stop" else c.ids[:-1])] for _, c in part]
        ids, lengths = _padded(rows, device)
        read, source_lengths = _padded([sources[place] for place, _ in part], device)
        weights = attentive.attention_weights(ids, read, source_lengths)  # (B, T, S)
        for (place, completion), sum_of_logs in zip(
            part, coverage(weights, lengths, source_lengths).tolist(), strict=True
        ):
            assert completion.score is not None, "only what was searched has a score"
            score = completion.score + penalty * sum_of_logs
            scored[place].append(dataclasses.replace(completion, score=score))
    return [sorted(completions, key=_rank) for completions in scored]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows as one tensor (B, T), right-padded with 0, and their lengths (B,)."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


def _check_coverage(penalty: float, settings: DecodingSettings) -> None:
    def refuse(why: str, mend: str) -> NoReturn:
        raise InputError(f"coverage_penalty = {penalty!r} cannot be used", why=why, mend=mend)

    if type(penalty) not in (int, float) or not (math.isfinite(penalty) and penalty >= 0):
        refuse("it takes a finite number that is not below 0", "0 changes nothing, 0.2 is what Wu et al. 2016 take")
    if penalty and settings.num_beams == 1:
        refuse("with one beam there is nothing to choose from", "set num_beams, for example 4")


def translate(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: DecodingSettings,
    *,
    target_language: str = "",
    on_too_long: OnTooLong = "split",
    coverage_penalty: float = 0.0,
) -> tuple[list[Written], int]:
    """Each text in the other language, its lines kept; and how many sentences were longer than the model reads.

    A model of several languages is told by a tokenizer `for_language` what to write: then each sentence begins with the
    tag. What is written for a text's first sentence begins with settings.prefix_ids, the others are free.
    """
    rounds = translation(
        tokenizer, texts, settings, longest=_longest(model), target_language=target_language, on_too_long=on_too_long
    )
    return _driven(rounds, lambda asked: write_each(
        model, tokenizer, asked.sources, asked.settings, coverage_penalty=coverage_penalty
    ))  # fmt: skip


def translation(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: DecodingSettings,
    *,
    longest: int,
    target_language: str = "",
    on_too_long: OnTooLong = "split",
) -> Rounds:
    """`translate` without the writing, for a model that reads `longest` tokens."""
    joint = "" if re.split("[-_]", target_language.lower())[0] in NO_SPACES else " "
    pieces: list[str] = []
    shapes: list[list[list[int]]] = []  # of each text its lines, of each line its pieces
    too_long = 0
    for text in texts:
        lines = []
        for line in text.split("\n"):
            sentences = [s for s in split_sentences(line) if s.strip()] if line.strip() else []
            fitted, longer = fit_sources(tokenizer, sentences, longest, on_too_long)
            too_long += longer
            new = [piece for parts in fitted for piece in parts]
            lines.append(list(range(len(pieces), len(pieces) + len(new))))
            pieces += [" ".join(piece.split()) for piece in new]
        shapes.append(lines)
    numbers = [[number for line in lines for number in line] for lines in shapes]  # of each text its pieces
    begun = {of_text[0] for of_text in numbers if of_text} if settings.prefix_ids else set()
    written: list[list[Completion]] = [[] for _ in pieces]
    for places, how in (
        ([n for n in range(len(pieces)) if n not in begun], dataclasses.replace(settings, prefix_ids=())),
        (sorted(begun), settings),
    ):
        some = yield Asked([pieces[n] for n in places], how)
        for n, completions in zip(places, some, strict=True):
            written[n] = completions
    answers = []
    for text, lines, used in zip(texts, shapes, numbers, strict=True):
        scores = [score for n in used if (score := written[n][0].score) is not None]
        alternatives = _alternatives(written[used[0]]) if len(used) == 1 and settings.n > 1 else ()
        whole = "\n".join(joint.join(written[n][0].text.strip() for n in line) for line in lines)
        answers.append(Written(text, whole, sum(scores) / len(scores) if scores else None, alternatives))
    return answers, too_long


def summarize(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: DecodingSettings,
    *,
    on_too_long: OnTooLong = "split",
    coverage_penalty: float = 0.0,
) -> tuple[list[Written], int]:
    """A summary of each text; one that is too long is summarised in parts, and the parts' summaries then as a whole.

    settings.prefix_ids begin the summary of the whole, not those of parts.
    """
    rounds = summary(tokenizer, texts, settings, longest=_longest(model), on_too_long=on_too_long)
    return _driven(rounds, lambda asked: write_each(
        model, tokenizer, asked.sources, asked.settings, coverage_penalty=coverage_penalty
    ))  # fmt: skip


def summary(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: DecodingSettings,
    *,
    longest: int,
    on_too_long: OnTooLong = "split",
) -> Rounds:
    """`summarize` without the writing, for a model that reads `longest` tokens."""
    flat = [" ".join(text.split()) for text in texts]
    fitted, too_long = fit_sources(tokenizer, flat, longest, on_too_long)
    for text, parts in zip(texts, fitted, strict=True):
        if not text.strip() or not parts:
            raise InputError("there is no text to summarise", mend="give a text with a word in it")
    several = [number for number, parts in enumerate(fitted) if len(parts) > 1]
    if several:
        pieces = [piece for number in several for piece in fitted[number]]
        of_parts = dataclasses.replace(settings, n=1, prefix_ids=())
        short = iter((yield Asked(pieces, of_parts)))
        for number in several:
            joined = " ".join(next(short)[0].text.strip() for _ in fitted[number])
            again, _ = fit_sources(tokenizer, [joined], longest, "truncate")
            fitted[number] = again[0]
    sources = [parts[0] for parts in fitted]
    written = yield Asked(sources, settings)
    answers = []
    for text, completions in zip(texts, written, strict=True):
        alternatives = _alternatives(completions) if settings.n > 1 else ()
        answers.append(Written(text, completions[0].text.strip(), completions[0].score, alternatives))
    return answers, too_long


def _driven(rounds: Rounds, write: Callable[[Asked], list[list[Completion]]]) -> tuple[list[Written], int]:
    """Write whatever the rounds ask for, to their end."""
    try:
        asked = next(rounds)
        while True:
            asked = rounds.send(write(asked))
    except StopIteration as end:
        answers: tuple[list[Written], int] = end.value
        return answers


def _alternatives(completions: Sequence[Completion]) -> tuple[tuple[str, float], ...]:
    """Texts and scores, best first; of those that say the same in other tokens the best, and no empty sample."""
    best: dict[str, float] = {}
    for completion in completions:
        if completion.score is not None:
            best.setdefault(completion.text.strip(), completion.score)
    return tuple(best.items())


def _longest(model: LanguageModel[S]) -> int:
    reader = as_reader(model)
    assert reader is not None, "the model does not read its prompts apart"
    return reader.longest_source
