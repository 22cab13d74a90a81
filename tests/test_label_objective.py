"""`label_texts` against torch's own losses, and sums that do not mind how a batch is cut."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.tokens.bucketed import LabelledBatch
from zhixing.training.objectives import ProblemType, label_texts

N, C = 12, 4


class Linear(nn.Module):
    """Logits are a mean of embeddings."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, n_labels)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.embedding(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    problem: ProblemType
    targets: Tensor
    weighted: bool = False
    smoothing: float = 0.0


def cases() -> list[Case]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(C, (N,), generator=g)
    some = ids.clone()
    some[[2, 5]] = -100
    several = torch.randint(2, (N, C), generator=g).float()
    scores = torch.randn(N, generator=g)
    scores[3] = -100.0  # a score as any other
    return [
        Case("single_label_classification", ids),
        Case("single_label_classification", some, weighted=True),
        Case("single_label_classification", some, weighted=True, smoothing=0.1),
        Case("multi_label_classification", several),
        Case("multi_label_classification", several, weighted=True),
        Case("regression", scores),
    ]


def setting(case: Case) -> tuple[Linear, LabelledBatch, Tensor | None]:
    torch.manual_seed(1)
    model = Linear(1 if case.problem == "regression" else C)
    mask = torch.ones(N, 6, dtype=torch.bool)
    mask[::2, 4:] = False
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0]) if case.weighted else None
    return model, LabelledBatch(torch.randint(20, (N, 6)), mask, case.targets), weights


def reference(case: Case, z: Tensor, weights: Tensor | None) -> Tensor:
    """Written out, row by row."""
    total = z.new_zeros(())
    for row, y in zip(z, case.targets, strict=True):
        if case.problem == "regression":
            total = total + (row[0] - y) ** 2
        elif case.problem == "multi_label_classification":
            w = torch.ones(C) if weights is None else weights
            p = row.sigmoid()
            total = total - (w * y * p.log() + (1 - y) * (1 - p).log()).sum()
        elif y >= 0:
            w = torch.ones(C) if weights is None else weights
            log_p = row.log_softmax(0)
            e = case.smoothing
            total = total - (1 - e) * w[y] * log_p[y] - e / C * (w * log_p).sum()
    return total


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.problem}-{c.weighted}-{c.smoothing}")
def test_the_sum_and_its_gradient(case: Case) -> None:
    model, batch, weights = setting(case)
    loss, count = label_texts(case.problem, weights, case.smoothing)(model, batch)
    expected = reference(case, model(batch.inputs, batch.mask), weights)
    torch.testing.assert_close(loss, expected)
    got, wanted = (torch.autograd.grad(each, model.embedding.weight)[0] for each in (loss, expected))
    torch.testing.assert_close(got, wanted)
    several = case.problem == "multi_label_classification"
    counted = N * C if several else N if case.problem == "regression" else int((case.targets >= 0).sum())
    assert count.item() == counted


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.problem}-{c.weighted}-{c.smoothing}")
def test_small_batches_equal_a_large_one(case: Case) -> None:
    model, batch, weights = setting(case)
    objective = label_texts(case.problem, weights, case.smoothing)
    whole, count = objective(model, batch)
    parts = [
        objective(model, LabelledBatch(batch.inputs[a:b], batch.mask[a:b], batch.targets[a:b]))
        for a, b in ((0, 5), (5, 6), (6, 12))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    assert sum(int(n) for _, n in parts) == count.item()
    summed = torch.autograd.grad(sum(loss for loss, _ in parts), model.embedding.weight)[0]
    torch.testing.assert_close(summed, torch.autograd.grad(whole, model.embedding.weight)[0])


def test_smoothing_is_of_training_alone() -> None:
    case = cases()[0]
    model, batch, _ = setting(case)
    loss, _ = label_texts(case.problem, None, 0.2)(model.eval(), batch)
    torch.testing.assert_close(loss, F.cross_entropy(model(batch.inputs, batch.mask), case.targets, reduction="sum"))
