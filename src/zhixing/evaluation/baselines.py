"""What needs no learning at all: the scores that a model must beat on the same held-out bytes.

A unigram model knows how frequent each token is and nothing of order; `xz -9` is a general compressor that has never
seen the language. A compressor that needs S bytes for n bytes of text gives 8 S / n bits per byte, the same quantity as
a model's (Shannon 1948; Deletang et al. 2024).
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zhixing.progress import Progress

PIECE = 2**20  # bytes handed to the compressor at once, between two lines of progress


def count_ids(chunks: Iterable[ArrayLike], vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs: chunks of ids, each (k,), -> counts (V,). Negative ids (no target) are left out."""
    counts = np.zeros(vocab_size, np.int64)
    for chunk in chunks:
        ids = np.asarray(chunk, np.int64).ravel()
        ids = ids[ids >= 0]
        if len(ids) and int(ids.max()) >= vocab_size:
            raise ValueError(f"expected ids below {vocab_size}, got {int(ids.max())}")
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def unigram_bits_per_byte(train_counts: ArrayLike, heldout_counts: ArrayLike, heldout_bytes: int) -> float:
    """Bits per byte of held-out text under p(v) = (c_v + 1) / (sum c + V), counted on the training text (Laplace).

    train_counts, heldout_counts: (V,) from `count_ids`; heldout_bytes: UTF-8 bytes that the held-out ids stand for.
    Count the same held-out targets as the model is scored on.
    """
    seen, held = np.asarray(train_counts, np.float64), np.asarray(heldout_counts, np.float64)
    if seen.ndim != 1 or seen.shape != held.shape:
        raise ValueError(f"expected two rows of equal length, got {seen.shape} and {held.shape}")
    if heldout_bytes < 1:
        raise ValueError(f"expected at least one byte, got {heldout_bytes}")
    bits = np.log2(seen.sum() + len(seen)) - np.log2(seen + 1)  # (V,)
    return float(held @ bits) / heldout_bytes


def xz_size(text: bytes) -> int:
    """Bytes of the .xz file that `xz -9 --threads=1` makes of the text (about 14 s for 25 MB, 674 MiB of memory)."""
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)
    size = 0
    with Progress("xz -9", total=len(text), unit="B") as progress:
        for begin in range(0, len(text), PIECE):
            size += len(compressor.compress(text[begin : begin + PIECE]))
            progress.update(begin + PIECE)
        return size + len(compressor.flush())


def xz_bits_per_byte(heldout: bytes, training: bytes = b"") -> float:
    """Bits per byte of `xz -9` on the held-out text, as the file it makes (the container's 60-odd bytes included).

    With `training`, what the held-out text adds to the file when it follows the training text: xz then has seen the
    language too, as far back as its 64 MiB window reaches.
    """
    if not heldout:
        raise ValueError("expected at least one byte of held-out text")
    before = xz_size(training) if training else 0
    return 8 * (xz_size(training + heldout) - before) / len(heldout)
