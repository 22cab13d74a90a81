"""Integrated gradients: how much each token moved the score (Sundararajan, Taly & Yan 2017).

Along the straight line from a baseline b, which says nothing, to the input x, the score F rises by what the gradients
along the way give each token t (their equation 1):

    A_t = (x_t - b_t) · ∫₀¹ ∂F/∂x_t (b + α (x - b)) dα          Σ_t A_t = F(x) - F(b)      (completeness)

The second equation is a check of the numbers, and here it also steers them. It holds for every part of the line as
well: over α in [p, q] the gradients must give F(q) - F(p), and both F are known. So the line is cut where it must be:
each part is integrated by a Gauss-Legendre rule of 8 nodes, and the parts with the largest gaps are halved until the
gaps together are small. A network that normalises its input bends most near the baseline, one with ReLU and max at
kinks; more steps on the whole line would spend most nodes where nothing happens.

What differs from the paper: adaptive Gauss-Legendre instead of a Riemann sum of m equal steps; F is the log-odds of the
class instead of its probability, which is flat where the model is sure and where one asks most.

The baseline is the zero vector for every token of the text, and the token itself for special ones ([CLS], [SEP]), so
that the whole difference belongs to words. Zero is what a mean of word vectors gives no weight, and it lies in no
word's direction. The padding token is the other choice (`baseline="padding"`): but a mask hides padding from every
layer of a trained model, so its vector is as it was drawn at random, which is no "nothing".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zhixing.progress import Progress

# B rows, T tokens, D width, C labels; N places on the line, P parts of it, K nodes of the rule

NODES = 8  # of the rule on each part


class Classifier(Protocol):
    """What every classifier of zhixing is: ids to vectors, vectors to logits. Padding never changes a row."""

    def embed(self, ids: Tensor) -> Tensor: ...  # (B, T) -> (B, T, D)
    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor: ...  # (B, T, D), (B, T) -> (B, C)


Score = Callable[[Tensor], Tensor]  # logits (B, C) -> (B,)


@dataclass(frozen=True)
class PathSettings:
    """tolerance: of the gap, as a share of |F(x) - F(b)| or of one unit of log-odds, whichever is more. A hundredth of
    log-odds changes no probability by more than 0.0025.

    max_nodes: how many points of the line are looked at, at most; a gap that is left then is reported.
    batch_tokens: tokens in one forward and backward pass, which bounds memory.
    """

    tolerance: float = 0.01
    max_nodes: int = 512
    batch_tokens: int = 2048
    baseline: Literal["zero", "padding"] = "zero"


@dataclass(frozen=True)
class PathAttribution:
    """weights: one a token. gap: how far they are from `score - baseline_score`, summed over the parts of the line."""

    weights: list[float]
    score: float
    baseline_score: float
    gap: float
    complete: bool  # the gap is within the tolerance
    nodes: int


def log_odds(label: int) -> Score:
    """log p / (1 - p) of one label: z_c - log Σ_{j ≠ c} exp z_j, and z itself where there is one logit alone.

    A logit by itself says nothing: a softmax does not change when all logits rise together.
    """

    def score(logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
        return logits[:, label] - others.logsumexp(dim=1)

    return score


def margin(label: int) -> Score:
    """z_c less the mean of the other logits: the log-odds where there are two labels, and linear for any number."""

    def score(logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = (logits.sum(dim=1) - logits[:, label]) / (logits.shape[1] - 1)
        return logits[:, label] - others

    return score


def single_logit(label: int) -> Score:
    """z_c: the log-odds where each label has a sigmoid of its own, and the value itself in a regression."""
    return lambda logits: logits[:, label]


def baseline_vectors(model: Classifier, embedded: Tensor, ids: Tensor, fixed: Tensor, pad_id: int | None) -> Tensor:
    """The vectors (1, T, D) that say nothing: zero, or those of the padding token; as they are where `fixed` (T,)."""
    if pad_id is None:
        nothing = torch.zeros_like(embedded)
    else:
        nothing = model.embed(torch.full_like(ids, pad_id)).detach()
    return torch.where(fixed[None, :, None], embedded, nothing)


def integrated_gradients(
    model: Classifier,
    ids: Tensor,
    fixed: Tensor,
    score: Score,
    settings: PathSettings,
    pad_id: int | None = None,
) -> PathAttribution:
    """The attribution of each token of one text.

    ids: (1, T). fixed: (T,) bool, True where a token is no text and stays as it is. `score` makes one number of the
    logits. pad_id is asked for where the baseline is "padding". The model must be in eval mode.
    """
    if settings.baseline == "padding" and pad_id is None:
        raise ValueError("the baseline is the padding token, and no pad_id is given")
    with torch.no_grad():
        embedded = model.embed(ids)  # (1, T, D)
        pad = pad_id if settings.baseline == "padding" else None
        baseline = baseline_vectors(model, embedded, ids, fixed, pad)
    mask = torch.ones_like(ids, dtype=torch.bool)
    line = _Line(model, baseline, embedded, mask, score, max(1, settings.batch_tokens // ids.shape[1]))
    ends = line.scores(np.array([0.0, 1.0]))
    start, end = float(ends[0]), float(ends[1])
    allowed = settings.tolerance * max(abs(end - start), 1.0)
    parts = _integrate(line, [(0.0, 1.0, start, end)])
    nodes = NODES
    with Progress("integrating", settings.max_nodes, "nodes") as progress:
        while (gap := sum(part.gap for part in parts)) > allowed:
            parts.sort(key=lambda part: -part.gap)
            wanted = sum(part.gap > allowed / len(parts) for part in parts)  # more than its share: at least one is
            affordable = (settings.max_nodes - nodes) // (2 * NODES)
            halved, parts = parts[: min(wanted, affordable)], parts[min(wanted, affordable) :]
            if not halved:
                break
            parts += _integrate(line, _halves(line, halved))
            nodes += 2 * NODES * len(halved)
            progress.update(nodes, f"gap {gap:.3g}")
    weights = np.sum([part.weights for part in parts], axis=0)  # (T,)
    return PathAttribution(weights.tolist(), end, start, gap, gap <= allowed, nodes)


@dataclass(frozen=True)
class _Part:
    """What the tokens got between two places of the line; the scores there are known."""

    low: float
    high: float
    score_low: float
    score_high: float
    weights: NDArray[np.float64]  # (T,)

    @property
    def gap(self) -> float:
        return abs(float(self.weights.sum()) - (self.score_high - self.score_low))


def _halves(line: _Line, parts: list[_Part]) -> list[tuple[float, float, float, float]]:
    """Both halves of each part: where they begin and end, and the scores there."""
    middles = np.array([(part.low + part.high) / 2 for part in parts])
    found = []
    for part, middle, score in zip(parts, middles.tolist(), line.scores(middles).tolist(), strict=True):
        found += [(part.low, middle, part.score_low, score), (middle, part.high, score, part.score_high)]
    return found


def _integrate(line: _Line, bounds: list[tuple[float, float, float, float]]) -> list[_Part]:
    """Gauss-Legendre on each part: Σ_k w_k f(α_k), with the rule's nodes moved from [-1, 1] to [low, high]."""
    nodes, rule = np.polynomial.legendre.leggauss(NODES)  # (K,), (K,); the weights sum to 2
    low, high = np.array([b[0] for b in bounds]), np.array([b[1] for b in bounds])  # (P,)
    half = (high - low) / 2
    places = (low + half)[:, None] + half[:, None] * nodes  # (P, K)
    slopes = line.slopes(places.ravel()).reshape(len(bounds), NODES, -1)  # (P, K, T)
    weights = np.einsum("p,k,pkt->pt", half, rule, slopes)  # (P, T)
    return [_Part(*b, w) for b, w in zip(bounds, weights, strict=True)]


@dataclass(frozen=True)
class _Line:
    """The straight line from the baseline to the input; at most `rows` of its places are held at once."""

    model: Classifier
    baseline: Tensor  # (1, T, D)
    embedded: Tensor  # (1, T, D)
    mask: Tensor  # (1, T)
    score: Score
    rows: int

    def scores(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """F at each place: (N,) -> (N,)."""
        found = []
        with torch.no_grad():
            for first in range(0, len(places), self.rows):
                points = self._points(places[first : first + self.rows])
                found.append(self._score(points).double().cpu().numpy())
        return np.concatenate(found)

    def slopes(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """(x - b) · ∂F/∂x for each token at each place: (N,) -> (N, T)."""
        found = []
        step = self.embedded - self.baseline
        for first in range(0, len(places), self.rows):
            points = self._points(places[first : first + self.rows]).requires_grad_()
            with torch.enable_grad():
                total = self._score(points).sum()  # rows do not touch one another, so each gets its own gradient
                (gradient,) = torch.autograd.grad(total, points)  # (N, T, D); none for the parameters
            found.append((gradient * step).sum(dim=-1, dtype=torch.float64).cpu().numpy())  # (N, T)
        return np.concatenate(found)

    def _points(self, places: NDArray[np.float64]) -> Tensor:
        share = torch.from_numpy(places).to(self.embedded)[:, None, None]  # (N, 1, 1)
        return torch.lerp(self.baseline, self.embedded, share)  # (N, T, D)

    def _score(self, points: Tensor) -> Tensor:
        return self.score(self.model.classify(points, self.mask.expand(len(points), -1)))
