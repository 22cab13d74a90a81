"""One trainer a run, no orphans, and a clean end on a signal.

A lock on RUN/run.lock is held by the kernel for as long as the process lives, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from zhixing.errors import InputError
from zhixing.files import clear_leftovers
from zhixing.progress import say

LOCK = "run.lock"
LOOKS = 5  # tries to get the lock, a twentieth of a second apart: `is_training` holds it for a moment
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_held: set[int] = set()  # file descriptors of locks, closed in forked children: an orphan must not keep a lock


def _drop_locks_in_child() -> None:
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks_in_child)


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold RUN/run.lock; InputError naming the process that has it, if another trains there.

    What killed trainers left half written in RUN is swept away.

    On a system without flock (Windows) nothing is locked.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    path = Path(run_dir) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(fd)
    try:
        try:
            for look in range(LOOKS):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if look == LOOKS - 1:
                        raise
                    time.sleep(0.05)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise InputError(
                "another process trains in this folder",
                where=str(path),
                why=f"process {pid or 'of unknown number'} holds the lock",
                mend="wait for it, stop it, or train into another folder",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        for folder in (path.parent, path.parent / "checkpoints"):
            clear_leftovers(folder, alone=True)
        yield
    finally:
        # the file stays: to delete it would let two processes lock two files of one name
        if fd in _held:
            _held.discard(fd)
            os.close(fd)


def is_training(run_dir: Path) -> bool:
    """Whether a process holds RUN/run.lock.

    Only who takes a lock learns that nobody has it. It is shared and given back at once, and `run_lock` tries again.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fd = os.open(Path(run_dir) / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(fd)
    return False


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (Linux; elsewhere nothing happens).

    For worker processes only, called first thing: a killed launcher would leave workers that train on.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended between the two calls, so the kernel will not tell us
        os.kill(os.getpid(), signal.SIGKILL)


class StopSignals:
    """Turn the first SIGTERM or SIGINT into `requested`; the second ends the process at once with 128 + its number.

        with StopSignals() as stop:
            while not stop.requested: ...one step...
        save

    The old handlers come back at the end of the block. In a thread other than the main one nothing is installed.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None  # the number of the first signal
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + number of the signal that asked to stop, 0 if none did."""
        return 128 + self.signal if self.signal is not None else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)  # no clean-up: what is half written has a hidden name
        self.requested, self.signal = True, number
        with contextlib.suppress(RuntimeError):  # it came in the midst of another line, and stderr takes one at a time
            say(f"{signal.Signals(number).name}: finishing the step and saving; once more to leave at once")

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
