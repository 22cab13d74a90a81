"""GloVe: word vectors from how often words stand near each other (Pennington, Socher & Manning 2014).

    X_ij = sum of 1/d over all places where words i and j stand d <= window words apart          section 4.2
    J    = 1/2 sum_ij f(X_ij) (w_i . c_j + b_i + d_j - log X_ij)^2                                equation 8
    f(x) = min(1, (x / x_max)^alpha)                                                             equation 9
    a word's vector is w_i + c_i                                                                 section 4.2

learnt by AdaGrad over the X_ij that are not zero, in a new random order each epoch. As in the authors' program, and not
in Duchi et al. 2011, the squares summed start at 1 and are those of the gradient times the learning rate; and the 1/2
of J is theirs, the paper has none.

Counting. A hash table in memory takes the sums; when it is full it is written to disk, sorted, and the sorted parts are
merged a range of keys at a time: memory stays bounded whatever the text. Sums are whole numbers (2^30 / d), so that
they do not depend on the order, the threads or the memory.

    window 2, "a b a":   X_ab = 1 + 1 = 2,  X_aa = 1/2 from each side = 1

Training. The pairs (i, j) lie on disk in P x P blocks, block (i mod P, j mod P), each cut into buckets that fit in
memory. Blocks of one diagonal share no row and no column, so threads learn from them side by side without locks, and a
row that all words meet, such as that of "the", does not go to and fro between the cores (Gemulla et al. 2011):

    lock-free       threads take the buckets of a diagonal as they come; two of one block may be learnt from at the same
                    time and change the same rows (Hogwild, Recht et al. 2011)
    deterministic   one bucket of each block at a time, then the next of each: the result is the same, bit for bit, with
                    any number of threads

`glove_loss` and `glove_reference` are the equations in torch, one pair at a time; tests hold the compiled loop to them.
Shapes: V words, D d_model, N pairs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from zhixing.cores import default_threads
from zhixing.errors import InputError
from zhixing.files import atomic_dir, atomic_write, clear_leftovers, remove_tree, set_aside, verify_manifest
from zhixing.progress import Progress, quantity, say

Array = Any  # np.ndarray inside compiled code
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

STRIPES = 16  # P: more threads than that have nothing to do where a block has one bucket
BUCKET = 1 << 22  # pairs that a thread learns from at once: 64 MiB with their order
UNIT = 1 << 30  # a pair of neighbours counts this much
GATHER = 1 << 20  # words counted at once by a thread
FAST = {"reassoc", "contract", "nsz", "arcp"}  # inf and NaN stay themselves

COUNTS, STATES = "cooccurrences", "states"  # in the folder of a training
_STATE_NAME = re.compile(r"^part-\d{9}$")


@dataclass(frozen=True)
class GloveSettings:
    """How GloVe counts and learns. The defaults are those of the paper for small texts and its program."""

    d_model: int = 100
    window: int = 10  # words to each side
    x_max: float = 100.0  # a pair seen this often or more has the full weight
    alpha: float = 0.75
    learning_rate: float = 0.05
    epochs: int = 15
    threads: int | Literal["auto"] = "auto"  # auto: one for each core
    deterministic: bool = False
    seed: int = 0
    memory_mb: int = 1024  # for counting; training takes 64 MiB a thread besides the matrices
    save_seconds: float = 300.0  # between two states, where there is a folder for them

    def check(self) -> None:
        """InputError for the first setting that cannot be."""
        limits: tuple[tuple[str, float, float], ...] = (
            ("d_model", 1, 1 << 16),
            ("window", 1, 1000),
            ("x_max", 1e-6, 1e12),
            ("alpha", 0, 10),
            ("learning_rate", 1e-12, 1e6),
            ("epochs", 1, 1_000_000),
            ("seed", 0, (1 << 63) - 1),
            ("memory_mb", 16, 1 << 24),
            ("save_seconds", 0, float("inf")),
        )
        for name, least, most in limits:
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"{name} = {value} is not possible", mend=f"give {least:g} to {most:g}")
        if self.threads != "auto" and not 1 <= self.threads <= 1024:
            raise InputError(f"threads = {self.threads} is not possible", mend="give 1 to 1024, or auto")

    @property
    def n_threads(self) -> int:
        """Threads, resolved."""
        return default_threads() if self.threads == "auto" else self.threads


@dataclass(frozen=True)
class TrainedGlove:
    """vectors (V, D) = words + contexts; `losses` is the mean of f(X) (...)^2 / 2 over the pairs of each epoch."""

    vectors: Floats
    words: Floats  # (V, D)
    contexts: Floats  # (V, D)
    losses: list[float]
    n_pairs: int
    seconds: float  # of learning, over all sittings; counting is apart


# --- the equations, one pair at a time -----------------------------------------------------------------------------


def glove_loss(w: Tensor, c: Tensor, b: Tensor, d: Tensor, x: Tensor, settings: GloveSettings) -> Tensor:
    """J over pairs: w, c (N, D), b, d, x (N,) -> a scalar. Equation 8 with its authors' 1/2."""
    weight = (x / settings.x_max).pow(settings.alpha).clamp(max=1)
    return 0.5 * (weight * ((w * c).sum(dim=1) + b + d - x.log()).square()).sum()


def glove_reference(
    matrices: Sequence[Tensor], pairs: Iterable[tuple[int, int, float]], settings: GloveSettings
) -> float:
    """One pass of AdaGrad by autograd over `pairs` (i, j, x) in their order; the sum of the losses.

    matrices: words (V, D), contexts (V, D), their biases (V,), (V,), and the sums of squares of the four, changed in
    place. The slow and plain way that `_learn` must agree with.
    """
    parameters, squares = matrices[:4], matrices[4:]
    total = 0.0
    for i, j, x in pairs:
        rows = [p[k].detach().clone().requires_grad_() for p, k in zip(parameters, (i, j, i, j), strict=True)]
        loss = glove_loss(rows[0][None], rows[1][None], rows[2][None], rows[3][None], torch.tensor([x]), settings)
        gradients = torch.autograd.grad(loss, rows)
        total += loss.item()
        for parameter, square, gradient, k in zip(parameters, squares, gradients, (i, j, i, j), strict=True):
            step = settings.learning_rate * gradient
            parameter[k] -= step / square[k].sqrt()
            square[k] += step**2
    return total


# --- counting ------------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _count(
    ids: Array, first: int, last: int, window: int, n_words: int, keys: Array, sums: Array, filled: Array
) -> int:
    """Add the pairs whose right word is at first..last-1 to the table; the place where it was full, or `last`.

    A negative id ends a sentence. keys: open addressing, -1 is free, i * V + j with i <= j.
    """
    mask = len(keys) - 1
    room = len(keys) // 8 * 5 - window
    used = filled[0]
    for right in range(first, last):
        word = np.int64(ids[right])
        if word < 0:
            continue
        if used > room:
            filled[0] = used
            return right
        for left in range(right - 1, max(right - window, 0) - 1, -1):
            other = np.int64(ids[left])
            if other < 0:
                break
            weight = np.int64(UNIT // (right - left))
            key = word * n_words + other if word < other else other * n_words + word
            if word == other:
                weight *= 2
            mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
            slot = np.int64((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(5)) & mask
            while keys[slot] != key:
                if keys[slot] < 0:
                    keys[slot] = key
                    used += 1
                    break
                slot = (slot + 1) & mask
            sums[slot] += weight
    filled[0] = used
    return last


class _Table:
    """A hash table of pair sums that is written out, sorted, when it is full."""

    def __init__(self, size: int, folder: Path, name: str) -> None:
        self.keys = np.full(size, -1, np.int64)
        self.sums = np.zeros(size, np.int64)
        self.filled = np.zeros(1, np.int64)
        self.folder, self.name = folder, name
        self.parts: list[Path] = []

    def count(self, ids: NDArray[np.int32], first: int, last: int, window: int, n_words: int) -> None:
        while (first := _count(ids, first, last, window, n_words, self.keys, self.sums, self.filled)) < last:
            self.write()

    def write(self) -> None:
        """PART.keys and PART.sums; the table is empty after it."""
        if not self.filled[0]:
            return
        used = np.flatnonzero(self.keys >= 0)
        used = used[np.argsort(self.keys[used])]
        part = self.folder / f"{self.name}-{len(self.parts)}"
        self.keys[used].tofile(part.with_suffix(".keys"))
        self.sums[used].tofile(part.with_suffix(".sums"))
        self.parts.append(part)
        self.keys.fill(-1)
        self.sums.fill(0)
        self.filled[0] = 0


@dataclass(frozen=True)
class Cooccurrences:
    """X on disk: `rows`, `columns`, `values` (N,) mapped, both (i, j) and (j, i), by bucket.

    Bucket k of block (p, q) is the pairs offsets[m] .. offsets[m + 1], m = (p P + q) n_buckets + k.
    """

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: Floats
    offsets: Ints
    n_buckets: int
    n_words: int


def count_cooccurrences(
    sentences: Iterable[NDArray[np.int32]], n_words: int, folder: Path, settings: GloveSettings, total: int = 0
) -> Cooccurrences:
    """Count the pairs of a text into `folder`, which must not exist; it appears when all is counted.

    sentences: arrays of ids 0..V-1, of any length; no pair reaches over the end of an array or over a negative id.
    total: words to come, for the progress.
    """
    settings.check()
    with atomic_dir(folder, {"kind": "cooccurrences", "n_words": n_words, "window": settings.window}) as temporary:
        work = temporary / "work"
        work.mkdir()
        parts = _count_parts(sentences, n_words, work, settings, total)
        if not parts:
            raise InputError("no two words stand near each other", mend="give a longer text, or a lower min_count")
        keys, sums = _merge(parts, work, settings)
        _write_buckets(keys, sums, n_words, temporary)
        del keys, sums
        shutil.rmtree(work)
    return open_cooccurrences(folder)


def _count_parts(
    sentences: Iterable[NDArray[np.int32]], n_words: int, work: Path, settings: GloveSettings, total: int
) -> list[Path]:
    n_threads = settings.n_threads
    size = 1 << max(12, int(np.log2(settings.memory_mb * 2**20 / 3 / 16 / n_threads)))
    size = max(size, 1 << int(np.log2(settings.window * 16)) + 1)
    tables = [_Table(size, work, f"thread-{t}") for t in range(n_threads)]
    done = 0
    with Progress("counting pairs of words", total or None, "words") as progress, ThreadPoolExecutor(n_threads) as pool:
        for ids in _gather(sentences, n_words, GATHER * n_threads):
            for first in range(0, len(ids), GATHER * n_threads):
                last = min(first + GATHER * n_threads, len(ids))
                cuts = np.linspace(first, last, n_threads + 1).astype(int).tolist()

                def work_of(t: int, ids: NDArray[np.int32] = ids, cuts: list[int] = cuts) -> None:
                    tables[t].count(ids, cuts[t], cuts[t + 1], settings.window, n_words)

                for _ in pool.map(work_of, range(n_threads)):
                    pass
                done += last - first
                progress.update(done)
        for _ in pool.map(_Table.write, tables):
            pass
    return [part for table in tables for part in table.parts]


def _gather(sentences: Iterable[NDArray[np.int32]], n_words: int, size: int) -> Iterator[NDArray[np.int32]]:
    """Short arrays joined with -1 between them; ids checked."""
    held: list[NDArray[np.int32]] = []
    length = 0
    end = np.array([-1], np.int32)
    for ids in sentences:
        ids = np.asarray(ids)
        if ids.dtype != np.int32 or ids.ndim != 1:
            raise ValueError(f"expected rows of int32, got {ids.dtype} of shape {ids.shape}")
        for first in range(0, len(ids), GATHER):
            if ids[first : first + GATHER].max() >= n_words:
                raise ValueError(f"expected ids below {n_words}, got {ids[first : first + GATHER].max()}")
        if len(ids) >= size:
            yield ids
            continue
        held += [ids, end]
        length += len(ids) + 1
        if length >= size:
            yield np.concatenate(held)
            held, length = [], 0
    if held:
        yield np.concatenate(held)


def _merge(parts: Sequence[Path], work: Path, settings: GloveSettings) -> tuple[Ints, Ints]:
    """Sorted keys of all parts, each once, and their sums: mapped files of `work`. The parts are deleted."""
    maps = [tuple(np.memmap(part.with_suffix(end), np.int64, "r") for end in (".keys", ".sums")) for part in parts]
    if len(parts) == 1:
        return maps[0][0], maps[0][1]
    most = int(settings.memory_mb * 2**20 / 96)  # pairs held at once, with what sorting them takes
    step = max(1, most // (2 * len(parts)))
    samples = np.sort(np.concatenate([keys[::step] for keys, _ in maps]))
    bounds = np.unique(samples[:: len(parts)]).tolist()[1:] + [None]
    begins = [0] * len(maps)
    size = sum(len(keys) for keys, _ in maps)
    with (
        (work / "all.keys").open("wb") as key_file,
        (work / "all.sums").open("wb") as sum_file,
        Progress("merging", size, "pairs") as progress,
    ):
        for bound in bounds:
            ends = [len(k) if bound is None else int(np.searchsorted(k, bound)) for k, _ in maps]
            spans = [slice(b, e) for b, e in zip(begins, ends, strict=True)]
            keys = np.concatenate([k[span] for (k, _), span in zip(maps, spans, strict=True)])
            sums = np.concatenate([s[span] for (_, s), span in zip(maps, spans, strict=True)])
            begins = ends
            if len(keys):
                order = np.argsort(keys, kind="stable")
                keys, sums = keys[order], sums[order]
                starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
                keys[starts].tofile(key_file)
                np.add.reduceat(sums, starts).tofile(sum_file)
            progress.update(sum(ends))
    del maps
    for part in parts:
        for end in (".keys", ".sums"):
            part.with_suffix(end).unlink()
    return np.memmap(work / "all.keys", np.int64, "r"), np.memmap(work / "all.sums", np.int64, "r")


@njit(cache=True)
def _bucket(i: int, j: int, n_buckets: int) -> int:
    mixed = (np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(j) * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    inside = np.int64((mixed >> np.uint64(33)) % np.uint64(n_buckets))
    return int((i % STRIPES * STRIPES + j % STRIPES) * n_buckets + inside)


@njit(cache=True)
def _bucket_sizes(keys: Array, n_words: int, n_buckets: int, sizes: Array) -> None:
    for key in keys:
        i, j = key // n_words, key % n_words
        sizes[_bucket(i, j, n_buckets)] += 1
        if i != j:
            sizes[_bucket(j, i, n_buckets)] += 1


@njit(cache=True)
def _to_buckets(
    keys: Array, sums: Array, n_words: int, n_buckets: int, places: Array, rows: Array, columns: Array, values: Array
) -> None:
    for k in range(len(keys)):
        i, j = keys[k] // n_words, keys[k] % n_words
        value = np.float32(sums[k] / UNIT)
        for _ in range(1 if i == j else 2):
            m = _bucket(i, j, n_buckets)
            place = places[m]
            rows[place], columns[place], values[place] = i, j, value
            places[m] = place + 1
            i, j = j, i


def _write_buckets(keys: Ints, sums: Ints, n_words: int, folder: Path) -> None:
    """rows.i32, columns.i32, values.f32 and offsets.json; the cutting depends on the number of pairs alone."""
    diagonal, block = 0, 1 << 22
    for first in range(0, len(keys), block):
        part = keys[first : first + block]
        diagonal += int((part // n_words == part % n_words).sum())
    n_pairs = 2 * len(keys) - diagonal
    n_buckets = -(-n_pairs // (STRIPES * STRIPES * BUCKET))
    sizes = np.zeros(STRIPES * STRIPES * n_buckets, np.int64)
    with Progress("sorting pairs into blocks", 2 * len(keys), "pairs") as progress:
        for first in range(0, len(keys), block):
            _bucket_sizes(np.asarray(keys[first : first + block]), n_words, n_buckets, sizes)
            progress.update(first)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = offsets[:-1].copy()
        rows, columns = (
            np.memmap(folder / f"{name}.i32", np.int32, "w+", shape=(n_pairs,)) for name in ("rows", "columns")
        )
        values = np.memmap(folder / "values.f32", np.float32, "w+", shape=(n_pairs,))
        for first in range(0, len(keys), block):
            part, its = np.asarray(keys[first : first + block]), np.asarray(sums[first : first + block])
            _to_buckets(part, its, n_words, n_buckets, places, rows, columns, values)
            progress.update(len(keys) + first)
        for array in (rows, columns, values):
            array.flush()
    facts = {"n_words": n_words, "n_buckets": n_buckets, "offsets": offsets.tolist()}
    (folder / "offsets.json").write_text(json.dumps(facts), encoding="utf-8")


def open_cooccurrences(folder: Path) -> Cooccurrences:
    """What `count_cooccurrences` wrote; InputError if it is damaged."""
    try:
        verify_manifest(folder)
    except ValueError as error:
        raise InputError(
            "the counted pairs cannot be used",
            where=str(folder),
            why=str(error),
            mend="delete the folder to count again",
        ) from None
    facts = json.loads((folder / "offsets.json").read_text(encoding="utf-8"))
    return Cooccurrences(
        np.memmap(folder / "rows.i32", np.int32, "r"),
        np.memmap(folder / "columns.i32", np.int32, "r"),
        np.memmap(folder / "values.f32", np.float32, "r"),
        np.array(facts["offsets"], np.int64),
        facts["n_buckets"],
        facts["n_words"],
    )


# --- learning ------------------------------------------------------------------------------------------------------


# error_model: Python's test for a division by zero would keep the loops from being vectorised (1.6M pairs/s, not 8M)
@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _learn(
    rows: Array, columns: Array, values: Array, seed: int,
    words: Array, contexts: Array, biases: Array, x_max: float, alpha: float, rate: float,
) -> float:  # fmt: skip
    """One pass over the pairs in a random order (seed 0: as they stand); the sum of their losses.

    words, contexts: (V, 2, padded D), a row's numbers and the sums of its squares; biases: (V, 4), those of the two.
    """
    n = len(rows)
    order = np.arange(n).astype(np.int32)
    state = np.uint64(seed)
    if seed:
        for k in range(n - 1, 0, -1):  # Fisher and Yates, numbers by splitmix64
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            other = np.int64(((z ^ (z >> np.uint64(31))) >> np.uint64(32)) * np.uint64(k + 1) >> np.uint64(32))
            order[k], order[other] = order[other], order[k]
    width = words.shape[2]
    most, power, step_size = np.float32(x_max), np.float32(alpha), np.float32(rate)
    total = 0.0
    for k in range(n):
        pair = order[k]
        i, j, x = rows[pair], columns[pair], values[pair]
        w, c, sw, sc = words[i, 0], contexts[j, 0], words[i, 1], contexts[j, 1]
        dot = np.float32(0)
        for m in range(width):
            dot += w[m] * c[m]
        difference = dot + biases[i, 0] + biases[j, 1] - np.log(x)
        weighted = difference
        if x < most:
            weighted *= np.exp(power * np.log(x / most))
        total += np.float64(0.5) * weighted * difference
        step = weighted * step_size
        for m in range(width):
            a, b = step * c[m], step * w[m]
            w[m] -= a / np.sqrt(sw[m])
            c[m] -= b / np.sqrt(sc[m])
            sw[m] += a * a
            sc[m] += b * b
        biases[i, 0] -= step / np.sqrt(biases[i, 2])
        biases[j, 1] -= step / np.sqrt(biases[j, 3])
        biases[i, 2] += step * step
        biases[j, 3] += step * step
    return total


class _Learning:
    """The matrices, and how far the learning is: `part` of STRIPES parts of `epoch`."""

    def __init__(self, pairs: Cooccurrences, settings: GloveSettings) -> None:
        self.pairs, self.settings = pairs, settings
        self.epoch = self.part = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.loss = 0.0  # of the epoch so far
        d_model, n_words = settings.d_model, pairs.n_words
        width = -(-d_model // 16) * 16  # zeros behind the numbers stay zeros
        generator = np.random.default_rng(settings.seed)
        self.words, self.contexts = (np.zeros((n_words, 2, width), np.float32) for _ in range(2))
        self.biases = np.ones((n_words, 4), np.float32)
        self.biases[:, :2] = (generator.random((n_words, 2), np.float32) - 0.5) / d_model
        for matrix in (self.words, self.contexts):
            matrix[:, 1] = 1
            for first in range(0, n_words, 4096):
                part = matrix[first : first + 4096, 0, :d_model]
                part[:] = (generator.random(part.shape, np.float32) - 0.5) / d_model

    def learn(self, bucket: int) -> float:
        """One bucket, in an order that (seed, epoch, bucket) gives."""
        span = slice(*self.pairs.offsets[bucket : bucket + 2].tolist())
        settings = self.settings
        digest = hashlib.sha256(f"{settings.seed} {self.epoch} {bucket}".encode()).digest()
        return float(
            _learn(
                np.array(self.pairs.rows[span]), np.array(self.pairs.columns[span]), np.array(self.pairs.values[span]),
                int.from_bytes(digest[:7], "little") + 1,
                self.words, self.contexts, self.biases, settings.x_max, settings.alpha, settings.learning_rate,
            )
        )  # fmt: skip

    def rounds(self) -> list[list[int]]:
        """The buckets of one diagonal of blocks, in groups; threads wait for each other after a group."""
        n, settings = self.pairs.n_buckets, self.settings
        shift = int(np.random.default_rng([settings.seed, self.epoch]).permutation(STRIPES)[self.part])
        groups = [[(p * STRIPES + (p + shift) % STRIPES) * n + k for p in range(STRIPES)] for k in range(n)]
        if not settings.deterministic:
            groups = [[bucket for group in groups for bucket in group]]
        sizes = np.diff(self.pairs.offsets)
        return [sorted(group, key=lambda bucket: -sizes[bucket]) for group in groups]  # the last ones end together

    def run(self, states: _States | None, stop: Callable[[], bool] | None) -> None:
        settings, n_pairs = self.settings, len(self.pairs.values)
        before, began = self.seconds, time.monotonic()
        saved = began
        title = f"glove, {quantity(self.pairs.n_words)} words, {quantity(n_pairs)} pairs"
        done = (self.epoch + self.part / STRIPES) * n_pairs
        with (
            Progress(title, settings.epochs * n_pairs, "pairs") as progress,
            ThreadPoolExecutor(settings.n_threads) as pool,
        ):
            while self.epoch < settings.epochs:
                for group in self.rounds():
                    for bucket, loss in zip(group, pool.map(self.learn, group), strict=True):
                        self.loss += loss
                        done += int(self.pairs.offsets[bucket + 1] - self.pairs.offsets[bucket])
                        progress.update(
                            done, f"epoch {self.epoch + 1}, loss {self.losses[-1]:.4f}" if self.losses else ""
                        )
                self.part += 1
                if self.part == STRIPES:
                    self.losses.append(self.loss / n_pairs)
                    self.epoch, self.part, self.loss = self.epoch + 1, 0, 0.0
                    if not np.isfinite(self.losses[-1]):
                        raise InputError(
                            "the vectors grew beyond all numbers",
                            where="learning_rate",
                            mend="give a smaller learning rate",
                        )
                self.seconds = before + time.monotonic() - began
                ended = self.epoch == settings.epochs or (stop is not None and stop())
                if states is not None and (ended or time.monotonic() - saved >= settings.save_seconds):
                    states.save(self)
                    saved = time.monotonic()
                if ended:
                    return


def train_glove(
    sentences: Iterable[NDArray[np.int32]],
    counts: Ints,
    settings: GloveSettings,
    folder: Path | None = None,
    *,
    resume: bool = False,
    stop: Callable[[], bool] | None = None,
) -> TrainedGlove:
    """Count the pairs of a text and learn its word vectors.

    sentences: arrays of word ids (int32); a negative id ends a sentence, and so does the end of an array. counts: (V,).
    In `folder` are kept the counted pairs and a state, from which `resume` goes on (with the same threads'
    bits in the deterministic mode). After `stop` says True the state is saved and the training ends early.
    """
    settings.check()
    with tempfile.TemporaryDirectory(prefix="zhixing-glove-") as temporary:
        out = Path(temporary) if folder is None else folder
        clear_leftovers(out)
        facts = {
            "settings": {
                k: v for k, v in asdict(settings).items() if k not in ("threads", "memory_mb", "save_seconds")
            },
            "text": hashlib.sha256(np.ascontiguousarray(counts, "<i8").tobytes()).hexdigest(),
        }
        states = None if folder is None else _States(out, facts, resume=resume)
        if (out / COUNTS).is_dir() and resume:
            pairs = open_cooccurrences(out / COUNTS)
        else:
            pairs = count_cooccurrences(sentences, len(counts), out / COUNTS, settings, int(counts.sum()))
        learning = _Learning(pairs, settings)
        if states is not None:
            states.load(learning)
        learning.run(states, stop)
        d_model = settings.d_model
        words, contexts = (m[:, 0, :d_model].copy() for m in (learning.words, learning.contexts))
        n_pairs = len(pairs.values)
        del pairs, learning.pairs  # a mapped file cannot be deleted everywhere
    return TrainedGlove(words + contexts, words, contexts, learning.losses, n_pairs, learning.seconds)


class _States:
    """OUT/states/part-N: the matrices and state.json, whole or not at all; the newest is kept."""

    def __init__(self, out: Path, facts: dict[str, Any], *, resume: bool) -> None:
        self.folder, self.facts = out / STATES, facts
        clear_leftovers(self.folder)
        began = out / "glove.json"
        if not resume and (self._paths() or (out / COUNTS).exists()):
            raise InputError("the folder holds a run already", where=str(out), mend="resume it, or name another folder")
        if resume and began.is_file():
            self._compare(json.loads(began.read_text(encoding="utf-8")), began)
        else:
            atomic_write(began, json.dumps(facts, indent=1))

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _STATE_NAME.match(path.name))

    def _compare(self, before: dict[str, Any], path: Path) -> None:
        if before["text"] != self.facts["text"]:
            raise InputError(
                "the text is not the one that the run began with", where=str(path), mend="give the same text"
            )
        for name, now in self.facts["settings"].items():
            if before["settings"].get(name) != now:
                raise InputError(
                    f"the run began with {name} = {before['settings'].get(name)}, not {now}",
                    where=str(path),
                    mend=f"set {name} = {before['settings'].get(name)}, or name another folder",
                )

    def save(self, learning: _Learning) -> None:
        earlier = self._paths()
        target = self.folder / f"part-{learning.epoch * STRIPES + learning.part:09d}"
        if target in earlier:
            return
        state = {name: getattr(learning, name) for name in ("epoch", "part", "seconds", "losses", "loss")}
        with atomic_dir(target, {"kind": "glove, in training"}) as folder:
            for name in ("words", "contexts", "biases"):
                np.save(folder / f"{name}.npy", getattr(learning, name))
            (folder / "state.json").write_text(json.dumps({**self.facts, **state}), encoding="utf-8")
        for path in earlier:
            remove_tree(path)

    def load(self, learning: _Learning) -> None:
        """Put the newest good state into `learning`; nothing is there at the first start."""
        for path in reversed(self._paths()):
            try:
                verify_manifest(path)
                state = json.loads((path / "state.json").read_text(encoding="utf-8"))
                matrices = [np.load(path / f"{name}.npy", "r") for name in ("words", "contexts", "biases")]
            except ValueError as error:
                say(f"skipped {path.name}: {error} (kept as {set_aside(path).name})")
                continue
            self._compare(state, path)
            for own, loaded in zip((learning.words, learning.contexts, learning.biases), matrices, strict=True):
                own[:] = loaded
            for name in ("epoch", "part", "seconds", "losses", "loss"):
                setattr(learning, name, state[name])
            say(f"going on from {path}")
            return
