"""One text from another: translations and summaries, by any model that reads its prompts apart.

A text that a model translates is cut into lines and these into sentences, which is what it learnt from; they are
written side by side and put together again as they stood. How many tokens a sentence's translation may take follows
from its own length, so what is written for a text never depends on the texts beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zhixing.decoding.protocol import LanguageModel, S, as_reader
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.tasks.generation import Completion, generate
from zhixing.text.sentences import split_sentences
from zhixing.tokens.tokenizer import Tokenizer

OnTooLong = Literal["error", "split", "truncate"]

ROOM_CELL = 16  # tokens: sources of the same cell may write as much
NO_SPACES = ("zh", "ja", "th", "lo", "km", "my")  # languages whose sentences stand without a space between


@dataclass(frozen=True)
class Written:
    """What a model wrote for a text. `alternatives`: the n best of a single sentence, best first, with their scores.

    score: the mean log-probability of the best one's tokens (sum / length ** length_penalty); of several sentences the
    mean of theirs; None for a text that is only blank, and where nothing was searched (one beam).
    """

    source: str
    text: str
    score: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()


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
            text = text[: spans[min(room, len(spans)) - 1][1]]
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
    model: LanguageModel[S], tokenizer: Tokenizer, sources: Sequence[str], settings: DecodingSettings
) -> list[list[Completion]]:
    """The settings.n texts that a model writes for each source, best first. settings.max_new_tokens is the most.

    Sources of like lengths are written together. InputError as in `generate`.
    """
    reader = as_reader(model)
    assert reader is not None
    rooms: dict[int, list[int]] = {}
    for number, ids in enumerate(tokenizer.encode_batch(sources)):
        cell = -(-max(1, len(ids)) // ROOM_CELL) * ROOM_CELL
        rooms.setdefault(min(settings.max_new_tokens, 2 * cell + ROOM_CELL), []).append(number)
    found: list[list[Completion]] = [[] for _ in sources]
    for room, numbers in sorted(rooms.items()):
        limited = dataclasses.replace(settings, max_new_tokens=room, min_new_tokens=min(settings.min_new_tokens, room))
        numbers.sort(key=lambda number: len(sources[number]))
        written = generate(model, tokenizer, [sources[number] for number in numbers], limited)
        for number, completions in zip(numbers, written, strict=True):
            found[number] = completions
    return found


def translate(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: DecodingSettings,
    *,
    target_language: str = "",
    on_too_long: OnTooLong = "split",
) -> tuple[list[Written], int]:
    """Each text in the other language, its lines kept; and how many sentences were longer than the model reads."""
    joint = "" if target_language.lower().split("-")[0] in NO_SPACES else " "
    pieces: list[str] = []
    shapes: list[list[list[int]]] = []  # of each text its lines, of each line its pieces
    too_long = 0
    for text in texts:
        lines = []
        for line in text.split("\n"):
            sentences = [s for s in split_sentences(line) if s.strip()] if line.strip() else []
            fitted, longer = fit_sources(tokenizer, sentences, _longest(model), on_too_long)
            too_long += longer
            new = [piece for parts in fitted for piece in parts]
            lines.append(list(range(len(pieces), len(pieces) + len(new))))
            pieces += [" ".join(piece.split()) for piece in new]
        shapes.append(lines)
    written = write_each(model, tokenizer, pieces, settings) if pieces else []
    answers = []
    for text, lines in zip(texts, shapes, strict=True):
        used = [number for line in lines for number in line]
        best = [written[number][0] for number in used]
        scores = [completion.score for completion in best if completion.score is not None]
        alternatives: Any = ()
        if len(used) == 1 and settings.n > 1:
            alternatives = tuple((c.text.strip(), c.score if c.score is not None else 0.0) for c in written[used[0]])
        whole = "\n".join(joint.join(written[number][0].text.strip() for number in line) for line in lines)
        answers.append(Written(text, whole, sum(scores) / len(scores) if scores else None, alternatives))
    return answers, too_long


def summarize(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: DecodingSettings,
    *,
    on_too_long: OnTooLong = "split",
) -> tuple[list[Written], int]:
    """A summary of each text; one that is too long is summarised in parts, and the parts' summaries then as a whole."""
    flat = [" ".join(text.split()) for text in texts]
    fitted, too_long = fit_sources(tokenizer, flat, _longest(model), on_too_long)
    for text, parts in zip(texts, fitted, strict=True):
        if not text.strip() or not parts:
            raise InputError("there is no text to summarise", mend="give a text with a word in it")
    several = [number for number, parts in enumerate(fitted) if len(parts) > 1]
    if several:
        pieces = [piece for number in several for piece in fitted[number]]
        short = iter(write_each(model, tokenizer, pieces, dataclasses.replace(settings, n=1)))
        for number in several:
            joined = " ".join(next(short)[0].text.strip() for _ in fitted[number])
            again, _ = fit_sources(tokenizer, [joined], _longest(model), "truncate")
            fitted[number] = again[0]
    written = write_each(model, tokenizer, [parts[0] for parts in fitted], settings)
    answers = []
    for text, completions in zip(texts, written, strict=True):
        alternatives: Any = ()
        if settings.n > 1:
            alternatives = tuple((c.text.strip(), c.score if c.score is not None else 0.0) for c in completions)
        answers.append(Written(text, completions[0].text.strip(), completions[0].score, alternatives))
    return answers, too_long


def _longest(model: LanguageModel[S]) -> int:
    reader = as_reader(model)
    assert reader is not None, "the model does not read its prompts apart"
    return reader.longest_source
