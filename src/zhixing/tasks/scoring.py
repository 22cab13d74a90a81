"""How well a model predicts a text: sums for each sequence, from which evaluation makes scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

IGNORED = -100


class Sequences(Protocol):
    """Sequences in the order of the text, each target once."""

    def __len__(self) -> int: ...
    def sequential(self, first: int, count: int) -> Any: ...
    def sequential_bytes(self, first: int, count: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class SequenceSums:
    """For each sequence: nats, targets, UTF-8 bytes of the targets, and targets that were the likeliest token."""

    nll: NDArray[np.float64]  # (N,)
    targets: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    correct: NDArray[np.int64]


@torch.inference_mode()
def score_sequences(
    model: nn.Module, sequences: Sequences, batch_size: int = 16, watch: Callable[[int], None] = lambda done: None
) -> SequenceSums:
    """Sums over every sequence of `sequences`; `watch` hears how many are done."""
    model.eval()
    nll: list[Tensor] = []
    targets: list[Tensor] = []
    correct: list[Tensor] = []
    for first in range(0, len(sequences), batch_size):
        count = min(batch_size, len(sequences) - first)
        batch = sequences.sequential(first, count)
        counted = batch.targets != IGNORED  # (B, T)
        hidden = model(batch.inputs)  # (B, T, D)
        rows = [_row_sums(model, *row) for row in zip(hidden, batch.targets, counted, strict=True)]
        nll.append(torch.stack([loss for loss, _ in rows]))
        correct.append(torch.stack([hits for _, hits in rows]))
        targets.append(counted.sum(dim=1))
        watch(first + count)
    return SequenceSums(
        torch.cat(nll).double().numpy(),
        torch.cat(targets).numpy(),
        sequences.sequential_bytes(0, len(sequences)),
        torch.cat(correct).numpy(),
    )


def _row_sums(model: Any, hidden: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and hits of one sequence: hidden (T, D), targets (T,); one row of logits at a time keeps memory small."""
    logits = model.logits(hidden)  # (T, V)
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return loss, ((logits.argmax(dim=-1) == targets) & counted).sum()
