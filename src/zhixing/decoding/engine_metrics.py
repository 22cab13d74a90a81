"""What an engine counts: plain numbers, read as one snapshot from any thread."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


@dataclass(frozen=True)
class Times:
    """Measured times: counts[i] of them took up to BOUNDS[i] seconds and longer than BOUNDS[i - 1]; the last is longer.

    The form that Prometheus wants, but for its sums: there each bucket holds those before it too.
    """

    counts: tuple[int, ...]
    seconds: float  # their sum

    @property
    def count(self) -> int:
        return sum(self.counts)


class Clock:
    """Times while they are counted."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def times(self) -> Times:
        return Times(tuple(self._counts), self._seconds)


@dataclass(frozen=True)
class EngineMetrics:
    """An engine at one moment; what begins with `accepted` counts up from the engine's start.

    Every accepted request ends as exactly one of finished, aborted, timed_out and failed.
    """

    waiting: int  # requests in the queue
    reading: int  # requests whose prompts are being read
    writing: int  # requests that write
    jobs_waiting: int
    rows: int  # taken: one for each sample of a request that reads or writes
    most_rows: int
    reserved_tokens: int  # of the caches
    most_tokens: int
    prefix_tokens: int  # held for prompts that begin alike
    accepted: int  # requests
    rejected: int  # requests and jobs: the queue was full, or the engine drains
    finished: int
    aborted: int  # cancelled by their reader
    timed_out: int
    failed: int
    jobs_done: int
    jobs_failed: int
    steps: int
    steps_failed: int
    tokens_in: int  # of the prompts of requests that began
    tokens_reused: int  # of those, the ones that were not read again
    tokens_out: int
    queue_time: Times  # from submit to its first chunk
    first_token: Times  # from submit to the first token of a request
    between_tokens: Times  # of a request
