"""How a gradient becomes a step: SGD with momentum, Adam, AdamW (torch's own), and Muon for matrices.

    SGD    m <- mu m + g                 w <- w - lr m                                      (Polyak 1964)
    Adam   m, v <- averages of g, g^2    w <- w - lr m^ / (sqrt(v^) + eps)                  (Kingma & Ba 2015, alg. 1)
    AdamW  the same, and                 w <- w - lr decay w  apart from the gradient       (Loshchilov & Hutter 2019)
    Muon   m <- mu m + g                 w <- w - lr orth(g + mu m) sqrt(max(1, rows/cols)) (Jordan et al. 2024)

Parameters may have rates of their own, by a share for each name: so the lower layers of a trained model learn slowly
(Howard & Ruder 2018, section 3.2). What needs no gradient is in no optimizer's step.

Muon replaces a matrix's step by the nearest (semi-)orthogonal one, so that every direction of the matrix learns at
the same rate. It is for the matrices inside the blocks; embeddings, head, norms and biases go by AdamW beside it.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zhixing.recipe import TrainSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the steepest quintic at 0 that stays bounded


@contextmanager
def _without_the_compiler() -> Iterator[None]:
    """Let torch's optimizers be made without its compiler, which takes two seconds to load.

    torch marks `add_param_group` so that the compiler passes it over, and loads the compiler at the first call to make
    the mark. In here the method is its own marked version; then it is as it was, for whoever compiles optimizers. A
    torch that keeps the mark elsewhere loads its compiler as before. `Optimizers` calls nothing else that is marked.
    """
    bare, mark = inspect.unwrap(Optimizer.add_param_group), "__dynamo_disable"
    if mark in vars(bare):
        yield
        return
    setattr(bare, mark, bare)
    try:
        yield
    finally:
        delattr(bare, mark)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Each matrix of (N, R, C) to about U V^T of its singular value decomposition U S V^T.

    Newton-Schulz: X <- a X + (b A + c A^2) X with A = X X^T, which moves every singular value to about 1 (0.7 to 1.2
    after 5 steps) and needs products only.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # (N, r, r), r the smaller side
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024); for two-dimensional parameters only.

    Beside torch.optim.Muon, which the tests compare it with: a joined matrix (q, k and v in one) is split by its
    `sizes` before, matrices of one shape are orthogonalised together, and the products run in `dtype`: torch's are
    always bf16, which takes four times as long as fp32 on a processor without bf16 instructions (measured).
    """

    def __init__(
        self,
        params: list[Tensor] | list[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        sizes: dict[int, tuple[int, ...]] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        every = [p for group in self.param_groups for p in group["params"]]
        if any(p.dim() != 2 for p in every):
            raise ValueError(f"Muon takes matrices, got shapes {[tuple(p.shape) for p in every if p.dim() != 2]}")
        self.sizes = sizes or {}  # by position among the parameters of all groups
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        assert closure is None
        count = itertools.count()
        for group in self.param_groups:
            parts: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}  # shape -> (parameter part, its direction)
            for p, position in zip(group["params"], count, strict=False):  # the shorter first
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(buffer, group["momentum"])  # Nesterov
                sizes = self.sizes.get(position, (p.shape[0],))
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                for part, part_direction in zip(p.split(sizes), direction.split(sizes), strict=True):
                    shape = (part.shape[0], part.shape[1])
                    parts.setdefault(shape, []).append((part, part_direction))
            for shape, members in parts.items():
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                updates = orthogonalise(torch.stack([direction for _, direction in members]), dtype=self.dtype)
                torch._foreach_add_([part for part, _ in members], list(updates.unbind()), alpha=-rate)


class Optimizers:
    """The optimizers of a run, stepped together; each keeps its peak rate, which the schedule's factor multiplies."""

    def __init__(self, members: dict[str, Optimizer]) -> None:
        self.members = members
        self.peaks = {name: [g["lr"] for g in o.param_groups] for name, o in members.items()}

    def set_factor(self, factor: float) -> None:
        for name, optimizer in self.members.items():
            for group, peak in zip(optimizer.param_groups, self.peaks[name], strict=True):
                group["lr"] = peak * factor

    @torch.no_grad()
    def step(self) -> None:
        for optimizer in self.members.values():
            inspect.unwrap(type(optimizer).step)(optimizer)

    def zero_grad(self) -> None:
        for optimizer in self.members.values():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None


def layer_rates(depths: Mapping[str, int], decay: float) -> dict[str, float]:
    """The share of the learning rate that each parameter has by its depth: decay^(top - depth), the deepest 1.

    {"embedding": 0, "block": 1, "head": 2}, 0.5 -> 0.25, 0.5, 1. Howard & Ruder 2018, section 3.2, with a free decay
    for their 1 / 2.6; Clark et al. 2020, appendix B.
    """
    top = max(depths.values())
    return {name: decay ** (top - depth) for name, depth in depths.items()}


@_without_the_compiler()
def make_optimizers(
    model: nn.Module,
    settings: TrainSettings,
    muon_dtype: torch.dtype = torch.float32,
    rates: Mapping[str, float] | None = None,
) -> Optimizers:
    """The optimizers that the settings name, over all parameters of the model; `rates`: the share of some's rate.

    Weight decay applies to matrices only, as usual; with muon, to the matrices inside the blocks.
    """
    shares = {parameter: (rates or {}).get(name, 1.0) for name, parameter in model.named_parameters()}
    t = settings
    named = dict(model.named_parameters())
    adam: dict[str, Any] = {"betas": (t.adam_beta1, t.adam_beta2), "eps": t.adam_epsilon, "fused": True}
    if t.optim == "sgd":
        return Optimizers(
            {
                "sgd": torch.optim.SGD(
                    _split(_groups(named, t.weight_decay), shares, t.learning_rate),
                    lr=t.learning_rate,
                    momentum=t.momentum,
                )
            }
        )
    if t.optim == "adam":
        groups = _split(_groups(named, t.weight_decay), shares, t.learning_rate)
        return Optimizers({"adam": torch.optim.Adam(groups, lr=t.learning_rate, **adam)})
    if t.optim == "adamw":
        groups = _split(_groups(named, t.weight_decay), shares, t.learning_rate)
        return Optimizers({"adamw": torch.optim.AdamW(groups, lr=t.learning_rate, **adam)})
    heads = ("embedding", "source_embedding", "positions", "lm_head")
    matrices = {n: p for n, p in named.items() if p.dim() == 2 and not n.startswith(heads)}
    rest = [p for n, p in named.items() if n not in matrices]
    joined = {f"{name}.weight": module.sizes for name, module in model.named_modules() if hasattr(module, "sizes")}
    names = {parameter: name for name, parameter in matrices.items()}
    by_muon = _split([{"params": list(matrices.values())}], shares, t.learning_rate)
    ordered = [names[p] for group in by_muon for p in group["params"]]
    sizes = {position: joined[name] for position, name in enumerate(ordered) if name in joined}
    muon = Muon(by_muon, t.learning_rate, t.momentum, t.weight_decay, sizes, muon_dtype)
    by_adam = _split([{"params": rest}], shares, t.adam_learning_rate)
    return Optimizers(
        {"muon": muon, "adamw": torch.optim.AdamW(by_adam, lr=t.adam_learning_rate, weight_decay=0.0, **adam)}
    )


def _split(
    groups: list[dict[str, Any]], shares: Mapping[nn.Parameter, float], learning_rate: float
) -> list[dict[str, Any]]:
    """Each group cut into one for each share of the rate, the order kept; without shares the groups as they are."""
    made: list[dict[str, Any]] = []
    for group in groups:
        for share in dict.fromkeys(shares[p] for p in group["params"]):
            members = [p for p in group["params"] if shares[p] == share]
            made.append({**group, "params": members, "lr": learning_rate * share})
    return made


def _groups(named: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in named.values() if p.dim() >= 2]
    others = [p for p in named.values() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
