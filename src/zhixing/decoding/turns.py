"""Whose turn it is: the engines of a process step one after another, in the order in which they asked.

Each gives its products all cores; two that step at once would fight for them, and a thread pool that waits for a core
waits long (before_torch.py). A plain lock would not do: who releases it and asks again mostly gets it again.
"""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A lock that is handed on to who has waited longest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until __exit__ hands the turn on

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    def let_others(self) -> None:
        """Whoever waits has a turn now; then it is the caller's again, who has it."""
        if self._waiting:
            self.__exit__()
            self.__enter__()
