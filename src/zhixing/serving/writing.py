"""From requests to text: what an engine's thread writes for one call, as pieces of text in the event loop.

Prompts are ids by now. Each has its own request in the engine, so the prompts of a call are written side by side with
everybody else's. Choice p * n + s is sample s of prompt p.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

from zhixing.decoding.beam import Hypothesis
from zhixing.decoding.engine import Request
from zhixing.decoding.fair_queue import QueueFullError
from zhixing.decoding.generate import FinishReason, Token
from zhixing.decoding.settings import DecodingSettings
from zhixing.decoding.ticket import Ticket
from zhixing.serving.hosted import Hosted
from zhixing.tasks.generation import Completion, RowText, from_beam, from_tokens
from zhixing.tasks.rewriting import Asked, best_first, room_of, with_room
from zhixing.tokens.tokenizer import Tokenizer

WINDOW = 16  # items of one call that stand in a queue at once
AGAIN = 0.02  # seconds until a full queue is asked again

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece:
    """Text that a choice goes on with, whole characters only, and the tokens that it came of, but for an end of text.

    The tokens of text that is held back (half a character, the beginning of a stop string) come with what follows.
    """

    choice: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None  # of the last piece


class ChoiceText:
    """The text of one choice as its tokens come; `strip` leaves out blanks at both ends, as replies have none."""

    def __init__(self, choice: int, tokenizer: Tokenizer, settings: DecodingSettings, *, strip: bool) -> None:
        self._choice, self._strip = choice, strip
        self._ends = frozenset(settings.eos_ids or ())
        self._text = RowText(tokenizer, settings)
        self._blanks, self._begun = "", False
        self._tokens: list[Token] = []

    def push(self, token: Token) -> Piece | None:
        """None if nothing is certain yet."""
        text = ""
        if token.id not in self._ends:
            text = self._text.push(token.id)
            self._tokens.append(token)
        if token.finish_reason is not None:
            text += self._text.finish()
        if self._strip:
            text = self._stripped(text)
        if not text and token.finish_reason is None:
            return None
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(self._choice, text, tokens, token.finish_reason)

    def _stripped(self, text: str) -> str:
        """Blanks behind a text are held back until more follows."""
        text = self._blanks + text if self._begun else text.lstrip()
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


class Writing:
    """What one call has an engine write.

    QueueFullError, DrainingError, InputError: nothing of it is written then.
    """

    def __init__(
        self,
        hosted: Hosted,
        prompts: Sequence[list[int]],
        settings: DecodingSettings,
        key: str,
        *,
        strip: bool = False,
    ) -> None:
        tokenizer = hosted.tokenizer
        assert tokenizer is not None
        self._tokenizer, self._settings, self._strip = tokenizer, settings, strip
        self._searches: list[Future[list[Hypothesis]]] = []
        self._tickets: list[Ticket] = []
        self.prompt_tokens, self.completion_tokens = sum(map(len, prompts)), 0
        try:
            for ids in prompts:
                if settings.num_beams > 1:
                    self._searches.append(hosted.engine.search(ids, settings, key=key))
                else:
                    self._tickets.append(hosted.engine.submit(Request(ids, settings, key, ended=self._ended())))
        except Exception:
            self.cancel()
            raise

    @property
    def reused_tokens(self) -> int:
        """Of the prompts' tokens those that were not read again."""
        return sum(ticket.reused_tokens for ticket in self._tickets)

    def cancel(self) -> None:
        """Free its places; nothing happens where it has ended."""
        for ticket in self._tickets:
            if not ticket.ended:
                ticket.cancel()
        for search in self._searches:
            search.cancel()

    def _ended(self) -> Callable[[int, int], bool] | None:
        """Whether a stop string is complete, asked in the engine's thread; so that texts are not written on in vain."""
        if not self._settings.stop:
            return None
        texts = [RowText(self._tokenizer, self._settings) for _ in range(self._settings.n)]

        def ended(sample: int, token: int) -> bool:
            texts[sample].push(token)
            return texts[sample].stopped

        return ended

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What has come since the last time, to the end of all choices; whoever leaves early cancels the rest."""
        try:
            if self._searches:
                for number, search in enumerate(self._searches):
                    yield self._found(number, await asyncio.wrap_future(search))
                return
            loop, woken = asyncio.get_running_loop(), asyncio.Event()
            n = self._settings.n
            texts = [
                ChoiceText(choice, self._tokenizer, self._settings, strip=self._strip)
                for choice in range(len(self._tickets) * n)
            ]
            for ticket in self._tickets:
                ticket.listen(lambda: loop.call_soon_threadsafe(woken.set))
            going = list(range(len(self._tickets)))
            while going:
                await woken.wait()
                woken.clear()
                new: list[Piece] = []
                for number in going[:]:
                    tokens, last = self._tickets[number].take()
                    while tokens:
                        for token in tokens:
                            text = texts[number * n + token.row]
                            self.completion_tokens += token.id not in (self._settings.eos_ids or ())
                            if (piece := text.push(token)) is not None:
                                new.append(piece)
                        if last:
                            break
                        tokens, last = self._tickets[number].take()
                    if last:
                        going.remove(number)
                if new:
                    yield new
        finally:
            self.cancel()

    def _found(self, number: int, hypotheses: list[Hypothesis]) -> list[Piece]:
        """The results of a search, whole."""
        pieces = []
        for place, hypothesis in enumerate(hypotheses):
            completion = from_beam(self._tokenizer, "", hypothesis, self._settings)
            choice = number * self._settings.n + place
            text = completion.text.strip() if self._strip else completion.text
            pieces.append(Piece(choice, text, _tokens(choice, completion), completion.finish_reason))
            self.completion_tokens += len(completion.ids)
        return pieces


def _tokens(row: int, completion: Completion) -> tuple[Token, ...]:
    logprobs, top = completion.logprobs, completion.top_logprobs
    return tuple(
        Token(row, id_, None, None if logprobs is None else logprobs[place], None if top is None else top[place])
        for place, id_ in enumerate(completion.ids)
    )


async def in_windows(
    submit: Callable[[Item], Awaitable[Result]], items: Sequence[Item], *, taken_on: bool = False
) -> list[Result]:
    """The results of many submissions, of which WINDOW at most stand in the queue at once.

    If there is no place for the first, QueueFullError; a later one then waits, as its call has been taken on. So does
    the first where that is said.
    """
    found: dict[int, Result] = {}
    going: dict[asyncio.Future[Result], int] = {}
    begun = 0
    try:
        while begun < len(items) or going:
            while begun < len(items) and len(going) < WINDOW:
                try:
                    going[asyncio.ensure_future(submit(items[begun]))] = begun
                except QueueFullError:
                    if begun == 0 and not taken_on:
                        raise
                    break
                begun += 1
            if not going:
                await asyncio.sleep(AGAIN)
                continue
            done, _ = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                found[going.pop(future)] = future.result()
    finally:
        for future in going:
            future.cancel()
    return [found[number] for number in range(len(items))]


async def write_sources(
    hosted: Hosted,
    tokenizer: Tokenizer,
    asked: Asked,
    sources: Sequence[list[int]],
    key: str,
    *,
    taken_on: bool = False,
) -> list[list[Completion]]:
    """The asked.settings.n texts for each source, best first, as `write_each` gives them: sources are ids without ends.

    Sentences of one room are searched together, whoever sent them.
    """
    settings = asked.settings
    sampled = settings.temperature > 0 and settings.n > 1

    def submit(ids: list[int]) -> Awaitable[list[Completion]]:
        limited = with_room(replace(settings, logprobs=0) if sampled else settings, room_of(len(ids), settings))
        read = tokenizer.with_ends(ids or [tokenizer.eos_id])
        if limited.num_beams > 1:
            search = hosted.engine.search(read, limited, key=key)
            task = asyncio.ensure_future(_searched(search, tokenizer, limited))
            task.add_done_callback(lambda _: None if search.done() else search.cancel())
            return task
        ticket = hosted.engine.submit(Request(read, limited, key))
        task = asyncio.ensure_future(_written(ticket, tokenizer, limited, in_order=sampled))
        task.add_done_callback(lambda _: None if ticket.ended else ticket.cancel())
        return task

    return await in_windows(submit, sources, taken_on=taken_on)


async def _searched(
    search: Future[list[Hypothesis]], tokenizer: Tokenizer, settings: DecodingSettings
) -> list[Completion]:
    found = await asyncio.wrap_future(search)
    return [from_beam(tokenizer, "", hypothesis, settings) for hypothesis in found[: settings.n]]


async def _written(
    ticket: Ticket, tokenizer: Tokenizer, settings: DecodingSettings, *, in_order: bool
) -> list[Completion]:
    rows: list[list[Token]] = [[] for _ in range(settings.n)]
    async for token in ticket:
        rows[token.row].append(token)
    found = [from_tokens(tokenizer, "", row, None, settings) for row in rows]
    return best_first(found) if in_order else found
