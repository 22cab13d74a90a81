"""Text that continues text: whole answers for many prompts, or one answer piece by piece.

Tokens are bytes and characters are not, and a stop string may end in the middle of a token or begin in one and end in
the next. So each row's text is put together token by token: only whole characters come out of the detokenizer, and what
may still become a stop string is held back until it is one, and falls away, or is not, and comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zhixing.decoding.beam import Hypothesis, beam_search
from zhixing.decoding.generate import Alternatives, FinishReason, Token, generate_ids
from zhixing.decoding.protocol import LanguageModel, S, as_reader
from zhixing.decoding.settings import DecodingSettings
from zhixing.errors import InputError
from zhixing.progress import Progress
from zhixing.tokens.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    `text` ends before the stop string that ended it, if one did. `ids` are the written tokens without the end-of-text
    token, but with those that make up the stop string; `logprobs` and `top_logprobs` (id and log-probability, best
    first) go with `ids`. `finish_reason` is "stop" (end of text or stop string) or "length" (max_new_tokens, or the
    model's context is full). `score` is that of beam search.
    """

    prompt: str
    text: str
    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    top_logprobs: list[Alternatives] | None = None
    score: float | None = None


class StopStrings:
    """Cuts a text that comes in pieces before the first stop string, wherever the pieces begin and end.

    With the stop string "\\n\\n": push("a\\n") gives "a", push("b") gives "\\nb", push("\\n\\nc") gives "" and sets
    `found`. The string that is complete first counts, and of two that end together the longer.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.found = False
        self._held = ""  # the end of the text so far, where it is the beginning of a stop string
        self._longest = max(map(len, self.strings), default=1) - 1

    def push(self, piece: str) -> str:
        """Take the next piece; the text that is certainly before any stop string and was not given yet."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(start + len(string), start) for string in self.strings if (start := text.find(string)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        for length in range(min(self._longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self.strings):
                self._held = text[-length:]
                return text[:-length]
        self._held = ""
        return text

    def finish(self) -> str:
        """No piece follows: what was held back is text."""
        held, self._held = self._held, ""
        return held


class RowText:
    """The text of one row as its tokens come; an end-of-text id is none of them."""

    def __init__(self, tokenizer: Tokenizer, settings: DecodingSettings) -> None:
        self._stream = TextStream(tokenizer.target)
        self._known = tokenizer.target.vocab_size
        self._stops = StopStrings(settings.stop)
        # Stop strings count in the text after so many tokens
        self._unscanned = max(settings.min_new_tokens, len(settings.beginning))
        self.pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        return self._stops.found

    def push(self, token: int) -> str:
        """The text that is certain now."""
        piece = self._stream.push(token) if token < self._known else ""
        if self._unscanned:
            self._unscanned -= 1
        else:
            piece = self._stops.push(piece)
        self.pieces.append(piece)
        return piece

    def finish(self) -> str:
        """The rest of the text; nothing after a stop string."""
        piece = self._stops.push(self._stream.finish()) + self._stops.finish()
        self.pieces.append(piece)
        return piece


def generate(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: DecodingSettings,
    *,
    batch_size: int = 64,
) -> list[list[Completion]]:
    """The settings.n completions of each prompt; the best first if they were searched by beams.

    About `batch_size` rows run at once. What is written for a prompt does not depend on the other prompts. An empty
    prompt starts a new text. InputError for settings that cannot be used, and for a prompt that fills the context.
    """
    settings = _with_ends(settings, tokenizer)
    ids = prompt_ids(tokenizer, prompts) if as_reader(model) is None else source_ids(tokenizer, prompts)
    return generate_from(model, tokenizer, ids, settings, prompts=prompts, batch_size=batch_size)


def generate_from(
    model: LanguageModel[S],
    tokenizer: Tokenizer,
    ids: Sequence[list[int]],
    settings: DecodingSettings,
    *,
    prompts: Sequence[str] = (),
    batch_size: int = 64,
) -> list[list[Completion]]:
    """`generate` after prompts that are ids already, perhaps with control tokens; `prompts` is what they say."""
    settings = _with_ends(settings, tokenizer)
    prompts = prompts or [""] * len(ids)
    if settings.num_beams > 1:
        with Progress("searching", total=len(prompts), unit="prompts") as progress:
            found = beam_search(model, ids, settings, batch_size=batch_size, watch=progress.update)
        return [
            [from_beam(tokenizer, prompt, hypothesis, settings) for hypothesis in best]
            for prompt, best in zip(prompts, found, strict=True)
        ]

    rows: list[list[Token]] = [[] for _ in range(len(prompts) * settings.n)]
    texts = [RowText(tokenizer, settings) for _ in rows] if settings.stop else []

    def ended(row: int, token: int) -> bool:
        texts[row].push(token)
        return texts[row].stopped

    most, done = len(rows) * settings.max_new_tokens, 0
    with Progress("writing", total=most, unit="tokens") as progress:
        steps = generate_ids(model, ids, settings, batch_size=batch_size, ended=ended if settings.stop else None)
        for tokens in steps:
            for token in tokens:
                rows[token.row].append(token)
                done += settings.max_new_tokens - len(rows[token.row]) + 1 if token.finish_reason else 1
            progress.update(done)

    completions = []
    for row, tokens in enumerate(rows):
        text = None
        if settings.stop:
            texts[row].finish()
            text = "".join(texts[row].pieces)
        completions.append(from_tokens(tokenizer, prompts[row // settings.n], tokens, text, settings))
    return [completions[first : first + settings.n] for first in range(0, len(rows), settings.n)]


def stream(model: LanguageModel[S], tokenizer: Tokenizer, prompt: str, settings: DecodingSettings) -> Iterator[str]:
    """One completion in pieces as it is written; joined they are the text that `generate` gives.

    A piece is never empty, never ends inside a character, and holds nothing of a stop string. Errors as in `generate`,
    before the first piece.
    """
    settings = _with_ends(settings, tokenizer)
    if settings.n != 1 or settings.num_beams != 1:
        raise InputError(
            "a stream is one completion, written from left to right",
            why=f"n = {settings.n}, num_beams = {settings.num_beams}",
            mend="leave n and num_beams out, or generate without streaming",
        )
    return stream_from(model, tokenizer, prompt_ids(tokenizer, [prompt])[0], settings)


def stream_from(
    model: LanguageModel[S], tokenizer: Tokenizer, ids: list[int], settings: DecodingSettings
) -> Iterator[str]:
    """`stream` after a prompt that is ids already; a model that reads its prompts apart takes them as its source."""
    settings = _with_ends(settings, tokenizer)
    return _pieces(generate_ids(model, [ids], settings), RowText(tokenizer, settings))


def _pieces(steps: Iterator[list[Token]], text: RowText) -> Iterator[str]:
    for (token,) in steps:
        if token.finish_reason != "stop" and (piece := text.push(token.id)):
            yield piece
        if text.stopped:
            return
    if piece := text.finish():
        yield piece


def _with_ends(settings: DecodingSettings, tokenizer: Tokenizer) -> DecodingSettings:
    settings.check()
    ends = (tokenizer.target.eos_id,)
    return settings if settings.eos_ids is not None else dataclasses.replace(settings, eos_ids=ends)


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt as a model takes it that goes on with it; of an empty one the end of the text before."""
    for place, prompt in enumerate(prompts):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # what Python makes of a command line that is not UTF-8
            where = f"prompt {place + 1}, character {error.start + 1}"
            raise InputError("the prompt holds a lone surrogate, which is no character", where=where) from None
    return [ids or [tokenizer.eos_id] for ids in tokenizer.encode_batch(prompts)]


def source_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as a model takes it that reads its prompts apart: with the tokenizer's ends."""
    return [tokenizer.with_ends(ids) for ids in prompt_ids(tokenizer, texts)]


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of written ids; a model's vocabulary may be padded beyond its tokenizer's: such an id stands for no text."""
    return tokenizer.target.decode(i for i in ids if i < tokenizer.target.vocab_size)


def from_tokens(
    tokenizer: Tokenizer, prompt: str, tokens: list[Token], text: str | None, settings: DecodingSettings
) -> Completion:
    """A row that has ended; `text` where strings could end it, which ids do not tell."""
    reason = tokens[-1].finish_reason
    assert reason is not None
    if tokens[-1].id in (settings.eos_ids or ()):
        tokens = tokens[:-1]
    ids = [token.id for token in tokens]
    logprobs = top = None
    if settings.logprobs is not None:
        logprobs = [token.logprob for token in tokens if token.logprob is not None]
        top = [token.top for token in tokens if token.top is not None]
    return Completion(prompt, _decode(tokenizer, ids) if text is None else text, ids, reason, logprobs, top)


def from_beam(tokenizer: Tokenizer, prompt: str, hypothesis: Hypothesis, settings: DecodingSettings) -> Completion:
    """A result of beam search as text."""
    logprobs = None if settings.logprobs is None else hypothesis.logprobs
    ids, reason = hypothesis.ids, hypothesis.finish_reason
    return Completion(prompt, _decode(tokenizer, ids), ids, reason, logprobs, hypothesis.top, hypothesis.score)
