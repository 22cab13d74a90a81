"""What a person hears while numba compiles loops: once a process, and only where it takes longer than two seconds.

The loops are compiled at their first use on a machine and kept on disk, so the first training or the first answer
takes up to half a minute longer than the next, which nobody could guess.
"""

from __future__ import annotations

import time
from typing import Any

from numba.core import event

from zhixing.progress import say

PATIENCE = 2.0  # seconds


class Compiling(event.Listener):
    """Counts the seconds of compilation. Loops that a loop calls are compiled within it, and counted once."""

    def __init__(self) -> None:
        self.depth, self.began, self.spent, self.told = 0, 0.0, 0.0, False

    def on_start(self, event: Any) -> None:
        """A loop, or one that it calls, begins to be compiled."""
        now = time.monotonic()
        if self.depth == 0:
            self.began = now
        self.depth += 1
        self._tell(now)

    def on_end(self, event: Any) -> None:
        """It ended."""
        now = time.monotonic()
        self._tell(now)
        self.depth -= 1
        if self.depth == 0:
            self.spent += now - self.began

    def _tell(self, now: float) -> None:
        if not self.told and self.spent + now - self.began > PATIENCE:
            self.told = True
            say("compiling loops for this processor; they are kept, so this is for once")


def listen() -> None:
    """From now on a person is told; the files of loops call it when they are loaded."""
    event.register("numba:compile", Compiling())  # type: ignore[no-untyped-call]
