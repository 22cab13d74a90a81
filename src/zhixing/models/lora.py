"""LoRA: a frozen matrix learns by a correction of low rank (Hu et al. 2022).

    y = W x + b + (alpha / r) B A x        A (r, D_in), B (D_out, r), r << D

Only A and B are trained. B begins at 0, so the model begins as it was; afterwards W + (alpha / r) B A can be stored in
place of W and costs nothing (`merge`).

Our q, k, v are one matrix (and gate, up another): each has an A and a B of its own, under the names `attention.q`,
`attention.k`, `attention.v`, `feed_forward.gate`, `feed_forward.up`, so that adapters fit other tools' files. In the
gpt2 layout, where other tools join q, k, v as well, `attention.qkv` has one of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.layers import JoinedLinear

PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}  # of a joined matrix


@dataclass(frozen=True)
class LoRASettings:
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # of what an A sees
    targets: tuple[str, ...] = ("attention", "feed_forward")  # parts of names: attention, attention.q, feed_forward.up
    trained: tuple[str, ...] = ()  # modules that are trained whole beside them: new heads


class LoRALinear(nn.Module):
    """A linear layer and its corrections: `adapted` are the rows of its output that have one, and their names."""

    def __init__(
        self,
        base: nn.Linear,
        adapted: Mapping[str, tuple[int, int]],
        settings: LoRASettings,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.adapted = base, dict(adapted)
        self.scale, self.merged = settings.alpha / settings.rank, False
        self.dropout = nn.Dropout(settings.dropout)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        bound = 1 / math.sqrt(base.in_features)  # that of nn.Linear, as in the authors' code
        for name, (begin, end) in adapted.items():
            a = base.weight.new_empty(settings.rank, base.in_features).uniform_(-bound, bound, generator=generator)
            self.a[name] = nn.Parameter(a)
            self.b[name] = nn.Parameter(base.weight.new_zeros(end - begin, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)  # (..., D_out)
        if self.merged:
            return y
        dropped = self.dropout(x)
        parts, done = [], 0
        for name, (begin, end) in self.adapted.items():
            if begin > done:
                parts.append(y.new_zeros(*y.shape[:-1], begin - done))
            parts.append(F.linear(F.linear(dropped, self.a[name]), self.b[name]).to(y.dtype))  # (..., end - begin)
            done = end
        if done < y.shape[-1]:
            parts.append(y.new_zeros(*y.shape[:-1], y.shape[-1] - done))
        return y + self.scale * torch.cat(parts, dim=-1)

    def correction(self) -> Tensor:
        """(alpha / r) B A (D_out, D_in), rows without a correction 0."""
        delta = torch.zeros_like(self.base.weight)
        for name, (begin, end) in self.adapted.items():
            delta[begin:end] = self.scale * (self.b[name] @ self.a[name])
        return delta


def add_lora(model: nn.Module, settings: LoRASettings, generator: torch.Generator | None = None) -> list[str]:
    """Give each targeted layer a correction, in place; freeze all but these and `trained`. -> the names adapted.

    InputError where a target or a trained module names nothing.
    """
    if settings.rank < 1 or not 0 <= settings.dropout < 1:
        raise InputError(f"LoRA with rank {settings.rank} and dropout {settings.dropout} cannot be")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise InputError("the model has LoRA already", mend="merge it first")
    chosen: dict[str, dict[str, tuple[int, int]]] = {}  # module -> name of part -> rows
    unused = set(settings.targets)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        for part, rows in _parts(model, name, module).items():
            logical = _logical(name, part)
            hits = {t for t in settings.targets if f".{t}." in f".{logical}." or f".{t}." in f".{name}."}
            unused -= hits
            if hits:
                chosen.setdefault(name, {})[part] = rows
    if unused:
        raise InputError(
            f"no layer of the model is called {sorted(unused)[0]!r}",
            where="targets",
            mend="for example attention, attention.q, attention.out, feed_forward.up",
        )
    modules = dict(model.named_modules())
    for name in settings.trained:
        if name not in modules:
            raise InputError(f"the model has no module {name!r}", where="trained")
        if any(f"{layer}.".startswith(f"{name}.") for layer in chosen):
            raise InputError(f"{name!r} is trained whole and a target of LoRA", mend="name it in one of the two")
    model.requires_grad_(False)
    for name, adapted in chosen.items():
        parent, _, attribute = name.rpartition(".")
        base: Any = modules[name]
        setattr(modules[parent], attribute, LoRALinear(base, adapted, settings, generator))
    for name in settings.trained:
        modules[name].requires_grad_(True)
    return [_logical(name, part) for name, adapted in chosen.items() for part in adapted]


def _logical(name: str, part: str) -> str:
    """The name of a part of a layer: blocks.0.attention.qkv, q -> blocks.0.attention.q."""
    return f"{name.rpartition('.')[0]}.{part}".removeprefix(".")


def _parts(model: nn.Module, name: str, module: nn.Linear) -> dict[str, tuple[int, int]]:
    """The matrices that a layer consists of, and the rows of each."""
    last = name.rpartition(".")[2]
    settings: Any = getattr(model, "settings", None)
    settings = getattr(settings, "gpt", settings)  # of a classifier
    if not isinstance(module, JoinedLinear) or getattr(settings, "layout", "") == "gpt2":
        return {last: (0, module.out_features)}
    ends = [sum(module.sizes[: i + 1]) for i in range(len(module.sizes))]
    return {part: (end - size, end) for part, size, end in zip(PARTS[last], module.sizes, ends, strict=True)}


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The layers with corrections, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every correction to its matrix: the same outputs, at no cost. `unmerge` takes them out again."""
    for _, layer in lora_layers(model):
        if not layer.merged:
            layer.base.weight += layer.correction()
            layer.merged = True


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Take the corrections out of the matrices, which are then as before but for rounding."""
    for _, layer in lora_layers(model):
        if layer.merged:
            layer.base.weight -= layer.correction()
            layer.merged = False


def remove_lora(model: nn.Module) -> None:
    """Put the plain layers back, in place: as they were, or with what was merged. All can be trained again.

    What decodes or writes files knows plain layers only: `merge` and this come first.
    """
    modules = dict(model.named_modules())
    for name, layer in list(lora_layers(model)):
        parent, _, attribute = name.rpartition(".")
        setattr(modules[parent], attribute, layer.base)
    model.requires_grad_(True)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """What was trained: "blocks.0.attention.q.a", ".b", ..., and the parameters of modules trained whole."""
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(model):
        for part in layer.adapted:
            state[f"{_logical(name, part)}.a"] = layer.a[part].detach()
            state[f"{_logical(name, part)}.b"] = layer.b[part].detach()
    inside = {id(p) for _, layer in lora_layers(model) for p in layer.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            state[name] = parameter.detach()
    return state


@torch.no_grad()
def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what `lora_state` gave into a model that `add_lora` prepared in the same way."""
    own = lora_state(model)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[0]
        raise InputError("the adapter does not fit the model", why=f"only one of them has {odd}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise InputError(
                f"the adapter's {name} has the shape {list(state[name].shape)}, the model's {list(tensor.shape)}"
            )
        tensor.copy_(state[name])
