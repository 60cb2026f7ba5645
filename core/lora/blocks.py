"""Factors of which only a part learns: of a layer that holds several in one the blocks of chosen parts (see
core/lora/fused.py), on top of another adapter the new rows (core/lora/on_top.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.lora.bank import AdapterBank
from core.lora.fused import Rows
from core.lora.layout import corner


def block_mask(parts: Sequence[Rows], outputs: int, rank: int) -> Tensor:
    """Where B [out, rank] may differ from zero, bool: each part's rows in its own columns."""
    mask = torch.zeros(outputs, rank, dtype=torch.bool)
    each = rank // len(parts)
    for number, rows in enumerate(parts):
        for first, behind in rows:
            mask[first:behind, number * each : (number + 1) * each] = True
    return mask


@torch.no_grad()
def keep_blocks(bank: AdapterBank, slot: int, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Take the gradients away where the factors do not learn, by module path and factor; so they stay as they
    are there.
    """
    gradients = bank.layout.of(bank.gradient(slot))
    for path, by_name in masks.items():
        for name in by_name.keys() & gradients[path].keys():
            corner(gradients[path][name], tuple(by_name[name].shape)).mul_(by_name[name])
