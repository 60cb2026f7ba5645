"""Factors of experts as so many layers of their own, for what works on one ΔW at a time, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from core.lora.adapter import LayerFactors


def apart(layers: Mapping[str, LayerFactors]) -> dict[str, LayerFactors]:
    """The same with each expert by itself, its number behind the path of the fused parameter."""
    return {
        name: one
        for path, factors in layers.items()
        for name, one in (_each(path, factors) if factors.of_experts else {path: factors}).items()
    }


def _each(path: str, factors: LayerFactors) -> dict[str, LayerFactors]:
    return {f"{path}.{number}": factors.of_expert(number) for number in range(len(factors.A))}


def together(layers: Mapping[str, LayerFactors], experts: Collection[str]) -> dict[str, LayerFactors]:
    """The reverse, for the fused parameters at these paths: the scales folded into B, lower ranks filled up
    with zeros.
    """
    found = {name: one for name, one in layers.items() if name.rpartition(".")[0] not in experts}
    for path in dict.fromkeys(experts):
        own = [layers[f"{path}.{number}"] for number in range(_count(path, layers))]
        rank = max(one.rank for one in own)
        A = torch.stack([_filled(one.A.float(), rank - one.rank, rows=True) for one in own])
        B = torch.stack([_filled(one.B.float() * one.scale, rank - one.rank, rows=False) for one in own])
        found[path] = LayerFactors(A, B, 1.0)
    return found


def _count(path: str, layers: Mapping[str, LayerFactors]) -> int:
    return sum(name.rpartition(".")[0] == path for name in layers)


def _filled(factor: Tensor, more: int, *, rows: bool) -> Tensor:
    return pad(factor, (0, 0, 0, more) if rows else (0, more))
