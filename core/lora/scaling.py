"""The factor in front of B·A. Needs no torch."""

from __future__ import annotations

import math


def scaling(alpha: float, rank: int, use_rslora: bool = False) -> float:
    """α/r (arXiv 2106.09685, section 4.1), or α/√r for rsLoRA (arXiv 2312.03732, equation 4)."""
    return alpha / _divisor(rank, use_rslora)


def alpha_of(scale: float, rank: int, use_rslora: bool = False) -> float:
    """The reverse: the α with which scaling() gives `scale`."""
    return scale * _divisor(rank, use_rslora)


def _divisor(rank: int, use_rslora: bool) -> float:
    return math.sqrt(rank) if use_rslora else rank
