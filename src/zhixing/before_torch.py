"""What the libraries under torch read once, when they are loaded: `import zhixing` says it before anything loads them.

Each is a default: whoever sets the variable, or imports torch first, keeps their own.
"""

from __future__ import annotations

import os

SPINS = "1000"  # of a thread that waits for the next loop, before it sleeps: some 20 microseconds


def large_pages() -> None:
    """Have torch ask the system for large pages: fewer faults when a step takes its memory (docs/log.md)."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read at torch's first allocation


def short_spins() -> None:
    """Have waiting threads sleep soon.

    By GNU OpenMP's default a thread that waits holds its core for milliseconds; with another program on the machine the
    thread that has work then waits for it: writing became a fourth as fast, and with short spins half as fast, which is
    the other program's share (docs/log.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when libgomp is loaded
