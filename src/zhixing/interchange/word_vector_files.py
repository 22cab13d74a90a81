"""Files of word vectors that other tools write and read.

    word2vec-text    "2 3\\n" how many words and numbers, then "the 0.1 -0.2 0.3\\n"; fastText's .vec is the same
    word2vec-binary  the same first line, then word, space, D little-endian float32 (word2vec.c adds a newline; a reader
                     takes either)
    glove            the text lines without the first line
    fasttext-bin     fastText's whole model: arguments, words and labels with their counts, input and output matrix

Everything is read a line, a record or a block at a time, and no size that a file claims takes memory before the file
has been found long enough to hold it. Words stand by frequency, the most frequent first, so the first N words are the N
most frequent ones. A word that holds spaces itself (GloVe 840B has some) is the line less its last numbers.

The layout of .bin is that of fastText's sources (Args::save, Dictionary::save, DenseMatrix::save, version 12):

    int32   magic 793712314, version
    int32   dim ws epoch minCount neg wordNgrams loss model bucket minn maxn lrUpdateRate; float64 t
    int32   entries, words, labels; int64 tokens, pruned
    entries of them: name, byte 0, int64 count, int8 0 = word or 1 = label
    bool    quantized; int64 rows, columns; float32 ... input: a row for each word, then one for each bucket
    bool    quantized; int64 rows, columns; float32 ... output: a row for each label (supervised) or each word
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zhixing.errors import InputError
from zhixing.files import fsync_path, temporary_beside
from zhixing.progress import Progress, say
from zhixing.vectors.keyed import END_OF_SENTENCE, KeyedVectors, Subwords, add_subwords, subword_ids

Floats = NDArray[np.float32]
Layout = Literal["word2vec-text", "word2vec-binary", "glove", "fasttext-vec", "fasttext-bin"]

LONGEST_LINE = 1 << 20  # bytes; longer is no line of word vectors
LARGEST_DIMENSION = 1 << 16
FASTTEXT_MAGIC = 793712314
FASTTEXT_VERSIONS = (11, 12)
BLOCK = 1 << 24  # bytes read or written at once
ROWS = 8192  # words whose subwords are added at once

_HEADER = re.compile(rb"[0-9]{1,18} [0-9]{1,18}[ \r]*\n?")


# --- any layout ----------------------------------------------------------------------------------------------------


def read_vectors(path: Path, layout: Layout | None = None, limit: int | None = None) -> KeyedVectors:
    """The words of a file and their vectors, only the first `limit` if given; the layout is seen from the content.

    A word that occurs twice keeps its first vector. InputError if the file is cut short, holds more or less than it
    says, or numbers that are not finite.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the first {limit} words cannot be read", mend="give a limit of 1 or more")
    layout = _layout(layout) if layout else guess_layout(path)
    if layout == "fasttext-bin":
        return _read_fasttext(path, limit, outputs=False).keyed()
    if layout == "word2vec-binary":
        return _read_binary(path, limit)
    return _read_text(path, limit, header=layout != "glove")


def write_vectors(path: Path, vectors: KeyedVectors, layout: Layout) -> None:
    """Write words and vectors in a layout, the most frequent word first; the file appears whole or not at all."""
    layout = _layout(layout)
    if layout == "fasttext-bin":
        write_fasttext(path, as_fasttext(vectors))
        return
    order = _by_frequency(vectors.counts, len(vectors))
    words = _writable(vectors.words, path, spaces=layout == "glove")
    n_words, d_model = vectors.vectors.shape
    row_format = " ".join(["%.9g"] * d_model)  # nine digits give back the same float32
    with _atomic_file(path) as file, Progress("writing word vectors", n_words) as progress:
        if layout != "glove":
            file.write(f"{n_words} {d_model}\n".encode())
        for done, row in enumerate(order.tolist()):
            vector = vectors.vectors[row]
            if layout == "word2vec-binary":
                file.write(words[row] + b" " + vector.astype("<f4").tobytes() + b"\n")
            else:
                file.write(words[row] + b" " + (row_format % tuple(vector.tolist())).encode() + b"\n")
            if done % 1000 == 0:
                progress.update(done)


def guess_layout(path: Path) -> Layout:
    """The layout that the first bytes of a file show."""
    with _open(path) as file:
        start = file.read(4)
        if start == struct.pack("<i", FASTTEXT_MAGIC):
            return "fasttext-bin"
        if start[:2] == b"\x1f\x8b" or start == b"\x28\xb5\x2f\xfd" or start[:2] == b"PK":
            raise InputError("the word vectors are compressed", where=str(path), mend="unpack the file first")
        file.seek(0)
        first = file.readline(LONGEST_LINE)
        if not _HEADER.fullmatch(first):
            return "glove"
        d_model = int(first.split()[1])
        line = file.readline(LONGEST_LINE)
    try:
        text = line.decode().rstrip(" \r\n")
    except UnicodeDecodeError:
        return "word2vec-binary"
    # float32 as bytes are no printable text, but for a few by chance: two for each number are asked for
    is_text = all(c.isprintable() or c in "\t\xa0\u3000" for c in text) and len(text) > 2 * d_model
    return "word2vec-text" if is_text else "word2vec-binary"


def _layout(layout: str) -> Layout:
    for known in get_args(Layout):
        if layout == known:
            return known  # type: ignore[no-any-return]
    raise InputError(
        f"there is no layout of word vectors named {layout!r}", mend=f"give one of {', '.join(get_args(Layout))}"
    )


def _by_frequency(counts: NDArray[np.int64] | None, n_words: int) -> NDArray[np.int64]:
    """Row numbers by falling count; words of equal count, or all if there are no counts, stay in their order."""
    return np.arange(n_words) if counts is None else np.argsort(-np.asarray(counts, np.float64), kind="stable")


def _writable(words: Sequence[str], path: Path, *, spaces: bool) -> list[bytes]:
    """UTF-8 of the words; InputError for one that a reader would not get back."""
    encoded = []
    for word in words:
        if not word or "\n" in word or "\r" in word or word != word.strip(" ") or (" " in word and not spaces):
            raise InputError(
                f"the word {word!r} cannot be written to this layout",
                where=str(path),
                why="a space or the end of a line ends a word there, and a word is not empty",
                mend="replace the spaces by _, or write glove (inner spaces only) or fasttext-bin",
            )
        encoded.append(_encode(word, path))
    return encoded


def _encode(word: str, path: Path) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError:
        raise InputError(f"the word {word!r} is no text", where=str(path), why="it holds half a character") from None


@contextlib.contextmanager
def _atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; it appears under its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb", buffering=1 << 20) as file:
            yield file
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise InputError("the word vectors cannot be read", where=str(path), why=str(error.strerror)) from None


# --- text ----------------------------------------------------------------------------------------------------------


def read_word_vectors(path: Path, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The vectors of `words` in a file of any layout -> matrix (V, D) fp32, found (V,) bool.

    A word that the file has not keeps a row of zeros and False; a fastText .bin has the n-grams of most. A word that it
    has twice keeps the first. Of a text file no more is kept than these words. Bytes that are not UTF-8 are an error
    there; so is a line with fewer numbers than the first one, or a wanted number that is not finite.
    """
    layout = guess_layout(path)
    if layout in ("word2vec-binary", "fasttext-bin"):
        vectors = read_vectors(path, layout)
        both = [vectors.find(word) for word in words]
        known = np.array([vector is not None for vector in both], dtype=bool)
        table = np.zeros((len(words), vectors.dimension), dtype=np.float32)
        for index, vector in enumerate(both):
            if vector is not None:
                table[index] = vector
        return torch.from_numpy(table), torch.from_numpy(known)
    rows: dict[str, list[int]] = {}
    for index, word in enumerate(words):
        rows.setdefault(word, []).append(index)
    matrix: Floats | None = None
    found = np.zeros(len(words), dtype=bool)
    with _open(path) as file, Progress("word vectors", _size(path)) as progress:
        for number, (where, word, fields) in enumerate(_text_rows(file, path, header=None)):
            if matrix is None:
                matrix = np.zeros((len(words), len(fields)), dtype=np.float32)
            if wanted := rows.pop(word, None):
                matrix[wanted] = _numbers(fields, where)
                found[wanted] = True
            if number % 1000 == 0:
                progress.update(file.tell(), f"{int(found.sum())} of {len(words)} words")
    assert matrix is not None, "a file without a row is an error"
    return torch.from_numpy(matrix), torch.from_numpy(found)


def _read_text(path: Path, limit: int | None, *, header: bool) -> KeyedVectors:
    words: list[str] = []
    seen: set[str] = set()
    matrix = np.empty((0, 0), np.float32)
    repeated = 0
    with _open(path) as file, Progress("reading word vectors", _size(path)) as progress:
        for number, (where, word, fields) in enumerate(_text_rows(file, path, header=header)):
            if not word:
                raise InputError("a line holds no word", where=where)
            if len(words) == limit:
                break
            if word in seen:
                repeated += 1
                continue
            if len(words) == len(matrix):  # grown in place, by half
                matrix.resize((min(len(words) * 3 // 2 + 1024, limit or 1 << 62), len(fields)), refcheck=False)
            matrix[len(words)] = _numbers(fields, where)
            words.append(word)
            seen.add(word)
            if number % 1000 == 0:
                progress.update(file.tell(), f"{len(words)} words")
    matrix.resize((len(words), matrix.shape[1]), refcheck=False)
    _say_repeated(path, repeated)
    return KeyedVectors(words, matrix)


def _text_rows(file: BinaryIO, path: Path, *, header: bool | None) -> Iterator[tuple[str, str, list[str]]]:
    """(where, word, its D numbers as text) of each line; header None: a first line of two whole numbers is one.

    InputError for a line of another length, and if there are not as many lines as the header says.
    """
    size = _size(path)
    d_model: int | None = None
    declared: int | None = None
    number = count = 0
    line = last = b""
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        last = line
        where = f"{path}:{number}"
        if len(line) > LONGEST_LINE:
            raise InputError(f"a line is longer than {LONGEST_LINE} bytes", where=where)
        if number == 1 and header is not False:
            if _HEADER.fullmatch(line):
                declared, d_model = (int(field) for field in line.split())
                _check_sizes(declared, d_model, 2, size, where)
                continue
            if header:
                raise InputError("the first line does not say how many words and numbers there are", where=where)
        text = _decode(line, where)
        if not text:
            continue
        fields = text.split(" ")
        if d_model is None:
            d_model = len(fields) - 1
            _check_sizes(1, d_model, 2, size, where)
        if len(fields) <= d_model:
            raise InputError(f"a line has {len(fields) - 1} numbers, {d_model} were expected", where=where)
        count += 1
        yield where, " ".join(fields[:-d_model]), fields[-d_model:]
    if d_model is None or not count:
        raise InputError("the file holds no word vectors", where=str(path))
    if declared is not None and count != declared:
        raise InputError(
            f"the file holds {count} word vectors, its first line says {declared}",
            where=str(path),
            why="it was cut short, or its first line is wrong",
        )
    if not last.endswith(b"\n"):
        say(f"{path}: the last line has no end; if the file was cut short, its last number is wrong")


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8").rstrip(" \r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            "a line of the word vectors is not UTF-8",
            where=f"{where}, byte {error.start} of the line",
            mend="give the text form of the vectors, not the binary one",
        ) from None


def _check_sizes(n_words: int, d_model: int, least: int, size: int, where: str) -> None:
    """Refuse sizes that the file is too short to hold, before memory is taken; a number takes `least` bytes."""
    if not 0 < d_model <= LARGEST_DIMENSION or n_words < 1 or n_words * (1 + d_model * least) > size:
        raise InputError(
            f"{n_words} vectors of {d_model} numbers are not possible here",
            where=where,
            why=f"the file has {size} bytes",
        )


def _numbers(fields: list[str], where: str) -> Floats:
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(field) for field in fields], dtype=np.float64).astype(np.float32)
    except ValueError as error:
        raise InputError(f"a line holds something that is no number ({error})", where=where) from None
    if not np.isfinite(vector).all():
        raise InputError("a line holds a number that is not finite in 32 bits", where=where)
    return vector


def _say_repeated(path: Path, repeated: int) -> None:
    if repeated:
        say(f"{path}: {repeated} lines repeat an earlier word and were left out")


def _size(path: Path) -> int:
    return path.stat().st_size


# --- binary --------------------------------------------------------------------------------------------------------


class _Bytes:
    """A file read in pieces, each checked to be there; the position is known for messages and progress."""

    def __init__(self, file: BinaryIO, path: Path, progress: Progress) -> None:
        self.file, self.path, self.progress = file, path, progress
        self.size = _size(path)
        self.buffer, self.at, self.before = b"", 0, 0  # before: the file's position of buffer[0]
        self.not_utf8 = 0

    @property
    def position(self) -> int:
        return self.before + self.at

    @property
    def where(self) -> str:
        return f"{self.path}, byte {self.position}"

    def _fill(self, count: int) -> None:
        """At least `count` unread bytes in the buffer, or all that are left."""
        if len(self.buffer) - self.at < count:
            rest = self.buffer[self.at :]
            self.before += self.at
            self.buffer, self.at = rest + self.file.read(max(count, BLOCK // 16) - len(rest)), 0
            self.progress.update(self.position)

    def take(self, count: int) -> bytes:
        self._fill(count)
        piece = self.buffer[self.at : self.at + count]
        if len(piece) < count:
            raise self.cut_short()
        self.at += count
        return piece

    def until(self, end: bytes, most: int) -> bytes:
        """Up to the next byte `end`, which is skipped."""
        for count in (256, most):
            self._fill(count)
            found = self.buffer.find(end, self.at, self.at + count)
            if found >= 0:
                piece = self.buffer[self.at : found]
                self.at = found + 1
                return piece
        if self.position + most > self.size:
            raise self.cut_short()
        raise InputError(f"a word is longer than {most} bytes", where=self.where)

    def rest(self) -> int:
        """How many bytes are left."""
        return self.size - self.position

    def skip(self, count: int) -> None:
        if count > self.rest():
            raise self.cut_short()
        self.before, self.buffer, self.at = self.position + count, b"", 0
        self.file.seek(self.before)

    def floats(self, rows: int, columns: int) -> Floats:
        """A matrix of little-endian float32; InputError if one is not finite."""
        if rows * columns * 4 > self.rest():
            raise self.cut_short()
        matrix = np.empty((rows, columns), "<f4")
        self.skip(0)
        step = max(1, BLOCK // max(1, columns * 4))
        for begin in range(0, rows, step):
            block = matrix[begin : begin + step]
            if self.file.readinto(block.reshape(-1).view(np.uint8)) != block.nbytes:  # type: ignore[attr-defined]
                raise self.cut_short()
            if not np.isfinite(block).all():
                row = begin + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise InputError(f"row {row} of a matrix holds a number that is not finite", where=self.where)
            self.before += block.nbytes
            self.progress.update(self.position)
        return matrix.astype(np.float32, copy=False)

    def word(self, raw: bytes) -> str:
        """Text of a word; bytes that are not UTF-8 become \\xe4 and the like, and are counted."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.not_utf8 += 1
            return raw.decode(errors="backslashreplace")

    def say_not_utf8(self) -> None:
        if self.not_utf8:
            say(
                f"{self.path}: {self.not_utf8} words are not UTF-8; their other bytes are written as \\x and two digits"
            )

    def cut_short(self) -> InputError:
        return InputError(
            "the file of word vectors ends too early",
            where=self.where,
            why=f"it has {self.size} bytes; it was cut short, or its header is wrong",
        )


def _read_binary(path: Path, limit: int | None) -> KeyedVectors:
    with _open(path) as file, Progress("reading word vectors", _size(path)) as progress:
        data = _Bytes(file, path, progress)
        first = data.until(b"\n", 64)
        if not _HEADER.fullmatch(first + b"\n"):
            raise InputError("the first line does not say how many words and numbers there are", where=f"{path}:1")
        n_words, d_model = (int(field) for field in first.split())
        _check_sizes(n_words, d_model, 4, data.size, f"{path}:1")
        kept = min(n_words, limit or n_words)
        matrix = np.empty((kept, d_model), np.float32)
        words: dict[str, None] = {}
        for number in range(n_words):
            raw = data.until(b" ", LONGEST_LINE).lstrip(b"\n")
            if not raw:
                raise InputError(f"word {number + 1} is empty", where=data.where)
            word = data.word(raw)
            row = data.take(4 * d_model)
            if word not in words:
                matrix[len(words)] = vector = np.frombuffer(row, "<f4")
                if not np.isfinite(vector).all():
                    raise InputError(f"the vector of {word!r} is not finite", where=data.where)
                words[word] = None
                if len(words) == kept and kept < n_words:
                    data.say_not_utf8()
                    return KeyedVectors(list(words), matrix)
        if data.rest() and data.take(data.rest()).strip(b"\r\n "):
            raise InputError(f"there is more in the file after its {n_words} words", where=data.where)
        data.say_not_utf8()
    _say_repeated(path, n_words - len(words))
    return KeyedVectors(list(words), matrix[: len(words)])


# --- fastText ------------------------------------------------------------------------------------------------------

LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
MODELS = {1: "cbow", 2: "sg", 3: "sup"}


@dataclass(frozen=True)
class FastTextArguments:
    """fastText's arguments, as a .bin file keeps them (their names there in brackets where they differ)."""

    dim: int
    window: int = 5  # ws
    epochs: int = 5
    min_count: int = 1
    negatives: int = 5
    word_ngrams: int = 1
    loss: str = "ns"  # hs, ns, softmax or ova
    model: str = "sg"  # cbow, sg or sup
    buckets: int = 0
    min_n: int = 0  # characters of the shortest n-gram (minn)
    max_n: int = 0  # of the longest; 0: no n-grams of characters (maxn)
    lr_update_rate: int = 100
    sample: float = 1e-4  # t


@dataclass(frozen=True)
class FastTextModel:
    """All that a .bin file holds. V words, L labels (0 unless supervised), B buckets, D numbers.

    A bucket holds n-grams of characters, and of words too in a supervised model. Labels carry their prefix.
    """

    arguments: FastTextArguments
    words: list[str]
    counts: NDArray[np.int64]  # (V,)
    labels: list[str]
    label_counts: NDArray[np.int64]  # (L,)
    n_tokens: int
    inputs: Floats  # (V + B, D)
    outputs: Floats | None  # (L or V, D); None where it was not read

    def keyed(self) -> KeyedVectors:
        """The words' vectors as fastText gives them, each the mean of its own row and those of its n-grams."""
        n_words, args = len(self.words), self.arguments
        vectors = self.inputs[:n_words].copy()
        subwords = None
        if args.max_n > 0 and args.buckets > 0:
            subwords = Subwords(self.inputs[n_words:], args.min_n, args.max_n)
            with Progress("adding subwords", n_words) as progress:
                for begin in range(0, n_words, ROWS):
                    block = vectors[begin : begin + ROWS]
                    found = add_subwords(self.words[begin : begin + ROWS], subwords, block)
                    block *= (1 / (1 + found)).astype(np.float32)[:, None]
                    progress.update(begin)
        return KeyedVectors(self.words, vectors, self.counts, subwords)

    @cached_property
    def index(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    def input_rows(self, text: str) -> list[int]:
        """Rows of `inputs` of one line of text, as fastText's classifier takes them: words, n-grams, then word n-grams.

        The line ends with "</s>", which is a word like any other; what starts with "__label__" is no word.
        """
        args, rows, hashes = self.arguments, [], []
        for token in [*filter(None, re.split(r"[ \n\r\t\v\f\0]+", text)), END_OF_SENTENCE]:
            row = self.index.get(token)
            if row is not None:
                rows.append(row)
            elif token.startswith("__label__"):
                continue
            ids, _ = subword_ids([token], args.min_n, args.max_n, args.buckets if args.max_n > 0 else 0)
            rows += (len(self.words) + ids.astype(np.int64)).tolist()
            hashes.append(_signed_hash(token))
        if args.buckets > 0:
            for first, start in enumerate(hashes):
                value = start & _64_BITS
                for other in hashes[first + 1 : first + args.word_ngrams]:
                    value = (value * 116049371 + other) & _64_BITS
                    rows.append(len(self.words) + value % args.buckets)
        return rows

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """The probability of each label (L,) for one line of text; only of a supervised model."""
        if self.arguments.model != "sup" or self.outputs is None:
            raise InputError("the fastText model has no labels", why=f"it is of the kind {self.arguments.model}")
        rows = self.input_rows(text)
        hidden = self.inputs[rows].mean(axis=0, dtype=np.float64) if rows else np.zeros(self.arguments.dim)
        logits = self.outputs.astype(np.float64) @ hidden
        if self.arguments.loss == "softmax":
            powers = np.exp(logits - logits.max())
            return np.asarray(powers / powers.sum())
        yes = 1 / (1 + np.exp(-logits))
        if self.arguments.loss != "hs":
            return np.asarray(yes)
        return _leaf_probabilities(yes, self.label_counts)


_64_BITS = 2**64 - 1


def _signed_hash(word: str) -> int:
    """fastText's hash of a whole word as it keeps it for word n-grams: 32 bits with a sign."""
    value = 2166136261
    for byte in word.encode(errors="surrogatepass"):
        value = ((value ^ (byte | 0xFFFFFF00 if byte >= 128 else byte)) * 16777619) & 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


def _leaf_probabilities(yes: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hierarchical softmax: the product of the choices on the way to each leaf of fastText's Huffman tree.

    yes: (L,), the probability of the right branch at inner node L + k is yes[k]. Counts fall.
    """
    n = len(counts)
    weights = [*counts.tolist(), *[10**15] * (n - 1)]
    children = []
    leaf, node = n - 1, n
    for inner in range(n, 2 * n - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(node)
                node += 1
        weights[inner] = weights[pair[0]] + weights[pair[1]]
        children.append(pair)
    probability = np.ones(2 * n - 1)
    for inner in range(2 * n - 2, n - 1, -1):
        left, right = children[inner - n]
        probability[left] = probability[inner] * (1 - yes[inner - n])
        probability[right] = probability[inner] * yes[inner - n]
    return probability[:n]


def as_fasttext(vectors: KeyedVectors) -> FastTextModel:
    """A skip-gram model whose word vectors are these: each word's own row is what its n-grams leave of its vector.

    The output matrix is zero, since nothing is known of it; words without counts get the count 1.
    """
    order = _by_frequency(vectors.counts, len(vectors))
    words = [vectors.words[row] for row in order]
    rows = vectors.vectors[order]
    n_words, d_model = rows.shape
    subwords = vectors.subwords
    if subwords is None:
        arguments = FastTextArguments(d_model)
        inputs = rows
    else:
        arguments = FastTextArguments(d_model, buckets=len(subwords.matrix), min_n=subwords.min_n, max_n=subwords.max_n)
        for begin in range(0, n_words, ROWS):
            block = rows[begin : begin + ROWS]
            sums = np.zeros_like(block)
            found = add_subwords(words[begin : begin + ROWS], subwords, sums)
            block *= (1 + found).astype(np.float32)[:, None]
            block -= sums
        inputs = np.concatenate([rows, subwords.matrix])
    counts = np.ones(n_words, np.int64) if vectors.counts is None else np.asarray(vectors.counts, np.int64)[order]
    nothing = np.empty(0, np.int64)
    return FastTextModel(arguments, words, counts, [], nothing, int(counts.sum()), inputs, np.zeros_like(rows))


def read_fasttext(path: Path) -> FastTextModel:
    """A fastText .bin: skip-gram, CBOW or supervised, not quantized. InputError if it is damaged or of another kind."""
    return _read_fasttext(path, None, outputs=True)


def _read_fasttext(path: Path, limit: int | None, *, outputs: bool) -> FastTextModel:
    with _open(path) as file, Progress("reading a fastText model", _size(path)) as progress:
        data = _Bytes(file, path, progress)
        magic, version = struct.unpack("<2i", data.take(8))
        if magic != FASTTEXT_MAGIC or version not in FASTTEXT_VERSIONS:
            raise InputError(
                "the file is no fastText model that can be read",
                where=f"{path}, byte 0",
                why=f"magic {magic} and version {version}, expected {FASTTEXT_MAGIC} and {FASTTEXT_VERSIONS[-1]}",
            )
        arguments = _read_arguments(data, version)
        words, counts, labels, label_counts, n_tokens = _read_dictionary(data)
        kept = min(len(words), limit or len(words))
        _read_matrix_header(data, len(words) + arguments.buckets, arguments.dim)
        if kept == len(words):
            inputs = data.floats(kept + arguments.buckets, arguments.dim)
        else:
            first = data.floats(kept, arguments.dim)
            data.skip((len(words) - kept) * arguments.dim * 4)
            inputs = np.concatenate([first, data.floats(arguments.buckets, arguments.dim)])
        n_outputs = len(labels) if arguments.model == "sup" else len(words)
        _read_matrix_header(data, n_outputs, arguments.dim)
        matrix = None
        if outputs:
            matrix = data.floats(n_outputs, arguments.dim)
        else:
            data.skip(n_outputs * arguments.dim * 4)
        if data.rest():
            raise InputError("there is more in the file after the output matrix", where=data.where)
        data.say_not_utf8()
    return FastTextModel(arguments, words[:kept], counts[:kept], labels, label_counts, n_tokens, inputs, matrix)


def _read_arguments(data: _Bytes, version: int) -> FastTextArguments:
    where = data.where
    *numbers, t = struct.unpack("<12id", data.take(56))
    dim, ws, epoch, min_count, neg, word_ngrams, loss, model, bucket, minn, maxn, rate = numbers
    if (
        not 0 < dim <= LARGEST_DIMENSION
        or loss not in LOSSES
        or model not in MODELS
        or bucket < 0
        or not 0 <= word_ngrams <= 1000
        or not 0 <= maxn <= 1000
        or minn < 0
    ):
        raise InputError(
            "the arguments of the fastText model make no sense",
            where=where,
            why=f"dim {dim}, loss {loss}, model {model}, bucket {bucket}, wordNgrams {word_ngrams}, n {minn} to {maxn}",
        )
    if version == 11 and MODELS[model] == "sup":
        maxn = 0  # it wrote a number there that it did not use
    return FastTextArguments(
        dim, ws, epoch, min_count, neg, word_ngrams, LOSSES[loss], MODELS[model], bucket, minn, maxn, rate, t
    )


def _read_dictionary(data: _Bytes) -> tuple[list[str], NDArray[np.int64], list[str], NDArray[np.int64], int]:
    where = data.where
    size, n_words, n_labels, n_tokens, pruned = struct.unpack("<3i2q", data.take(28))
    if n_words < 0 or n_labels < 0 or size != n_words + n_labels or size * 10 > data.rest():
        raise InputError(
            f"a dictionary of {n_words} words and {n_labels} labels, {size} in all, is not possible here",
            where=where,
            why=f"{data.rest()} bytes follow",
        )
    if pruned >= 0:
        raise _quantized(where)
    names: dict[str, None] = {}
    counts = np.empty(size, np.int64)
    for number in range(size):
        where = data.where
        name = data.word(data.until(b"\0", LONGEST_LINE))
        count, kind = struct.unpack("<qb", data.take(9))
        if not name or name in names or count < 0 or kind != (number >= n_words):
            raise InputError(
                f"entry {number} of the dictionary makes no sense",
                where=where,
                why=f"name {name!r}, count {count}, kind {kind}: words come first, then labels, each once",
            )
        names[name] = None
        counts[number] = count
    listed = list(names)
    return listed[:n_words], counts[:n_words], listed[n_words:], counts[n_words:], n_tokens


def _read_matrix_header(data: _Bytes, rows: int, columns: int) -> None:
    where = data.where
    quantized = data.take(1)
    if quantized == b"\1":
        raise _quantized(where)
    found = struct.unpack("<2q", data.take(16))
    if quantized != b"\0" or found != (rows, columns):
        raise InputError(
            "a matrix of the fastText model has another size than its dictionary",
            where=where,
            why=f"{found[0]} by {found[1]}, expected {rows} by {columns}",
        )
    if rows * columns * 4 > data.rest():
        raise data.cut_short()


def _quantized(where: str) -> InputError:
    return InputError(
        "the fastText model is quantized",
        where=where,
        why="its matrices are kept as codes, which are not read here",
        mend="give the .bin from before `fasttext quantize` (a .ftz is always quantized)",
    )


def write_fasttext(path: Path, model: FastTextModel) -> None:
    """Write a .bin that fastText and gensim load; the file appears whole or not at all."""
    args, n_words, n_labels = model.arguments, len(model.words), len(model.labels)
    n_outputs = n_labels if args.model == "sup" else n_words
    if model.outputs is None:
        raise InputError("the fastText model has no output matrix", mend="read it with read_fasttext")
    for name, matrix, rows in (("input", model.inputs, n_words + args.buckets), ("output", model.outputs, n_outputs)):
        if matrix.shape != (rows, args.dim):
            raise ValueError(f"expected an {name} matrix of {rows} by {args.dim}, got {matrix.shape}")
    if len(model.counts) != n_words or len(model.label_counts) != n_labels:
        raise ValueError(f"expected {n_words} and {n_labels} counts")
    losses, models = ({name: number for number, name in names.items()} for names in (LOSSES, MODELS))
    with _atomic_file(path) as file:
        file.write(struct.pack("<2i", FASTTEXT_MAGIC, FASTTEXT_VERSIONS[-1]))
        file.write(
            struct.pack(
                "<12id",
                *(args.dim, args.window, args.epochs, args.min_count, args.negatives, args.word_ngrams),
                *(losses[args.loss], models[args.model], args.buckets, args.min_n, args.max_n, args.lr_update_rate),
                args.sample,
            )
        )
        file.write(struct.pack("<3i2q", n_words + n_labels, n_words, n_labels, model.n_tokens, -1))
        for kind, names, counts in ((0, model.words, model.counts), (1, model.labels, model.label_counts)):
            for name, count in zip(names, counts.tolist(), strict=True):
                if not name or "\0" in name:
                    raise InputError(f"the word {name!r} cannot be written to a fastText model", where=str(path))
                file.write(_encode(name, path) + b"\0" + struct.pack("<qb", count, kind))
        size = model.inputs.nbytes + model.outputs.nbytes
        with Progress("writing a fastText model", size) as progress:
            done = 0
            for matrix in (model.inputs, model.outputs):
                file.write(struct.pack("<?2q", False, *matrix.shape))
                step = max(1, BLOCK // (4 * args.dim))
                for begin in range(0, len(matrix), step):
                    done += file.write(np.ascontiguousarray(matrix[begin : begin + step], "<f4").data)
                    progress.update(done)
