"""The learning rate as a pure function of the step: resume needs no state, and any step can be asked for."""

from __future__ import annotations

import math


def warmup(step: int, warmup_steps: int) -> float:
    """Linear from 1 / (warmup_steps + 1) up to 1 at step `warmup_steps`; steps count from 0."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def cosine(step: int, max_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Warm-up, then half a cosine from 1 down to min_ratio (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    share = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * share))


def trapezoid(step: int, max_steps: int, warmup_steps: int, decay_fraction: float, min_ratio: float) -> float:
    """Warm-up, a plateau at 1, then linearly down to min_ratio over the last decay_fraction of the steps.

    Zhai et al. 2022 (section 3.5) and Hagele et al. 2024: as good as cosine, and the plateau may be prolonged.
    """
    decay_steps = max(1.0, max_steps * decay_fraction)
    down = min(1.0, max(0.0, (max_steps - step) / decay_steps))
    return warmup(step, warmup_steps) * (min_ratio + (1 - min_ratio) * down)


def learning_rate_factor(
    kind: str, step: int, max_steps: int, warmup_steps: int, decay_fraction: float, min_ratio: float
) -> float:
    """The factor on every learning rate at `step` (from 0) of `max_steps`."""
    if kind == "cosine":
        return cosine(step, max_steps, warmup_steps, min_ratio)
    if kind == "trapezoid":
        return trapezoid(step, max_steps, warmup_steps, decay_fraction, min_ratio)
    return warmup(step, warmup_steps)
