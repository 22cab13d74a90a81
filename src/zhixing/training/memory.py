"""How this process takes memory from the system: keep it, or give it back.

A training step allocates and frees the same large tensors over and over. By default the C library gives each back to
the system at once, and the next step pays for every page again: zeroing 4 KB at a time took 13 % of a step of a
17M-parameter GPT (measured, docs/log.md).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h


def keep_memory() -> None:
    """Tell glibc to keep freed memory: for training, which takes it again at the next step.

    Only writing from a model needs it back: there nothing repeats. Elsewhere than on Linux with glibc nothing happens.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def return_memory() -> None:
    """Tell glibc to take each large tensor from the system and give it back: for training on texts of many lengths.

    There no step wants the sizes of the one before, and a heap that is kept grows beyond what any step needs.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 65536)  # the library's own; keep_memory may have changed these two
        libc.mallopt(_M_TRIM_THRESHOLD, 2**17)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**18)


def give_back() -> None:
    """Return to the system what loading a model left free: 20 MB of 380 for a 17M-parameter GPT."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version") else None
