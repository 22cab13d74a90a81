"""Word vectors in text files: GloVe's, and word2vec's, which has one line more.

    2 3                      word2vec only: how many words, how many numbers
    the 0.1 -0.2 0.3
    of 0.4 0.5 -0.6

Read a line at a time, so that a file larger than memory is no trouble: only the rows of the asked vocabulary are kept.
A word that holds spaces itself (GloVe 840B has some) is the line less its last numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.progress import Progress

LONGEST_LINE = 1 << 20  # bytes; longer is no line of word vectors
LARGEST_DIMENSION = 1 << 16


def read_word_vectors(path: Path, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The vectors of `words` -> matrix (V, D) fp32, found (V,) bool.

    A word that the file has not keeps a row of zeros and False. A word that it has twice keeps the first. Bytes that
    are not UTF-8 are an error; so is a line with fewer numbers than the first one, or a wanted number that is not
    finite.
    """
    rows: dict[str, list[int]] = {}
    for index, word in enumerate(words):
        rows.setdefault(word, []).append(index)
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise InputError("the word vectors cannot be read", where=str(path), why=str(error.strerror)) from None
    matrix: np.ndarray | None = None
    found = np.zeros(len(words), dtype=bool)
    with file, Progress("word vectors", size) as progress:
        number = done = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            done += len(line)
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise InputError(f"a line is longer than {LONGEST_LINE} bytes", where=where)
            text = _decode(line, where)
            if not text:
                continue
            fields = text.split(" ")
            if matrix is None:
                if number == 1 and len(fields) == 2 and all(re.fullmatch(r"[0-9]{1,18}", f) for f in fields):
                    matrix = np.zeros((len(words), _dimension(int(fields[1]), size, where)), dtype=np.float32)
                    continue
                matrix = np.zeros((len(words), _dimension(len(fields) - 1, size, where)), dtype=np.float32)
            d_model = matrix.shape[1]
            if len(fields) <= d_model:
                raise InputError(f"a line has {len(fields) - 1} numbers, {d_model} were expected", where=where)
            wanted = rows.pop(" ".join(fields[:-d_model]), None)
            if wanted:
                matrix[wanted] = _numbers(fields[-d_model:], where)
                found[wanted] = True
            if number % 1000 == 0:
                progress.update(done, f"{int(found.sum())} of {len(words)} words")
    if matrix is None:
        raise InputError("the file holds no word vectors", where=str(path))
    return torch.from_numpy(matrix), torch.from_numpy(found)


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8").rstrip(" \r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            "a line of the word vectors is not UTF-8",
            where=f"{where}, byte {error.start} of the line",
            mend="give the text form of the vectors, not the binary one",
        ) from None


def _dimension(d_model: int, size: int, where: str) -> int:
    """Refuse a dimension that the file is too short to hold, before memory is taken for it."""
    if not 0 < d_model <= min(size // 2, LARGEST_DIMENSION):
        raise InputError(f"a vector of {d_model} numbers is not possible here", where=where)
    return d_model


def _numbers(fields: list[str], where: str) -> np.ndarray:
    try:
        vector = np.array([float(field) for field in fields], dtype=np.float32)
    except ValueError as error:
        raise InputError(f"a line holds something that is no number ({error})", where=where) from None
    if not np.isfinite(vector).all():
        raise InputError("a line holds a number that is not finite in 32 bits", where=where)
    return vector
