"""What the experts of a mixture compute with adapters: token-expert pairs sorted by expert and adapter, and
one grouped product for all pairs of one matrix.

ΔW of an expert is never formed: a pair x gets x·A_eᵀ·B_eᵀ of its own adapter beside x·W_eᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNED = 16  # bytes, of the rows that a grouped kernel reads
_KERNELS = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}
"""By the kind of device the dtypes that one launch multiplies; of others torch takes one group at a time,
too.
"""


@dataclass(frozen=True)
class Pairs:
    """The pairs of T tokens with k experts each, P = T·k, sorted by expert and, within one, by adapter."""

    order: Tensor
    """[P]: which pair stands where, pair number t·k + j."""
    token: Tensor
    """[P]: the token of each."""
    expert: Tensor
    """[P]."""
    adapter: Tensor
    """[P]: its place among the adapters of the pass."""
    expert_ends: Tensor
    """[E] int32: where the pairs of each expert end."""
    group_ends: Tensor
    """[E·K] int32: where those of each expert and adapter end."""
    experts: int
    adapters: int


def sorted_pairs(top_k_index: Tensor, experts: int, adapters: int) -> Pairs:
    """top_k_index [T, k] holds T / `adapters` consecutive tokens for each adapter."""
    tokens, k = top_k_index.shape
    adapter = torch.arange(tokens, device=top_k_index.device) // (tokens // adapters)
    groups = (top_k_index * adapters + adapter[:, None]).reshape(-1)
    found, order = torch.sort(groups, stable=True)
    ends = torch.searchsorted(found, torch.arange(experts * adapters, device=found.device), right=True)
    group_ends = ends.to(torch.int32)
    return Pairs(
        order,
        order // k,
        found // adapters,
        found % adapters,
        group_ends[adapters - 1 :: adapters].contiguous(),
        group_ends,
        experts,
        adapters,
    )


def grouped_product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """x [P, n] times matrices [G, n, m]: rows up to ends[g] belong to group g. Returns [P, m];
    differentiable.
    """
    if _has_kernel(x, matrices):
        return F.grouped_mm(x, matrices, offs=ends)
    starts = [0, *ends.tolist()]
    spans = list(zip(starts, starts[1:], matrices.unbind(0), strict=False))
    return torch.cat([x[start:end] @ matrix for start, end, matrix in spans if end > start])


def _has_kernel(x: Tensor, matrices: Tensor) -> bool:
    """Whether torch multiplies all groups at once, of this dtype and these widths, on this device."""
    widths = (x.shape[-1], matrices.shape[-1])
    aligned = not any(width * x.element_size() % _ALIGNED for width in widths)
    return aligned and x.dtype in _KERNELS.get(x.device.type, ()) and _is_capable(x.device)


def _is_capable(device: torch.device) -> bool:
    there = hasattr(F, "grouped_mm")
    return there and (device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0))


def added_to_pairs(x: Tensor, A: Tensor, B: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
    """scale·B_e·A_e·x for sorted pairs x [P, in]; A [K, E, r, in], B [K, E, out, r], scale [K], all in x's
    dtype. Returns [P, out].
    """
    low = grouped_product(x, _by_group(A), pairs.group_ends) * scale[pairs.adapter, None]
    return grouped_product(low, _by_group(B), pairs.group_ends)


def _by_group(factors: Tensor) -> Tensor:
    """[K, E, rows, columns] as what is multiplied with from the right, [E·K, columns, rows]."""
    return factors.permute(1, 0, 3, 2).flatten(0, 1)


def added_to_few(x: Tensor, A: Tensor, B: Tensor, scale: Tensor, slots: Tensor, pairs: Pairs) -> Tensor:
    """The same for fewer pairs than there are matrices, of adapters chosen by slots [K]: what each pair needs
    is picked.
    """
    slot = slots[pairs.adapter]
    low = torch.bmm(A[slot, pairs.expert], x[:, :, None]) * scale[slot, None, None]
    return torch.bmm(B[slot, pairs.expert], low)[:, :, 0]
