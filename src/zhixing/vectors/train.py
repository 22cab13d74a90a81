"""Training word vectors from a text: the settings, the threads, and what is kept so that a stopped run can go on.

The text is cut into slices of about a thousand words. What a slice draws, and its learning rate, are functions of its
place alone; so a run is known by (vectors, epoch, slice), and only the order of the additions is left to the threads:

    lock-free       threads take slices in turn and change the same matrices without locks (Hogwild, Recht et al.
                    2011): two of them seldom touch one row at once, and a lost addition is only noise.
    deterministic   one thread learns from the slices in the order of the text, whatever `threads` says, so the result
                    is the same bit for bit. Rounds of slices that several threads compute side by side and add in a
                    fixed order repeat too, but on two cores they were no faster than this (1.6M words/s against 2.1M),
                    and their summed changes grew without bound on a small text: docs/log.md.

The learning rate falls linearly to zero (a ten-thousandth, in word2vec.c) over the words of all epochs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zhixing.cores import default_threads
from zhixing.errors import InputError
from zhixing.files import atomic_dir, clear_leftovers, remove_tree, set_aside, verify_manifest
from zhixing.progress import Progress, quantity, say
from zhixing.vectors.fasttext import mean_of_parts, skipgram_parts, word_parts
from zhixing.vectors.keyed import KeyedVectors, Subwords, subword_ids
from zhixing.vectors.simd import aligned_zeros, padded
from zhixing.vectors.word2vec import cbow, draw, skipgram
from zhixing.vectors.words import MAX_SENTENCE, Units, Vocabulary, WordCorpus, alias_table, count_words, encode_words

Array = Any  # np.ndarray inside compiled code

SLICE = 500  # numbers after which a slice ends with its sentence
LONGEST = MAX_SENTENCE + 1  # and after which it ends anyway
CLAIM = 4  # slices that a thread takes at a time
BLOCK = 2048  # slices between two looks at the clock: about a million words
STATES = "states"  # in the run's folder

_SKIPGRAM, _CBOW, _PARTS = 0, 1, 2
_STATE_NAME = re.compile(r"^words-\d{15}$")


@dataclass(frozen=True)
class WordVectorSettings:
    """How word vectors are learnt. The defaults are those of word2vec and, for subwords, of fastText."""

    algorithm: Literal["skipgram", "cbow", "glove", "fasttext"] = "skipgram"
    units: Units = "words"  # what stands between blanks; or Chinese characters, or rjieba's words
    d_model: int = 100  # numbers of a vector
    window: int = 5  # words to each side, at most
    negative: int = 5  # words of noise
    epochs: int = 5
    min_count: int = 5  # a word seen less often has no vector of its own
    subsample: float = 1e-3  # frequent words are left out at random; 0: none is
    learning_rate: float | Literal["auto"] = "auto"  # at the start; auto: 0.025 for skipgram, else 0.05
    min_n: int = 3  # fasttext: characters of an n-gram
    max_n: int = 6  # fasttext: 0 for no n-grams
    buckets: int = 2_000_000  # fasttext: rows that n-grams are hashed into
    threads: int | Literal["auto"] = "auto"  # auto: one for each core
    deterministic: bool = False  # the same result each time, whatever `threads` says: one learns
    seed: int = 0
    save_seconds: float = 300.0  # between two states, where there is a folder for them

    def check(self) -> None:
        """InputError for the first setting that cannot be."""
        if self.algorithm not in ("skipgram", "cbow", "glove", "fasttext"):
            raise InputError(
                f"the algorithm {self.algorithm!r} is not known", mend="give skipgram, cbow, glove or fasttext"
            )
        limits: tuple[tuple[str, float, float], ...] = (
            ("d_model", 1, 1 << 16),
            ("window", 1, 500),
            ("negative", 1, 500),
            ("epochs", 1, 1_000_000),
            ("min_count", 1, 1 << 62),
            ("subsample", 0, 1),
            ("min_n", 1, 100),
            ("max_n", 0, 100),
            ("buckets", 1, (1 << 31) - 1),
            ("seed", 0, (1 << 63) - 1),
            ("save_seconds", 0, float("inf")),
        )
        for name, least, most in limits:
            _in_range(name, getattr(self, name), least, most)
        if self.learning_rate != "auto":
            _in_range("learning_rate", self.learning_rate, 1e-12, 1e6)
        if self.threads != "auto":
            _in_range("threads", self.threads, 1, 1024)
        if 0 < self.max_n < self.min_n:
            raise InputError(
                f"no n-gram has {self.min_n} to {self.max_n} characters", mend="min_n <= max_n, or max_n 0"
            )

    @property
    def first_rate(self) -> float:
        """The learning rate at the start."""
        if self.learning_rate != "auto":
            return self.learning_rate
        return 0.025 if self.algorithm == "skipgram" else 0.05

    @property
    def n_threads(self) -> int:
        """Threads, resolved."""
        return default_threads() if self.threads == "auto" else self.threads


def _in_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN is not either
        raise InputError(f"{name} = {value} is not possible", mend=f"give a number from {least:g} to {most:g}")


@dataclass(frozen=True)
class TrainedVectors:
    """What training gives. V words, D numbers; all float32."""

    settings: WordVectorSettings
    vocabulary: Vocabulary
    vectors: NDArray[np.float32]  # (V, D); with subwords the mean of a word's rows
    outputs: NDArray[np.float32]  # (V, D): u of the formulas
    own: NDArray[np.float32] | None  # (V, D), fasttext: the rows of the words themselves
    buckets: NDArray[np.float32] | None  # (buckets, D), fasttext: those never trained are zero
    seconds: float  # of training, after counting; over all attempts
    words_per_second: float  # words of the text, those left out included

    def keyed(self) -> KeyedVectors:
        """For lookup; vectors of unseen words too where there are subwords."""
        subwords = None
        if self.buckets is not None and self.settings.max_n:
            subwords = Subwords(self.buckets, self.settings.min_n, self.settings.max_n)
        return KeyedVectors(self.vocabulary.words, self.vectors, self.vocabulary.counts, subwords)


def train_word_vectors(
    corpus: str | Path | Iterable[str] | WordCorpus,
    settings: WordVectorSettings | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
) -> TrainedVectors:
    """Count, read and learn. `out` is a folder for states, from which `resume` goes on; the caller writes the result.

    The corpus is a text file, a folder of them, or anything that can be iterated again and gives strings.
    In the deterministic mode a resumed run ends as one that was never stopped, bit for bit.
    """
    settings = settings or WordVectorSettings()
    settings.check()
    if settings.algorithm == "glove":
        raise InputError("GloVe does not learn from slices of text", mend="call vectors.glove for it")
    if resume and out is None:
        raise InputError("there is no folder to resume from", mend="name the folder of the run")
    if not isinstance(corpus, WordCorpus):
        corpus = WordCorpus(corpus, settings.units)
    states = None if out is None else States(out, resume=resume)
    vocabulary = count_words(corpus, settings.min_count)
    began = time.monotonic()
    ids = encode_words(corpus, vocabulary)
    training = Training(ids, vocabulary, settings)
    training.run(states)
    return training.result(time.monotonic() - began)


# ---- slices -----------------------------------------------------------------------------------------------------


@njit(cache=True)
def _cut(ids: Array, size: int, longest: int, starts: Array) -> int:
    """Places where slices begin, and the end; how many. With no room in `starts` they are only counted."""
    count = first = 0
    for place in range(len(ids)):
        length = place - first
        if place == 0 or (length >= size and ids[place - 1] < 0) or length >= longest:
            if len(starts):
                starts[count] = place
            count += 1
            first = place
    if len(starts):
        starts[count] = len(ids)
    return count + 1


def cut_slices(ids: NDArray[np.int32], size: int, longest: int) -> NDArray[np.int64]:
    """Slice s is ids[starts[s]:starts[s + 1]], `size` numbers and the rest of the sentence, at most `longest`.

    (number of slices + 1,)
    """
    starts = np.empty(_cut(ids, size, longest, np.empty(0, np.int64)), np.int64)
    _cut(ids, size, longest, starts)
    return starts


@njit(nogil=True, cache=True)
def _learn(
    algorithm: int,
    inputs: Array,
    offsets: Array,
    parts: Array,
    targets: Array,
    left: Array,
    right: Array,
    negatives: Array,
    n_negative: int,
    n: int,
    rate: Any,
    vectors: Array,
    outputs: Array,
    scratch: Array,
    g: Array,
) -> None:
    if algorithm == _SKIPGRAM:
        skipgram(inputs, targets, left, right, negatives, n, rate, vectors, outputs, scratch, g)
    elif algorithm == _CBOW:
        cbow(inputs, targets, left, right, negatives, n, rate, vectors, outputs, scratch, g)
    else:
        skipgram_parts(
            inputs, offsets, parts, targets, left, right, negatives, n_negative, n, rate, vectors, outputs, scratch, g
        )


@njit(nogil=True, cache=True)
def _rate(first_rate: float, place: int, total: int) -> Any:
    return np.float32(first_rate * max(1.0 - place / total, 1e-4))


@njit(nogil=True, cache=True)
def _learn_slices(
    first: int,
    last: int,
    starts: Array,
    epoch_place: int,
    total: int,
    first_rate: float,
    seed: Any,
    algorithm: int,
    window: int,
    n_negative: int,
    ids: Array,
    keep: Array,
    share: Array,
    other: Array,
    offsets: Array,
    parts: Array,
    vectors: Array,
    outputs: Array,
    words: Array,
    left: Array,
    right: Array,
    negatives: Array,
    scratch: Array,
    g: Array,
) -> None:
    """Slices first..last-1, each straight into the matrices."""
    for s in range(first, last):
        n = draw(
            ids, starts[s], starts[s + 1], keep, share, other, window, n_negative, algorithm == _PARTS, seed,
            words, left, right, negatives,
        )  # fmt: skip
        _learn(
            algorithm, words, offsets, parts, words, left, right, negatives, n_negative, n,
            _rate(first_rate, epoch_place + starts[s], total), vectors, outputs, scratch, g,
        )  # fmt: skip


# ---- the run ----------------------------------------------------------------------------------------------------


class Training:
    """A run in memory: the matrices, the place in the text, and the threads' own room.

    ids: the text as encode_words gives it.
    """

    def __init__(self, ids: NDArray[np.int32], vocabulary: Vocabulary, settings: WordVectorSettings) -> None:
        self.ids, self.vocabulary, self.settings = ids, vocabulary, settings
        self.epoch = self.slice = 0  # the next slice to learn from
        self.seconds = 0.0  # of earlier attempts
        self.algorithm = {"skipgram": _SKIPGRAM, "cbow": _CBOW, "fasttext": _PARTS}[settings.algorithm]
        self.keep = (vocabulary.keep_probabilities(settings.subsample) * (1 << 32)).astype(np.int64)
        self.share, self.other = alias_table(vocabulary.noise())
        n_words, d_model = len(vocabulary), settings.d_model
        self.parts, self.offsets = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self.buckets = np.zeros(0, np.int64)
        rows, spread = n_words, 0.5 / d_model
        if self.algorithm == _PARTS:
            ngrams = subword_ids(vocabulary.words, settings.min_n, settings.max_n, settings.buckets)
            self.parts, self.offsets, self.buckets = word_parts(n_words, *ngrams)
            rows, spread = n_words + len(self.buckets), 1.0 / d_model
        self.starts = cut_slices(ids, SLICE, LONGEST)
        self.vectors = aligned_zeros(rows, d_model)  # (V or more, padded D)
        self.outputs = aligned_zeros(n_words, d_model)  # (V, padded D)
        generator = np.random.default_rng(settings.seed)
        for first in range(0, rows, 4096):
            part = self.vectors[first : first + 4096, :d_model]
            part[:] = (generator.random(part.shape, np.float32) * 2 - 1) * spread

    def run(self, states: States | None) -> None:
        """Learn from where it stands to the end; with `states`, load the newest before and save some on the way."""
        if states is not None:
            states.load(self)
        settings = self.settings
        n_slices, n_threads = len(self.starts) - 1, 1 if settings.deterministic else settings.n_threads
        all_places = settings.epochs * len(self.ids)
        per_place = self.vocabulary.n_seen / len(self.ids)
        began = saved = time.monotonic()
        title = f"{settings.algorithm}, {quantity(len(self.vocabulary))} words"
        block = self._blocks(n_threads)
        before = self.place()
        with (
            Progress(title, (all_places - before) * per_place, "words") as progress,
            ThreadPoolExecutor(n_threads) as pool,
        ):
            while self.epoch < settings.epochs:
                last = min(self.slice + BLOCK, n_slices)
                block(pool, self.slice, last)
                self.slice = last
                if last == n_slices:
                    self.epoch, self.slice = self.epoch + 1, 0
                now = time.monotonic()
                done = (self.place() - before) * per_place
                progress.update(done, f"{quantity(done / (now - began))} words/s")
                if states is not None and (now - saved >= settings.save_seconds or self.epoch == settings.epochs):
                    states.save(self, self.seconds + now - began)
                    saved = time.monotonic()

    def result(self, seconds: float) -> TrainedVectors:
        settings, vocabulary = self.settings, self.vocabulary
        n_words, d_model = len(vocabulary), settings.d_model
        own = buckets = None
        vectors = self.vectors
        if self.algorithm == _PARTS:
            vectors = aligned_zeros(n_words, d_model)
            mean_of_parts(self.vectors, self.offsets, self.parts, vectors)
            own = self.vectors[:n_words, :d_model].copy()
            buckets = np.zeros((settings.buckets, d_model), np.float32)
            buckets[self.buckets] = self.vectors[n_words:, :d_model]
        if not np.isfinite(vectors).all():
            raise InputError(
                "the vectors grew beyond all numbers", where="learning_rate", mend="give a smaller learning rate"
            )
        seconds += self.seconds
        return TrainedVectors(
            settings,
            vocabulary,
            vectors[:, :d_model].copy(),
            self.outputs[:, :d_model].copy(),
            own,
            buckets,
            seconds,
            vocabulary.n_seen * settings.epochs / max(seconds, 1e-9),
        )

    def place(self) -> int:
        """Numbers of the text behind us, over all epochs."""
        return self.epoch * len(self.ids) + int(self.starts[self.slice])

    def _facts(self) -> tuple[Any, ...]:
        """The arguments that the compiled loops share, from `starts` to `outputs`."""
        settings = self.settings
        seed = np.uint64(
            int.from_bytes(hashlib.sha256(f"{settings.seed} {self.epoch}".encode()).digest()[:8], "little")
        )
        return (
            self.starts, self.epoch * len(self.ids), settings.epochs * len(self.ids), settings.first_rate, seed,
            self.algorithm, settings.window, settings.negative, self.ids, self.keep, self.share, self.other,
            self.offsets, self.parts, self.vectors, self.outputs,
        )  # fmt: skip

    def _blocks(self, n_threads: int) -> Callable[[ThreadPoolExecutor, int, int], None]:
        """A function that learns from slices first..last-1 with all threads and comes back when they are done."""
        rooms = [_room(self.settings) for _ in range(n_threads)]

        def block(pool: ThreadPoolExecutor, first: int, last: int) -> None:
            facts, turns = self._facts(), itertools.count(first, CLAIM)
            learn: Any = _learn_slices  # its arguments come in groups, which mypy cannot count

            def work(room: tuple[Any, ...]) -> None:
                while (begin := next(turns)) < last:  # next() of a count is one step: no two threads get the same
                    learn(begin, min(begin + CLAIM, last), *facts, *room)

            for _ in pool.map(work, rooms):
                pass

        return block


def _room(settings: WordVectorSettings) -> tuple[Any, ...]:
    """What a thread draws and computes in: words, left, right, negatives, scratch, g."""
    window, negative = settings.window, settings.negative
    pairs = 2 * window * (1 + negative)
    per_word, rows, g = negative, 2 * window + negative + 8, (2 * window + 2, padded(negative + 4))
    if settings.algorithm == "fasttext":
        per_word, rows, g = 2 * window * negative, pairs + 8, (1, padded(pairs + 4))
    return (
        np.empty(LONGEST, np.int32),
        np.empty(LONGEST, np.int64),
        np.empty(LONGEST, np.int64),
        np.empty((LONGEST, per_word), np.int32),
        aligned_zeros(rows, settings.d_model),
        aligned_zeros(*g),
    )


# ---- states -----------------------------------------------------------------------------------------------------


class States:
    """OUT/states/words-N: vectors.npy, outputs.npy, state.json and a manifest, whole or not at all; the newest is kept.

    N counts the numbers of the text that were learnt from, over all epochs.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        self.folder = Path(out) / STATES
        clear_leftovers(self.folder)
        if self._paths() and not resume:
            raise InputError("the folder holds a run already", where=str(out), mend="resume it, or name another folder")

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _STATE_NAME.match(path.name))

    def save(self, training: Training, seconds: float) -> None:
        """Write the state of now, then remove the earlier ones."""
        earlier = self._paths()
        target = self.folder / f"words-{training.place():015d}"
        if target in earlier:
            return
        state = {
            "epoch": training.epoch,
            "slice": training.slice,
            "seconds": seconds,
            "settings": dataclasses.asdict(training.settings),
            "text": _fingerprint(training),
        }
        with atomic_dir(target, {"kind": "word vectors, in training"}) as folder:
            np.save(folder / "vectors.npy", training.vectors)
            np.save(folder / "outputs.npy", training.outputs)
            (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in earlier:
            remove_tree(path)

    def load(self, training: Training) -> None:
        """Put the newest good state into `training`; nothing is there at the first start."""
        for path in reversed(self._paths()):
            try:
                verify_manifest(path)
                state = json.loads((path / "state.json").read_text(encoding="utf-8"))
                vectors, outputs = (np.load(path / f"{name}.npy", "r") for name in ("vectors", "outputs"))
            except ValueError as error:
                say(f"skipped {path.name}: {error} (kept as {set_aside(path).name})")
                continue
            self._compare(training, state, path)
            training.vectors[:], training.outputs[:] = vectors, outputs
            training.epoch, training.slice, training.seconds = state["epoch"], state["slice"], state["seconds"]
            say(f"going on from {path}")
            return

    def _compare(self, training: Training, state: dict[str, Any], path: Path) -> None:
        """InputError unless the run goes on with the same text and settings; threads and saving may differ."""
        if state["text"] != _fingerprint(training):
            raise InputError(
                "the text is not the one that the run began with", where=str(path), mend="give the same text"
            )
        for field in fields(WordVectorSettings):
            before, now = state["settings"].get(field.name), getattr(training.settings, field.name)
            if before != now and field.name not in ("threads", "save_seconds"):
                raise InputError(
                    f"the run began with {field.name} = {before}, not {now}",
                    where=str(path),
                    mend=f"set {field.name} = {before}, or name another folder",
                )


def _fingerprint(training: Training) -> str:
    """SHA-256 of the words and of the text as numbers."""
    digest = hashlib.sha256("\n".join(training.vocabulary.words).encode(errors="surrogatepass"))
    for first in range(0, len(training.ids), 1 << 22):
        digest.update(np.ascontiguousarray(training.ids[first : first + (1 << 22)]).data)
    return digest.hexdigest()
