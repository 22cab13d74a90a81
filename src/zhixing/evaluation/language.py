"""What a language model is worth on text it has not seen: loss, perplexity, bits per byte, next-token accuracy.

All are ratios of sums over documents (or windows; whatever hangs together):

    loss           = sum nll / sum targets             nats a token
    perplexity     = exp(loss)                         Jelinek et al. 1977
    bits per byte  = sum nll / (ln 2 * sum bytes)      does not depend on the tokenizer (Gao et al. 2020, section 3.1)
    accuracy       = sum correct / sum targets

Only bits per byte may be compared between models with different tokenizers, and with a compressor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from zhixing.errors import InputError
from zhixing.evaluation.intervals import Score, bootstrap_interval


@dataclass(frozen=True)
class LanguageScores:
    """The four scores of the same documents, and how much text they rest on."""

    loss: Score
    perplexity: Score
    bits_per_byte: Score
    accuracy: Score
    n_targets: int
    n_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The `model` part of scores.json: the plain values, the interval of bits per byte as low and high, and under
        `intervals` that of each score."""
        scores = {
            "bits_per_byte": self.bits_per_byte,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
        }
        shown = {name: score.to_dict() for name, score in scores.items()}
        return {
            **{name: entry["value"] for name, entry in shown.items()},
            "low": shown["bits_per_byte"]["low"],
            "high": shown["bits_per_byte"]["high"],
            "intervals": {name: [entry["low"], entry["high"]] for name, entry in shown.items()},
            "n": self.loss.n,
            "n_targets": self.n_targets,
            "n_bytes": self.n_bytes,
            "seed": self.loss.seed,
        }


def language_scores(
    nll: ArrayLike, targets: ArrayLike, n_bytes: ArrayLike, correct: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> LanguageScores:
    """Scores from sums over each document.

    nll (n,) in nats; targets (n,) tokens predicted; n_bytes (n,) UTF-8 bytes that these tokens stand for; correct (n,)
    tokens that were the most probable one. Documents with nothing to predict are left out; one without bytes (a last
    window that holds nothing but the end of a text) is counted as part of the one before it.

    >>> scores = language_scores([6.0, 2.0], [3, 1], [6, 2], [1, 1])
    >>> scores.loss.value, scores.accuracy.value
    (2.0, 0.5)
    """
    columns = [np.asarray(column, np.float64) for column in (nll, targets, n_bytes, correct)]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise ValueError(f"expected four rows of equal length, got {[column.shape for column in columns]}")
    counted = columns[1] > 0
    losses, counts, sizes, hits = (column[counted] for column in columns)
    if not len(losses):
        raise InputError(
            "there is nothing to evaluate",
            why="no document has a token to predict",
            mend="give text of at least two tokens",
        )
    if not np.isfinite(losses).all():
        raise InputError(
            "the model gives a loss that is not finite",
            where=f"document {int(np.flatnonzero(counted)[~np.isfinite(losses)][0])}",
            mend="train with a lower learning rate, or load an earlier checkpoint",
        )
    if not sizes.sum() > 0:
        raise InputError("there is nothing to evaluate", why="the text holds no byte", mend="give text")
    whose = np.maximum(np.cumsum(sizes > 0) - 1, 0)
    losses, counts, sizes, hits = (
        np.bincount(whose, weights=column).astype(np.float64) for column in (losses, counts, sizes, hits)
    )
    n = len(losses)
    loss = losses.sum() / counts.sum()
    low, high = bootstrap_interval(losses, counts, seed, resamples)
    bits = losses / math.log(2)
    with np.errstate(over="ignore"):
        perplexity = Score(float(np.exp(loss)), float(np.exp(low)), float(np.exp(high)), n, seed)
    if n < 2:
        perplexity = Score(perplexity.value, -math.inf, math.inf, n, seed)
    return LanguageScores(
        loss=Score(float(loss), low, high, n, seed),
        perplexity=perplexity,
        bits_per_byte=Score(
            float(bits.sum() / sizes.sum()), *bootstrap_interval(bits, sizes, seed, resamples), n, seed
        ),
        accuracy=Score(float(hits.sum() / counts.sum()), *bootstrap_interval(hits, counts, seed, resamples), n, seed),
        n_targets=int(counts.sum()),
        n_bytes=int(sizes.sum()),
    )
