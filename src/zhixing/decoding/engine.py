"""An engine: one model, one thread, and any number of users whose requests come and go between two steps.

Continuous batching (Yu et al. 2022, Orca): a request does not wait for a batch to end. Each turn of the engine

1. lets go whoever has ended, was cancelled or is too late,
2. admits from the queue, in fair order, as long as there are rows and tokens of cache for all that a request may write,
3. reads up to CHUNK tokens of prompts, so that a long prompt delays the next token of the others by one chunk only,
4. writes one token of every row (`generate.Decoder`),
5. does one batch of jobs: what is no writing (beam search, classes, embeddings) but needs the same model.

What a request gets is what it would get alone: its prompt is read by itself, in chunks that begin at multiples of
CHUNK, its numbers for sampling are its own (sampling.py), and a row's sums do not depend on the rows beside it: to the
bit for a GPT on a processor in fp32 (models/gpt_packed.py), up to the rounding of sums in another order (about 1e-6)
elsewhere. A prompt of a text of another side (a `Reader`) is read in one go.

The room in the caches is reserved when a request is admitted: rows times the longest row, which is what the caches
take, so nothing is ever thrown out that was begun. Requests of a key whose prompts begin alike are read from where they
differ (prefix_cache.py); keys never share anything.

An error in one request's own prompt ends that request. An error of a step ends the requests that write at that moment,
with the cause, and the engine goes on.

The thread sets torch's threads for itself as it starts, to `threads` or to what torch has (numba's loops follow it).
Engines of one process take turns (turns.py), so two models do not fight for the cores; the caller's own threads should
compute nothing heavy meanwhile. Nobody else may use the model while the engine has it: other work is a job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from zhixing.decoding.beam import Hypothesis, beam_search
from zhixing.decoding.engine_metrics import Clock, EngineMetrics
from zhixing.decoding.fair_queue import FairQueue, QueueFullError
from zhixing.decoding.generate import CHUNK, Decoder, Token, room_for
from zhixing.decoding.prefix_cache import PrefixCache
from zhixing.decoding.protocol import LanguageModel, S, as_continuer, as_pieced, as_reader, context_length
from zhixing.decoding.settings import DecodingSettings
from zhixing.decoding.ticket import RequestCancelledError, RequestFailedError, Ticket, TimedOutError
from zhixing.decoding.turns import Turns
from zhixing.errors import InputError

LEAST_CHUNK = 16  # tokens: reading fewer takes as long, as the weights must be read too
CELL = 64  # tokens: rows are made so much longer at a time, as a longer row widens the caches of all

TURNS = Turns()
ENDS: dict[type[Exception], str] = {RequestCancelledError: "aborted", TimedOutError: "timed_out"}  # what they count as

Item = TypeVar("Item")
Result = TypeVar("Result")


class DrainingError(Exception):
    """The engine takes no new requests: it ends those it has, or has ended."""

    def __init__(self) -> None:
        super().__init__("the engine takes no new requests")


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes on. Tokens are those of a prompt and of what is written, of each sample."""

    most_rows: int = 32
    most_tokens: int = 16 * 1024  # of the caches: rows times the longest row, in cells of CELL; a few spare rows beside
    most_waiting: int = 64
    most_waiting_of_key: int | None = None  # None: the same
    prefix_tokens: int = 8 * 1024  # kept of prompts that were read, in addition; 0: none
    queue_seconds: float | None = 60.0  # a request may set its own, shorter or longer
    total_seconds: float | None = 600.0

    def check(self) -> None:
        """InputError for what cannot be used."""
        for name, least in (
            ("most_rows", 1), ("most_tokens", 1), ("most_waiting", 1), ("most_waiting_of_key", 1), ("prefix_tokens", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name == "most_waiting_of_key":
                continue
            if type(value) is not int or value < least:
                raise InputError(
                    f"{name} = {value!r} cannot be used", why=f"it takes a whole number of {least} or more"
                )
        for name in ("queue_seconds", "total_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} = {value!r} cannot be used", why="it takes a number above 0, or none")


DEFAULT_LIMITS = EngineLimits()


@dataclass(frozen=True)
class Request:
    """What to write on, or of, and how.

    `key` is the user that it counts for: keys take turns, and what was read for a key is used again for that key alone.
    None: for nobody; nothing of it is kept. `ended(sample, id)` is asked in the engine's thread for each token but an
    end-of-text id, as in `generate_ids`: True ends the sample there with the reason "stop". That is where strings that
    end a text belong, as the engine knows ids only.
    """

    ids: Sequence[int]
    settings: DecodingSettings
    key: str | None = None
    queue_seconds: float | None = None  # None: as the engine's limits say
    total_seconds: float | None = None
    ended: Callable[[int, int], bool] | None = None


@dataclass(frozen=True)
class Batch(Generic[Item, Result]):
    """Work that is done for many at once: `run(items, breathe)` gives a result, or an exception, for each item.

    `run` may call `breathe()` between its own steps: there the rows that are being written go on. At most `most` items
    go into a run, all of one group.
    """

    run: Callable[[Sequence[Item], Callable[[], None]], Sequence[Result | Exception]]
    most: int = 64


class JobFuture(Future[Result]):
    """A job's result. `cancel` also after it has begun: it ends at its next breath, if nobody else waits for it."""

    abandoned = False

    def cancel(self) -> bool:
        self.abandoned = True
        return super().cancel()


@dataclass
class _Job:
    batch: Batch[Any, Any]
    group: Hashable
    item: Any
    future: JobFuture[Any]
    begun_by: float  # the latest moment
    queue_seconds: float
    ended_by: float
    total_seconds: float

    def leaves(self, now: float) -> Exception | None:
        """What to say if nobody waits for it any more, or it has taken too long."""
        if self.future.abandoned:
            return RequestCancelledError("the request was cancelled")
        return TimedOutError(self.total_seconds, waiting=False) if now > self.ended_by else None


class _LeaveOffError(Exception):
    """No job of those that run goes on."""


class _Work(Generic[S]):
    """An accepted request and where it stands."""

    def __init__(self, request: Request, ids: list[int], capacity: int, ticket: Ticket, limits: EngineLimits) -> None:
        self.request, self.ids, self.ticket = request, ids, ticket
        self.samples = request.settings.n
        self.capacity = capacity  # tokens of a row
        self.arrived = time.monotonic()
        self.queue_seconds = _first(request.queue_seconds, limits.queue_seconds)
        self.total_seconds = _first(request.total_seconds, limits.total_seconds)
        self.state: S | None = None
        self.hidden: Tensor | None = None
        self.read = 0  # tokens of the prompt
        self.pieces: list[object] = []
        self.samples_left = self.samples
        self.rows: dict[int, int] = {}  # the decoder's number -> that of the sample
        self.last_token = 0.0

    def late(self, now: float, *, waiting: bool) -> TimedOutError | None:
        """What to say if a deadline has passed."""
        for seconds, counts in ((self.queue_seconds, waiting), (self.total_seconds, True)):
            if counts and now - self.arrived > seconds:
                return TimedOutError(seconds, waiting=waiting)
        return None


def _first(own: float | None, general: float | None) -> float:
    seconds = general if own is None else own
    return float("inf") if seconds is None else seconds


class Engine(Generic[S]):
    """The thread runs from the start to `drain` or `close`; also `with Engine(model) as engine`, which closes it.

    All methods may be called from any thread. Without a model it does jobs only.
    """

    def __init__(
        self,
        model: LanguageModel[S] | None,
        limits: EngineLimits = DEFAULT_LIMITS,
        *,
        threads: int | None = None,
    ) -> None:
        limits.check()
        self.model, self.limits = model, limits
        self._threads = torch.get_num_threads() if threads is None else threads
        self._changed = threading.Condition()  # holds what other threads touch: the queues and the three flags
        self._queue: FairQueue[_Work[S]] = FairQueue(limits.most_waiting, limits.most_waiting_of_key)
        self._jobs: FairQueue[_Job] = FairQueue(limits.most_waiting, limits.most_waiting_of_key)
        self._draining = self._closing = False
        # only the engine's thread touches what follows, others read it for the metrics
        self._decoder = None if model is None else Decoder(model)
        self._reading: list[_Work[S]] = []  # the oldest first
        self._writing: list[_Work[S]] = []
        self._by_row: dict[int, _Work[S]] = {}
        self._oldest_reads = True
        self._capacity = 0  # of each row, since there last was none
        self._prefixes = PrefixCache(CHUNK, limits.prefix_tokens)
        self._running: list[_Job] = []
        self._searches = Batch(self._search, 16)
        self._counts = dict.fromkeys(
            ("accepted", "rejected", "finished", "aborted", "timed_out", "failed", "jobs_done", "jobs_failed",
             "steps", "steps_failed", "tokens_in", "tokens_reused", "tokens_out"), 0,
        )  # fmt: skip
        self._queue_time, self._first_token, self._between_tokens = Clock(), Clock(), Clock()
        self._thread = threading.Thread(target=self._main, name="zhixing-engine", daemon=True)
        self._thread.start()

    # for the users

    def submit(self, request: Request) -> Ticket:
        """Stand in the queue.

        InputError for what this model or this engine can never do; QueueFullError and DrainingError for now.
        """
        work = self._work(request)
        with self._changed:
            self._enter(lambda: self._queue.push(request.key, work))
            self._counts["accepted"] += 1
        return work.ticket

    def submit_job(
        self,
        batch: Batch[Item, Result],
        item: Item,
        *,
        group: Hashable = None,
        key: str | None = None,
        queue_seconds: float | None = None,
        total_seconds: float | None = None,
    ) -> JobFuture[Result]:
        """Have an item done in the engine's thread, together with others of the same batch and group that wait.

        `asyncio.wrap_future` waits for the future in an event loop. It fails with what its item failed with,
        TimedOutError or RequestCancelledError. QueueFullError, DrainingError as in `submit`.
        """
        future: JobFuture[Result] = JobFuture()
        seconds, total = (
            _first(queue_seconds, self.limits.queue_seconds),
            _first(total_seconds, self.limits.total_seconds),
        )
        now = time.monotonic()
        job = _Job(batch, group, item, future, now + seconds, seconds, now + total, total)
        with self._changed:
            self._enter(lambda: self._jobs.push(key, job))
        return future

    def search(
        self, ids: Sequence[int], settings: DecodingSettings, *, key: str | None = None
    ) -> JobFuture[list[Hypothesis]]:
        """Beam search as a job: the settings.n best results. Texts with the same settings are searched together.

        InputError for what cannot be searched for, or needs more tokens than the engine holds.
        """
        if self.model is None:
            raise InputError("this engine writes nothing", why="it has no language model")
        settings.check()
        rows, tokens = settings.num_beams, len(ids) + room_for(self.model, list(ids), settings)
        if rows * tokens > self.limits.most_tokens:
            raise InputError(
                f"{rows} beams may come to {tokens} tokens each",
                why=f"this engine holds {self.limits.most_tokens} tokens",
                mend="ask for fewer beams or tokens, or shorten the prompt",
            )
        return self.submit_job(self._searches, (list(ids), settings), group=settings, key=key)

    def metrics(self) -> EngineMetrics:
        with self._changed:
            waiting, jobs = len(self._queue), len(self._jobs)
        reading, writing = self._reading[:], self._writing[:]
        return EngineMetrics(
            waiting=waiting,
            reading=len(reading),
            writing=len(writing),
            jobs_waiting=jobs,
            rows=_rows(reading, writing),
            most_rows=self.limits.most_rows,
            reserved_tokens=_rows(reading, writing) * self._capacity,
            most_tokens=self.limits.most_tokens,
            prefix_tokens=self._prefixes.tokens,
            queue_time=self._queue_time.times(),
            first_token=self._first_token.times(),
            between_tokens=self._between_tokens.times(),
            **self._counts,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new, end all that was accepted, and close. False if some were cut off after so many seconds."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._thread.is_alive() or not self._busy, timeout)
        self.close()
        return done

    def close(self) -> None:
        """Cancel what has not ended and end the thread; it waits for the step that is being made."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Engine[S]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self, push: Callable[[], None]) -> None:
        """Put something into a queue, if there may be anything new. The lock is held."""
        try:
            if self._draining:
                raise DrainingError
            push()
        except (DrainingError, QueueFullError):
            self._counts["rejected"] += 1
            raise
        self._changed.notify_all()

    def _work(self, request: Request) -> _Work[S]:
        settings, limits, ids = request.settings, self.limits, list(request.ids)
        if self.model is None:
            raise InputError("this engine writes nothing", why="it has no language model")
        settings.check()
        if settings.num_beams > 1:
            raise InputError("beams are searched, not written token by token", mend="use Engine.search")
        room = room_for(self.model, ids, settings)
        context = context_length(self.model)
        capacity = -(-(len(ids) + room) // CELL) * CELL
        if context is not None and as_reader(self.model) is None:
            capacity = min(capacity, context)
        work: _Work[S] = _Work(request, ids, capacity, Ticket(settings.n, self._wake), limits)
        if settings.n > limits.most_rows:
            raise InputError(
                f"n = {settings.n} cannot be used", why=f"this engine writes {limits.most_rows} rows at once"
            )
        if settings.n * capacity > limits.most_tokens:
            raise InputError(
                f"the request may come to {settings.n} rows of {len(ids) + room} tokens, in cells of {CELL}",
                why=f"this engine holds {limits.most_tokens} tokens",
                mend="ask for fewer new tokens, or shorten the prompt",
            )
        return work

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @property
    def _busy(self) -> bool:
        return bool(len(self._queue) or len(self._jobs) or self._reading or self._writing or self._running)

    # the engine's thread

    def _main(self) -> None:
        torch.set_num_threads(self._threads)
        if self.model is not None:
            self.model.train(False)
        try:
            while self._wait():
                with TURNS:
                    self._guarded_turn()
                    self._one_batch()
        finally:
            self._end_all(RequestCancelledError("the engine was closed"))

    def _wait(self) -> bool:
        """Until there is something to do; False if the engine closes."""
        with self._changed:
            if not self._busy:
                self._changed.notify_all()  # who drains waits for it
            self._changed.wait_for(lambda: self._busy or self._closing)
            return not self._closing

    def _guarded_turn(self) -> None:
        """A turn; whatever goes wrong in it outside a request or a step ends all that has begun, and nothing else."""
        try:
            self._turn()
        except Exception as error:
            self._start_again(error)

    def _turn(self) -> None:
        self._let_go()
        self._admit()
        with torch.inference_mode():
            self._read_some()
        self._write()

    def _let_go(self) -> None:
        """Those that were cancelled or are too late."""
        now = time.monotonic()
        with self._changed:
            leaving = self._queue.remove(lambda work: work.ticket.cancelled or work.late(now, waiting=True) is not None)
            late = self._jobs.remove(lambda job: job.future.cancelled() or now > job.begun_by)
        for work in leaving:
            self._finish(work, work.late(now, waiting=True))
        for job in late:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(TimedOutError(job.queue_seconds, waiting=True))
                self._counts["jobs_failed"] += 1
        for work in [*self._reading, *self._writing]:
            error = work.late(now, waiting=False)
            if work.ticket.cancelled or error is not None:
                self._finish(work, error)

    def _finish(self, work: _Work[S], error: Exception | None) -> None:
        """End a request early: with the error, or because it was cancelled."""
        if error is None or (work.ticket.cancelled and not isinstance(error, RequestCancelledError)):
            error = RequestCancelledError("the request was cancelled")
        said = error
        self._counts[ENDS.get(type(said), "failed")] += 1
        self._forget(work)
        self._tell(work, lambda: work.ticket.fail(said))

    def _forget(self, work: _Work[S]) -> None:
        """Take a request's rows from it."""
        for row in work.rows:
            self._by_row.pop(row, None)
            if self._decoder is not None:
                self._decoder.stop(row)
        work.state = work.hidden = None
        if work in self._reading:
            self._reading.remove(work)
        if work in self._writing:
            self._writing.remove(work)
            if not self._writing and self.model is not None:
                self._decoder = Decoder(self.model)  # gives the caches back

    def _tell(self, work: _Work[S], tell: Callable[[], None]) -> None:
        """A reader whose listener fails is gone, and the log says of what: the others' requests go on."""
        try:
            tell()
        except Exception:
            logging.getLogger(__name__).exception("a listener failed; its request is cancelled")
            work.ticket.cancel()

    def _admit(self) -> None:
        while True:
            with self._changed:
                work = self._queue.head()
                if work is None or not self._fits(work):
                    return
                self._queue.pop()
                self._reading.append(work)  # under the lock: it is never in neither
            self._capacity = max(self._capacity, work.capacity)
            self._queue_time.add(time.monotonic() - work.arrived)
            self._counts["tokens_in"] += len(work.ids)

    def _fits(self, work: _Work[S]) -> bool:
        """Is there room for all that it may write? Whoever's turn it is waits for it, and nobody overtakes."""
        everyone = [*self._reading, *self._writing]
        rows = _rows(everyone) + work.samples
        if rows > self.limits.most_rows:
            return False
        if rows * max(self._capacity, work.capacity) <= self.limits.most_tokens:
            return True
        longest = max((other.capacity for other in everyone), default=0)
        if longest < self._capacity:
            self._capacity = longest  # the longest row has left: the caches shrink
            if self._decoder is not None:
                with torch.inference_mode():
                    self._decoder.fit(longest)
        return rows * max(longest, work.capacity) <= self.limits.most_tokens

    def _read_some(self) -> None:
        """Up to CHUNK tokens: by turns of who came first, and of who has the least left, so that nobody starves."""
        left = CHUNK
        while left > 0 and self._reading:
            self._oldest_reads = not self._oldest_reads
            work = self._reading[0]
            if not self._oldest_reads:
                work = min(self._reading, key=lambda other: len(other.ids) - other.read)
            before = work.read
            try:
                self._read_chunk(work)
            except Exception as error:
                self._finish(work, error if isinstance(error, InputError) else _failed("its prompt", error))
                continue
            left -= max(LEAST_CHUNK, work.read - before)

    def _read_chunk(self, work: _Work[S]) -> None:
        """Read the next chunk of a prompt; behind the last one its rows begin to write."""
        assert self.model is not None and self._decoder is not None
        reader = as_reader(self.model)
        if reader is not None:
            work.state, work.hidden = reader.read_sources([work.ids], work.capacity)
            work.read = len(work.ids)
        else:
            if work.state is None:
                work.state = as_continuer(self.model).new_state(1, work.capacity)
                self._reuse(work, work.state)
            end = min(len(work.ids), (work.read // CHUNK + 1) * CHUNK)
            ids = torch.tensor([work.ids[work.read : end]], device=work.state.lengths.device)  # (1, T)
            count = torch.full_like(work.state.lengths, end - work.read)
            work.hidden = self.model.step(ids, count, work.state)[:, -1]  # (1, D)
            pieced = as_pieced(work.state) if self._keeps(work) else None
            if pieced is not None and end % CHUNK == 0:
                work.pieces.append(pieced.piece(work.read))
            work.read = end
        if work.read < len(work.ids):
            return
        if not bool(torch.isfinite(work.hidden).all()):
            raise ArithmeticError("the model gives no numbers for this prompt: a sum became infinite or NaN")
        if work.request.key is not None and work.pieces:
            self._prefixes.add(work.request.key, work.ids, work.pieces)
        rows = self._decoder.join(work.ids, work.request.settings, work.state, work.hidden)
        work.rows = {row: sample for sample, row in enumerate(rows)}
        self._by_row.update(dict.fromkeys(rows, work))
        work.state = work.hidden = None
        work.pieces = []
        self._writing.append(work)  # before it leaves the others: the metrics may look at any time
        self._reading.remove(work)

    def _keeps(self, work: _Work[S]) -> bool:
        return work.request.key is not None and self.limits.prefix_tokens > 0

    def _reuse(self, work: _Work[S], state: S) -> None:
        """Go on from where an earlier prompt of the key is the same."""
        pieced = as_pieced(state)
        if pieced is None or work.request.key is None or not self._keeps(work):
            return
        for piece in self._prefixes.longest(work.request.key, work.ids):
            pieced.take(piece)
            work.pieces.append(None)
        work.read = work.ticket.reused_tokens = len(work.pieces) * CHUNK
        self._counts["tokens_reused"] += work.read

    def _write(self) -> None:
        """One token of every row."""
        if self._decoder is None or not self._writing:
            return
        try:
            tokens = self._decoder.step()
        except Exception as error:
            self._counts["steps_failed"] += 1
            self._drop_writing(error)
            return
        self._counts["steps"] += 1
        now = time.monotonic()
        found: dict[int, tuple[_Work[S], list[Token]]] = {}
        for token in tokens:
            work = self._by_row[token.row]
            found.setdefault(id(work), (work, []))[1].append(token)
        for work, own in found.values():
            self._give(work, own, now)

    def _give(self, work: _Work[S], tokens: list[Token], now: float) -> None:
        """A step's tokens of one request: to its reader."""
        assert self._decoder is not None
        given: list[Token] = []
        for token in tokens:
            sample = work.rows[token.row]
            ended = work.request.ended
            if ended is not None and token.finish_reason != "stop":
                try:
                    stops = ended(sample, token.id)
                except Exception as error:
                    self._finish(work, _failed("the question whether it has ended", error))
                    return
                if stops:
                    self._decoder.stop(token.row)
                    token = token._replace(finish_reason="stop")
            if token.finish_reason is not None:
                del self._by_row[token.row], work.rows[token.row]
                work.samples_left -= 1
            given.append(token._replace(row=sample))
        (self._between_tokens if work.last_token else self._first_token).add(now - (work.last_token or work.arrived))
        work.last_token = now
        self._counts["tokens_out"] += len(given)
        last = work.samples_left == 0
        if last:
            self._counts["finished"] += 1
            self._forget(work)
        self._tell(work, lambda: work.ticket.put(given, last=last))

    def _drop_writing(self, error: Exception) -> None:
        """A step has failed: what it left in the caches means nothing."""
        assert self.model is not None
        self._decoder = Decoder(self.model)
        for work in self._writing[:]:
            self._finish(work, _failed("a step of the model", error))
        self._by_row.clear()

    def _start_again(self, error: Exception) -> None:
        for work in self._reading[:]:
            self._finish(work, _failed("the engine", error))
        if self.model is not None:
            self._drop_writing(error)

    def _one_batch(self) -> None:
        """The jobs whose turn it is, and those that go with them."""
        with self._changed:
            if not len(self._jobs):
                return
            first = self._jobs.head()
            assert first is not None
            self._running = self._jobs.pop_alike(_alike, first.batch.most)
        jobs = [job for job in self._running if job.future.set_running_or_notify_cancel()]
        if jobs:
            self._do(jobs)
        self._running = []

    def _do(self, jobs: list[_Job]) -> None:
        """Do some jobs as one; where that fails, each by itself, so that one bad item is its own affair."""
        try:
            results = jobs[0].batch.run([job.item for job in jobs], self._breathe)
            assert len(results) == len(jobs), f"{len(results)} results for {len(jobs)} items"
        except _LeaveOffError:
            now = time.monotonic()
            results = [job.leaves(now) or RequestCancelledError("the engine was closed") for job in jobs]
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._running = [job]
                    self._do([job])
                return
            results = [error]
        for job, result in zip(jobs, results, strict=True):
            failed = isinstance(result, Exception)
            self._counts["jobs_failed" if failed else "jobs_done"] += 1
            if failed:
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    def _breathe(self) -> None:
        """In the midst of a job: other engines and our own rows go on. Where nobody waits for it, it ends."""
        now = time.monotonic()
        if self._closing or all(job.leaves(now) is not None for job in self._running):
            raise _LeaveOffError
        TURNS.let_others()
        self._guarded_turn()

    def _search(
        self, items: Sequence[tuple[list[int], DecodingSettings]], breathe: Callable[[], None]
    ) -> list[list[Hypothesis]]:
        assert self.model is not None
        try:
            found = beam_search(self.model, [ids for ids, _ in items], items[0][1], watch=lambda _: breathe())
        except InputError as error:  # what was asked for has been checked: it is the model that gives no numbers
            raise _failed("the search", error) from error
        self._counts["tokens_in"] += sum(len(ids) for ids, _ in items)
        self._counts["tokens_out"] += sum(len(hypothesis.ids) for best in found for hypothesis in best)
        return found

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            waiting, jobs = self._queue.remove(lambda _: True), self._jobs.remove(lambda _: True)
        for work in [*waiting, *self._reading, *self._writing]:
            work.ticket.cancelled = True
            self._finish(work, error)
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
                self._counts["jobs_failed"] += 1
        with self._changed:
            self._changed.notify_all()


def _alike(a: _Job, b: _Job) -> bool:
    return a.batch is b.batch and a.group == b.group


def _rows(*works: list[_Work[S]]) -> int:
    return sum(work.samples for some in works for work in some)


def _failed(where: str, cause: Exception) -> RequestFailedError:
    error = RequestFailedError(f"{where} failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
