"""The one seam to several processes: which one am I, how are gradients and counts summed.

`torchrun` starts the processes and sets RANK and WORLD_SIZE; without it there is one. `single` and `ddp` (Li et al.
2020) are here; a sharded strategy (fsdp2) is one more value of `kind` with its own `wrap`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Parallel:
    """The processes of a run."""

    kind: Literal["single", "ddp"] = "single"
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as the loop calls it; parameters stay the same objects."""
        return nn.parallel.DistributedDataParallel(model) if self.kind == "ddp" else model

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within it, gradients are summed here only: for all but the last batch of an accumulated step."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def sum(self, x: Tensor) -> Tensor:
        """x summed over all processes."""
        if self.world > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask."""
        return bool(self.sum(torch.tensor(int(flag))).item()) if self.world > 1 else flag

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def parallel_from_environment() -> Iterator[Parallel]:
    """What torchrun set up: a gloo (CPU) or nccl (GPU) group of WORLD_SIZE processes, or a single process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Parallel()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Parallel("ddp", dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
