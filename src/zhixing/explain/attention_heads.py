"""The attention of every layer and head, as a model has it while it reads a text.

softmax(Q K^T / sqrt(K)) (Vaswani et al. 2017, eq. 1) never stands in memory while a model reads: the product with V is
made in the same pass. So what goes into each attention is caught on its way through the model, and the weights are made
of it once more, in the plain form. No family is known here, only the operators of `models/layers.py`, in three kinds:

    bidirectional   each token looks at all (BERT; the encoder of a translator)
    causal          each token looks at itself and those before it (GPT; the decoder)
    cross           each token that is written looks at those that were read

A weight says where a head looked, not what it took from there, nor why an answer is what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zhixing.models.layers import BiasedAttention, BidirectionalAttention, CrossAttention, SelfAttention

# L layers, B rows, H heads, T tokens that look, S tokens that are looked at

Kind = Literal["bidirectional", "causal", "cross"]
Attention = SelfAttention | BidirectionalAttention | BiasedAttention | CrossAttention


def kind_of(attention: Attention) -> Kind:
    if isinstance(attention, CrossAttention):
        return "cross"
    causal = isinstance(attention, SelfAttention) or (isinstance(attention, BiasedAttention) and attention.causal)
    return "causal" if causal else "bidirectional"


def heads_of(model: nn.Module) -> dict[Kind, list[int]]:
    """How many heads each layer has, by kind; nothing where a model has no attention.

    A recurrent translator looks at what it read with one head.
    """
    found: dict[Kind, list[int]] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            found.setdefault(kind_of(module), []).append(module.n_heads)
    return found or ({"cross": [1]} if hasattr(model, "attention_weights") else {})


def attention_heads(model: nn.Module, *inputs: Tensor) -> dict[Kind, Tensor]:
    """The weights (L, H, T, S) of each kind, from the first layer to the last; each row sums to 1.

    `inputs` are what the model is called with, for one text. The model must be in eval mode.
    """
    caught: dict[Kind, list[Tensor]] = {}

    def catching(kind: Kind, attention: Attention) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def catch(_: nn.Module, given: tuple[Any, ...]) -> None:
            looked = (given[0], given[1], given[3]) if isinstance(attention, CrossAttention) else given
            caught.setdefault(kind, []).append(attention.weights(*looked))  # (1, H, T, S)

        return catch

    hooks = [
        module.register_forward_pre_hook(catching(kind_of(module), module))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    try:
        with torch.inference_mode():
            if hooks:
                model(*inputs)
            else:
                reading: Any = model
                caught["cross"] = [reading.attention_weights(*inputs)[:, None]]
    finally:
        for hook in hooks:
            hook.remove()
    return {kind: torch.cat(layers).float().cpu() for kind, layers in caught.items()}
