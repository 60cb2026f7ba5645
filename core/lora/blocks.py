"""B of a layer that holds several in one: only the blocks of chosen parts learn; see core/lora/fused.py."""

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
def keep_blocks(bank: AdapterBank, slot: int, masks: Mapping[str, Tensor]) -> None:
    """Take the gradients outside of the blocks away, by module path; so B stays zero there."""
    gradients = bank.layout.of(bank.gradient(slot))
    for path, mask in masks.items():
        corner(gradients[path]["B"], tuple(mask.shape)).mul_(mask)
