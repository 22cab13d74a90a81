"""Attention rollout: from which tokens what is read at a place has come (Abnar & Zuidema 2020, section 3).

Layer l mixes the places of a text by its attention, and the residual connection keeps each place as it was; half and
half, averaged over the heads:

    A_l = ½ (mean_h attention_{l,h}) + ½ I,          R = A_L ··· A_2 A_1

Row t of R says what shares of the input tokens are in place t after the last layer; each row sums to one. These are
shares of attention: never below zero, not for or against a label, and blind to what the values carry. Integrated
gradients answer why; this shows where the model looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# B rows, H heads, T tokens


class Attentive(Protocol):
    """A classifier that can show its attention: one (B, H, T, T) a layer, from the first layer to the last."""

    def attentions(self, ids: Tensor, mask: Tensor) -> list[Tensor]: ...


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """R of all layers, each (B, H, T, T) with rows that sum to one -> (B, T, T), whose rows do too."""
    if not attentions:
        raise ValueError("expected the attention of at least one layer, got none")
    result: Tensor | None = None
    for attention in attentions:
        mixed = attention.float().mean(dim=1)  # (B, T, T)
        mixed = (mixed + torch.eye(mixed.shape[-1], device=mixed.device)) / 2
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)  # against rounding, and for rows of padding that are zero
        result = mixed if result is None else mixed @ result
    assert result is not None
    return result


def rollout_weights(model: Attentive, ids: Tensor, place: int | None) -> list[float]:
    """The share of each token of one text, ids (1, T), in what the classifier reads.

    place: the token it reads (0 is [CLS]); None if it averages all. The model must be in eval mode.
    """
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        shares = rollout(model.attentions(ids, mask))[0]  # (T, T)
    read = shares.mean(dim=0) if place is None else shares[place]
    weights: list[float] = read.double().cpu().tolist()
    return weights
