"""What a request gets back: its tokens as they come, for a thread or for asyncio, and the way to take it back.

The engine's thread puts tokens in; one reader takes them out: `for` in a thread, `async for` in an event loop, or
`listen` and `take` for whoever has a loop of another kind. A reader that leaves its loop early cancels the request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from zhixing.decoding.generate import Token


class TimedOutError(Exception):
    """A deadline has passed; `waiting` says whether the request still stood in the queue."""

    def __init__(self, seconds: float, *, waiting: bool) -> None:
        self.seconds, self.waiting = seconds, waiting
        where = "in the queue" if waiting else "in all"
        super().__init__(f"the request took longer than the {seconds:g} s that it may take {where}")


class RequestCancelledError(Exception):
    """The request was taken back, by its reader or as the engine closed."""


class RequestFailedError(Exception):
    """The engine could not go on with the request; `__cause__` says why."""


class Ticket:
    """An accepted request. Its tokens are those of `generate_ids`, with the number of the sample as `row`."""

    def __init__(self, samples: int, wake: Callable[[], None]) -> None:
        self.samples = samples
        self.reused_tokens = 0  # of the prompt, that were not read again
        self.cancelled = False
        self._wake = wake  # the engine
        self._changed = threading.Condition()
        self._tokens: list[Token] = []  # not taken yet
        self._ended = False
        self._error: Exception | None = None
        self._listener: Callable[[], object] | None = None

    # for the reader

    def cancel(self) -> None:
        """Take the request back, from any thread: it frees its place before the engine's next step."""
        self.cancelled = True
        self._wake()

    @property
    def ended(self) -> bool:
        """Is there nothing to come?"""
        return self._ended

    def take(self) -> tuple[list[Token], bool]:
        """The tokens that have come since the last time, and whether they are the last. Does not wait.

        Raises what ended the request early once all its tokens are taken: TimedOutError, RequestCancelledError,
        RequestFailedError, InputError.
        """
        with self._changed:
            tokens, self._tokens = self._tokens, []
            if self._ended and self._error is not None and not tokens:
                raise self._error
            return tokens, self._ended and self._error is None

    def listen(self, listener: Callable[[], object]) -> None:
        """Have it called, in the engine's thread, whenever there is something to take; at once if there is already."""
        with self._changed:
            self._listener = listener
            ready = bool(self._tokens) or self._ended
        if ready:
            listener()

    def __iter__(self) -> Iterator[Token]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._tokens or self._ended)
                tokens, last = self.take()
                yield from tokens
                if last:
                    return
        finally:
            if not self._ended:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[Token]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self.listen(lambda: loop.call_soon_threadsafe(woken.set))
        try:
            while True:
                await woken.wait()
                woken.clear()
                while True:
                    tokens, last = self.take()
                    for token in tokens:
                        yield token
                    if last:
                        return
                    if not tokens:
                        break
        finally:
            if not self._ended:
                self.cancel()

    def result(self, timeout: float | None = None) -> list[list[Token]]:
        """Wait for the end: the tokens of each sample. TimeoutError after so many seconds, and the request goes on."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"no end within {timeout} s")
            if self._error is not None:
                raise self._error
        samples: list[list[Token]] = [[] for _ in range(self.samples)]
        for token in self.take()[0]:
            samples[token.row].append(token)
        return samples

    # for the engine

    def put(self, tokens: list[Token], *, last: bool) -> None:
        """Give the reader tokens; an error of its listener is the caller's."""
        with self._changed:
            self._tokens += tokens
            self._ended = self._ended or last
            self._changed.notify_all()
            listener = self._listener
        if listener is not None:
            listener()

    def fail(self, error: Exception) -> None:
        """End it here, after the tokens that were put."""
        with self._changed:
            if self._ended:
                return
            self._ended, self._error = True, error
            self._changed.notify_all()
            listener = self._listener
        if listener is not None:
            listener()
