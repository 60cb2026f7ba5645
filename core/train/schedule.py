"""Learning-rate schedules, as a factor of the peak rate."""

from __future__ import annotations

import math


def warmup_steps(total: int, ratio: float) -> int:
    """Steps with a rising rate: the ratio of the run, but never more than a tenth of it."""
    return min(math.ceil(total * ratio), total // 10)


def rate_factor(kind: str, step: int, total: int, warmup: int) -> float:
    """The factor for optimiser step `step`, counted from 0, of `total`.

    Linear warm-up from 0, then constant, linear to 0, or half a cosine to 0 (arXiv 1608.03983, equation 5).
    """
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))  # a plan may be shortened on the way
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
