"""Bag of features: a text is the mean of its features' vectors, and a linear layer over it gives the label.

Joulin, Grave, Bojanowski & Mikolov (2017), "Bag of tricks for efficient text classification", eq. 1:

    h = n^-p sum_i E[x_i]         x_1 .. x_n the ids of the text's words and hashed n-grams (tokens/ngrams.py)
    logits = W h + b              softmax over labels, a sigmoid for each label, or a number (regression)

With p = 1 it is the mean, as in the paper. `BagClassifier` is that as a torch module, `classify` what explanation
differentiates. What trains is `fit_bag`: stochastic gradient descent, one text at a time, the rate falling to 0 along a
line, in compiled loops that touch only the rows of the text at hand. With g = dloss/dlogits of one text:

    db = g,   dW = g h^T,   dE[x_i] = n^-p W^T g     for each i

One thread is the default: the same numbers each time, and still faster than two threads of fastText (RECORDS.md). With
more, rows change without a lock (Niu et al. 2011, "Hogwild!"), and the result depends on the moment.

What differs from the paper, each an option of `BagTraining`:

* `rates = "idf"`: the rows of rare features learn faster, by the square of idf = log(1 + N / df) (Sparck Jones 1972).
  Weighting the features of a text by idf and learning U by gradient descent is the same as learning E = idf U with a
  rate idf^2, so the weights cost nothing afterwards. "nb": the same with |r|, the naive Bayes log-count ratio, which is
  how Wang & Manning (2012, section 2.3) feed a support vector machine. `rates_power` q takes the weight to the power q.
* `start = "labels"`: W is the identity and stays so, d_model = n_labels, and E starts at 0: softmax regression, in
  which the row of a feature is what it says for each label.
* p = 1/2 (`BagSettings.power`): texts of length n then have h of about equal length, as if normed.
* dropout of features, a bias, and no hierarchical softmax.

Legend: N texts, F features of all texts, R rows, D d_model, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor, nn

from zhixing.errors import InputError

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEMS: tuple[Problem, ...] = ("single_label_classification", "multi_label_classification", "regression")
FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered, so that they vectorise; NaN stays NaN
AHEAD = 8  # rows fetched before their turn: 100 numbers a row, one thread, 1.9 s without and 1.4 s with
SLICE = 4096  # texts between two looks at the clock
_SINGLE, _MULTI, _REGRESSION = 0, 1, 2

Array = Any  # an array inside compiled code


@dataclass(frozen=True)
class BagSettings:
    vocab_size: int  # rows: words and buckets
    n_labels: int
    d_model: int = 16
    max_len: int = 1 << 30  # a bag has no longest text
    power: float = 1.0  # p: 1 is the mean of the vectors, 0 their sum
    problem: Problem = "single_label_classification"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_labels", "d_model"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}", why="the least is 1")
        if not 0.0 <= self.power <= 1.0:
            raise InputError(f"power = {self.power}", why="it lies between 0 (sum) and 1 (mean)")
        if self.problem not in PROBLEMS:
            raise InputError(f"problem = {self.problem!r}", why=f"it is one of {', '.join(PROBLEMS)}")


@dataclass(frozen=True)
class BagTraining:
    epochs: int = 10
    learning_rate: float = 0.5
    start: Literal["random", "labels"] = "random"
    rates: Literal["equal", "idf", "nb"] = "equal"
    rates_power: float = 1.0  # q
    dropout: float = 0.0  # share of a text's features that are left out, each time anew
    threads: int = 1  # more than one is faster, and never twice the same
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine, why in (
            ("epochs", self.epochs >= 1, "the least is 1"),
            ("threads", self.threads >= 1, "the least is 1"),
            ("learning_rate", 0.0 < self.learning_rate < math.inf, "it is a number above 0"),
            ("dropout", 0.0 <= self.dropout < 1.0, "it is a share of at least 0 and below 1"),
            ("start", self.start in ("random", "labels"), "it is one of random, labels"),
            ("rates_power", 0.0 <= self.rates_power < math.inf, "it is a number of at least 0"),
            ("rates", self.rates in ("equal", "idf", "nb"), "it is one of equal, idf, nb"),
        ):
            if not fine:
                raise InputError(f"{name} = {getattr(self, name)!r}", why=why)


@dataclass(frozen=True)
class BagTargets:
    """What the texts should give: for labels, text i has labels[starts[i]:starts[i + 1]]; else a number each.

    A text of a single-label problem without a label, or one whose number is NaN, is not learnt from.
    """

    labels: NDArray[np.int32]
    starts: NDArray[np.int64]  # (N + 1,)
    values: NDArray[np.float32]  # (N,) for regression, else (0,)

    @staticmethod
    def of_labels(rows: list[tuple[int, ...]]) -> BagTargets:
        """Label numbers of each text."""
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        flat = np.array([label for row in rows for label in row], np.int32)
        return BagTargets(flat, starts, np.empty(0, np.float32))

    @staticmethod
    def of_values(values: NDArray[np.float32]) -> BagTargets:
        """A number for each text."""
        return BagTargets(np.empty(0, np.int32), np.zeros(len(values) + 1, np.int64), values.astype(np.float32))

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class BagWeights:
    """What a trained bag is."""

    settings: BagSettings
    embedding: NDArray[np.float32]  # (R, D)
    head: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)


class BagClassifier(nn.Module):
    """The equations as a torch module; ids are feature ids. The reference that the compiled loops are held against."""

    def __init__(self, settings: BagSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(settings.vocab_size, settings.d_model)
        self.head = nn.Linear(settings.d_model, settings.n_labels)
        with torch.no_grad():
            self.embedding.weight.uniform_(-1 / settings.d_model, 1 / settings.d_model, generator=generator)
            self.head.weight.zero_()
            self.head.bias.zero_()

    @staticmethod
    def of(weights: BagWeights) -> BagClassifier:
        """A module that shares the memory of trained weights."""
        with torch.device("meta"):
            model = BagClassifier(weights.settings)
        model.embedding.weight = nn.Parameter(torch.from_numpy(weights.embedding))
        model.head.weight = nn.Parameter(torch.from_numpy(weights.head))
        model.head.bias = nn.Parameter(torch.from_numpy(weights.bias))
        return model

    def weights(self) -> BagWeights:
        """What the compiled loops take, over the same memory."""
        arrays = (tensor.detach().numpy() for tensor in (self.embedding.weight, self.head.weight, self.head.bias))
        return BagWeights(self.settings, *arrays)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, D)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded (B, T, D), mask (B, T) bool -> logits (B, C) fp32. A text of nothing has the bias for logits."""
        total = embedded.masked_fill(~mask[..., None], 0.0).sum(dim=1)  # (B, D)
        n = mask.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
        return self.head(total * n.to(total.dtype) ** -self.settings.power).float()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.embed(ids), mask)


@intrinsic
def _prefetch(context: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Ask for matrix[row, column] to be brought near: rows at random places are what the loops wait for."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        indices = list(arguments[1:])
        place = cgutils.get_item_pointer(context, builder, signature.args[0], array, indices)  # type: ignore[no-untyped-call]
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]
        builder.call(function, [builder.bitcast(place, pointer), *(ir.Constant(number, flag) for flag in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(matrix, types.int64, types.int64), make


@njit(nogil=True, cache=True)
def _mix(x: Any) -> Any:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True)
def _keep(ids: Array, dropout: float, seed: int, text: int, kept: Array) -> int:
    """The features of a text that are not left out, into `kept`; a pure function of seed and text. -> how many."""
    if dropout == 0.0:
        kept[: len(ids)] = ids
        return len(ids)
    cut = np.uint64(dropout * 4294967296.0)
    state = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(text))
    n = 0
    for i in range(len(ids)):
        state += np.uint64(0x9E3779B97F4A7C15)
        if (_mix(state) >> np.uint64(32)) >= cut:
            kept[n] = ids[i]
            n += 1
    return n


@njit(nogil=True, fastmath=FAST, cache=True)
def _forward(E: Array, W: Array, b: Array, ids: Array, n: int, power: float, h: Array, z: Array) -> Any:
    """h (D,) and logits z (C,) of the first n ids; -> n^-p."""
    d = len(h)
    h[:] = np.float32(0)
    for i in range(n):
        if i + AHEAD < n:
            for k in range(0, d, 16):
                _prefetch(E, np.int64(ids[i + AHEAD]), np.int64(k))  # type: ignore[call-arg]
        row = E[ids[i]]
        for k in range(d):
            h[k] += row[k]
    share = np.float32(max(n, 1) ** -power)
    for k in range(d):
        h[k] *= share
    for c in range(len(z)):
        w = W[c]
        total = b[c]
        for k in range(d):
            total += w[k] * h[k]
        z[c] = total
    return share


@njit(nogil=True, fastmath=FAST, cache=True)
def _softmax(z: Array) -> None:
    top = z[0]
    for c in range(1, len(z)):
        top = max(top, z[c])
    total = np.float32(0)
    for c in range(len(z)):
        z[c] = np.exp(z[c] - top)
        total += z[c]
    for c in range(len(z)):
        z[c] /= total


@njit(nogil=True, fastmath=FAST, cache=True)
def _loss_and_gradient(z: Array, labels: Array, value: float, weights: Array, problem: int) -> float:
    """The loss of logits z, which become its gradient; label c counts weights[c] times."""
    loss = 0.0
    if problem == _REGRESSION:
        z[0] -= np.float32(value)
        loss = 0.5 * z[0] * z[0]
    elif problem == _SINGLE:
        _softmax(z)
        label = labels[0]
        loss = -np.log(max(z[label], np.float32(1e-30))) * weights[label]
        z[label] -= np.float32(1)
        for c in range(len(z)):
            z[c] *= weights[label]
    else:
        for c in range(len(z)):  # log(1 + e^z) for an absent label; a present one subtracts z
            loss += weights[c] * (max(z[c], np.float32(0)) + np.log1p(np.exp(-abs(z[c]))))
        for c in labels:
            loss -= weights[c] * z[c]
        for c in range(len(z)):
            z[c] = weights[c] / (np.float32(1) + np.exp(-z[c]))
        for c in labels:
            z[c] -= weights[c]
    return loss


@njit(nogil=True, fastmath=FAST, cache=True)
def train_texts(
    E: Array,
    W: Array,
    b: Array,
    ids: Array,
    starts: Array,
    labels: Array,
    label_starts: Array,
    values: Array,
    weights: Array,
    row_rates: Array,
    order: Array,
    rate: float,
    next_rate: float,
    problem: int,
    power: float,
    dropout: float,
    seed: int,
    train_head: bool,
) -> float:
    """One step of gradient descent for each text of `order`, the rate going from `rate` to `next_rate`; -> the loss.

    row_rates (R,) multiplies the rate of each row, or has no elements. `seed` differs from epoch to epoch.
    """
    d, n_labels = E.shape[1], W.shape[0]
    h, g = np.empty(d, np.float32), np.empty(d, np.float32)
    z = np.empty(n_labels, np.float32)
    kept = np.empty(1024, np.int32)
    loss = 0.0
    for place in range(len(order)):
        text = order[place]
        mine = ids[starts[text] : starts[text + 1]]
        answer = labels[label_starts[text] : label_starts[text + 1]]
        value: Any = values[text] if problem == _REGRESSION else np.float32(0)
        if (problem == _SINGLE and len(answer) == 0) or value != value:
            continue
        if len(mine) > len(kept):
            kept = np.empty(2 * len(mine), np.int32)
        n = _keep(mine, dropout, seed, text, kept)
        share = _forward(E, W, b, kept, n, power, h, z)
        loss += _loss_and_gradient(z, answer, value, weights, problem)
        step = np.float32(rate + (next_rate - rate) * place / len(order))
        g[:] = np.float32(0)
        for c in range(n_labels):
            change = z[c] * step
            w = W[c]
            for k in range(d):
                g[k] += change * w[k]
            if train_head:
                for k in range(d):
                    w[k] -= change * h[k]
            b[c] -= change
        for k in range(d):
            g[k] *= share
        if len(row_rates) > 0:
            for i in range(n):
                row, faster = E[kept[i]], row_rates[kept[i]]
                for k in range(d):
                    row[k] -= faster * g[k]
        else:
            for i in range(n):
                row = E[kept[i]]
                for k in range(d):
                    row[k] -= g[k]
    return loss


@njit(nogil=True, cache=True)
def predict_texts(
    E: Array,
    W: Array,
    b: Array,
    ids: Array,
    starts: Array,
    first: int,
    last: int,
    problem: int,
    power: float,
    out: Array,
) -> None:
    """Probabilities (or numbers) of texts first..last-1 into out (N, C)."""
    h = np.empty(E.shape[1], np.float32)
    for text in range(first, last):
        z = out[text]
        _forward(E, W, b, ids[starts[text] :], starts[text + 1] - starts[text], power, h, z)
        if problem == _SINGLE:
            _softmax(z)
        elif problem == _MULTI:
            for c in range(len(z)):
                z[c] = np.float32(1) / (np.float32(1) + np.exp(-z[c]))


@njit(nogil=True, cache=True)
def _document_counts(ids: Array, starts: Array, last_text: Array, counts: Array) -> None:
    """In how many texts each row occurs; last_text (R,) is scratch of -1."""
    for text in range(len(starts) - 1):
        for i in range(starts[text], starts[text + 1]):
            if last_text[ids[i]] != text:
                last_text[ids[i]] = text
                counts[ids[i]] += 1


@njit(nogil=True, cache=True)
def _label_counts(ids: Array, starts: Array, labels: Array, label_starts: Array, counts: Array) -> None:
    """How often each row occurs in texts of each label: counts (R, C)."""
    for text in range(len(starts) - 1):
        for i in range(starts[text], starts[text + 1]):
            for j in range(label_starts[text], label_starts[text + 1]):
                counts[ids[i], labels[j]] += np.float32(1)


def log_count_ratios(
    ids: NDArray[np.int32], starts: NDArray[np.int64], targets: BagTargets, settings: BagSettings
) -> NDArray[np.float32]:
    """Naive Bayes: r[x, c] = log of how much more often x occurs in texts of label c than in the others, (R, C).

    Both shares are of counts with 1 added, Wang & Manning (2012), section 2.1, one label against the rest.
    """
    p = np.zeros((settings.vocab_size, settings.n_labels), np.float32)
    _label_counts(ids, starts, targets.labels, targets.starts, p)
    q = p.sum(axis=1, keepdims=True) - p
    p += 1
    q += 1
    ratios: NDArray[np.float32] = np.log(p) - np.log(p.sum(axis=0)) - np.log(q) + np.log(q.sum(axis=0))
    return ratios


def row_rates_of(
    kind: str, ids: NDArray[np.int32], starts: NDArray[np.int64], ratios: Any, rows: int, power: float = 1.0
) -> Any:
    """The rate of each row (R,), 1 on the average of the features as they occur; none if all are equal."""
    if kind == "equal":
        return np.empty(0, np.float32)
    if kind == "idf":
        counts = np.zeros(rows, np.int32)
        _document_counts(ids, starts, np.full(rows, -1, np.int32), counts)
        weight = np.log(1 + (len(starts) - 1) / np.maximum(counts, 1))
    else:
        weight = np.abs(ratios).max(axis=1)
    rates = weight ** (2 * power)
    mean = float(np.mean(rates[ids])) if len(ids) else 1.0
    return (rates / max(mean, 1e-12)).astype(np.float32)


def start_weights(settings: BagSettings, training: BagTraining) -> BagWeights:
    """What training begins with: E uniform in ±1/D and W = 0, as fastText; or E = 0 and W = I."""
    rows, d, n_labels = settings.vocab_size, settings.d_model, settings.n_labels
    bias = np.zeros(n_labels, np.float32)
    if training.start == "random":
        noise = np.random.default_rng(training.seed).random((rows, d), dtype=np.float32)
        noise -= np.float32(0.5)  # in place: it is by far the largest array
        noise *= np.float32(2 / d)
        return BagWeights(settings, noise, np.zeros((n_labels, d), np.float32), bias)
    if d != n_labels:
        raise InputError(f"d_model = {d}", why=f'start = "labels" gives each label a column: {n_labels}')
    return BagWeights(settings, np.zeros((rows, d), np.float32), np.eye(d, dtype=np.float32), bias)


def fit_bag(
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    targets: BagTargets,
    settings: BagSettings,
    training: BagTraining,
    order: Callable[[int], NDArray[np.int64]],
    *,
    class_weights: NDArray[np.float32] | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> BagWeights:
    """Train on N texts: text i has the feature ids ids[starts[i]:starts[i + 1]]; order(epoch) is how they come.

    watch(texts seen so far in all epochs, mean loss of the last ones) is called now and then. Raises InputError where
    the loss stops being a number.
    """
    if settings.problem == "regression" and training.rates == "nb":
        raise InputError('rates = "nb" counts labels, and regression has none', mend='rates = "idf"')
    problem = PROBLEMS.index(settings.problem)
    ratios = log_count_ratios(ids, starts, targets, settings) if training.rates == "nb" else None
    weights = start_weights(settings, training)
    row_rates = row_rates_of(training.rates, ids, starts, ratios, settings.vocab_size, training.rates_power)
    counted = np.ones(settings.n_labels, np.float32) if class_weights is None else class_weights.astype(np.float32)
    n, threads = len(targets), training.threads
    total = n * training.epochs
    pool = ThreadPoolExecutor(threads) if threads > 1 else None
    try:
        for epoch in range(training.epochs):
            texts = order(epoch)
            for first in range(0, n, SLICE * threads):
                some = texts[first : first + SLICE * threads]
                begin = epoch * n + first
                rate = training.learning_rate * (1 - begin / total)
                next_rate = training.learning_rate * (1 - (begin + len(some)) / total)

                def share(part: int, some: Any = some, rate: float = rate, next_rate: float = next_rate) -> float:
                    loss: float = train_texts(
                        weights.embedding, weights.head, weights.bias, ids, starts, targets.labels, targets.starts,
                        targets.values, counted, row_rates, some[part::threads].copy(), rate, next_rate, problem,
                        settings.power, training.dropout, training.seed * 1_000_003 + epoch,  # noqa: B023
                        training.start == "random",
                    )  # fmt: skip
                    return loss

                loss = sum(pool.map(share, range(threads))) if pool else share(0)
                if not math.isfinite(loss):
                    raise InputError(
                        f"the loss is {loss} after {begin + len(some)} texts", mend="a smaller learning_rate"
                    )
                if watch:
                    watch(begin + len(some), loss / len(some))
    finally:
        if pool:
            pool.shutdown()
    return weights


def predict_bag(
    weights: BagWeights, ids: NDArray[np.int32], starts: NDArray[np.int64], threads: int = 1
) -> NDArray[np.float32]:
    """Probabilities of each label (the number itself for regression): (N, C)."""
    n = len(starts) - 1
    out = np.empty((n, weights.settings.n_labels), np.float32)
    cuts = [n * part // threads for part in range(threads + 1)]

    def share(part: int) -> None:
        predict_texts(
            weights.embedding, weights.head, weights.bias, ids, starts, cuts[part], cuts[part + 1],
            PROBLEMS.index(weights.settings.problem), weights.settings.power, out,
        )  # fmt: skip

    if threads == 1:
        share(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))
    return out
