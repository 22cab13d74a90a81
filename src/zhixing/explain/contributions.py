"""What each n-gram adds to the score of a bag of words: exact, without a path.

A bag classifier (Joulin et al. 2017) averages the vectors of words and n-grams and multiplies once:

    z_c = b_c + w_c · (1/n) Σ_t e_t = b_c + Σ_t (w_c · e_t) / n

so the score is a sum over the tokens already, and the gradient of z_c times e_t is token t's term. It is the same
gradient everywhere. Whether a model is of this kind is measured, not asked: the terms and the score of zero vectors
must give the score. The score is the margin, z_c less the mean of the other logits, which is the log-odds for two
labels and a sum for any number of them (the log-odds of three and more are not).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zhixing.explain.integrated_gradients import Classifier, PathAttribution, Score

EXACT = 1e-4  # of the sum of all absolute terms: rounding in fp32, far below what a bend would leave


def contributions(model: Classifier, ids: Tensor, score: Score) -> PathAttribution | None:
    """The term of each token of one text, ids (1, T); None if the score is not a sum over tokens.

    `score` must be linear in the logits. The model must be in eval mode.
    """
    with torch.no_grad():
        embedded = model.embed(ids)  # (1, T, D)
    mask = torch.ones_like(ids, dtype=torch.bool)
    # the input, half of it, and next to nothing (at zero itself, a max would choose at random)
    places = torch.tensor([1.0, 0.5, 2.0**-10]).to(embedded)[:, None, None]
    points = (embedded * places).requires_grad_()  # (3, T, D)
    with torch.enable_grad():
        scores = score(model.classify(points, mask.expand(3, -1)))  # (3,)
        (gradient,) = torch.autograd.grad(scores.sum(), points)  # (3, T, D)
    terms = (gradient * embedded).sum(dim=-1, dtype=torch.float64)  # (3, T)
    with torch.no_grad():
        start = float(score(model.classify(torch.zeros_like(embedded), mask)))
    end = float(scores[0].detach())
    scale = float(terms.abs().sum(dim=1).max()) + 1e-6
    gap = abs(end - start - float(terms[0].sum()))
    bend = float((terms - terms[0]).abs().sum(dim=1).max())
    if max(gap, bend) > EXACT * scale + 1e-5 * abs(start):
        return None
    return PathAttribution(terms[0].tolist(), end, start, gap, True, 1)
