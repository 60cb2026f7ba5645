"""A base's weights as they compute where the base is held in few bits: quantised, and made float32 again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.base_model.files import stored_tensors
from core.base_model.quantisation import in_few_bits
from core.base_model.quantised_load import packed
from core.base_model.skeleton import Skeleton
from core.events import Progress
from core.files.safetensors_file import DTYPE_BYTES, TensorEntry
from core.merge.stream import read_range
from core.merge.whole_tensors import TORCH_DTYPES, tensor_name
from core.reporting import Report

_LOOKED_AT = 1 << 18  # numbers of a tensor


@dataclass(frozen=True)
class Held:
    """How a base holds one of its tensors."""

    quantisation: str
    transposed: bool
    """Whether the files hold W as [in, out]."""

    def weight(self, stored: Tensor) -> Tensor:
        """W in float32 as it computes, in the shape of the file; stored: what the file holds."""
        plain = (stored.t() if self.transposed else stored).float().contiguous()
        dense = packed(plain, self.quantisation).dense()
        return dense.t().contiguous() if self.transposed else dense

    def weight_and_distance(self, stored: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """weight(), with ‖Q − W‖² and ‖W‖²."""
        plain, held = stored.float(), self.weight(stored)
        return held, (float((held - plain).square().sum()), float(plain.square().sum()))


def held_tensors(base_folder: Path, layers: Skeleton, quantisation: str) -> dict[str, Held]:
    """The tensors that such a base has quantised, by name.

    Raises InvalidAdapter for a layer that no one tensor holds.
    """
    names = {name: name for name in stored_tensors(base_folder)}
    paths = in_few_bits(layers.shapes, layers.head, quantisation)
    return {tensor_name(path, names): Held(quantisation, path in layers.transposed) for path in paths}


def base_difference(base_folder: Path, held: Mapping[str, Held], report: Report) -> float:
    """‖Q − W‖ / ‖W‖ over these tensors, Q what is held of W; of a large one over its first rows, since to
    quantise on a CPU takes far longer than to merge.
    """
    stored = stored_tensors(base_folder)
    moved = size = 0.0
    for number, (name, how) in enumerate(held.items()):
        report(Progress(f"Comparing {name} with its quantised weight", number / len(held)))
        _, found = how.weight_and_distance(_first_rows(*stored[name]))
        moved, size = moved + found[0], size + found[1]
    return math.sqrt(moved / max(size, 1e-300))


def _first_rows(path: Path, entry: TensorEntry) -> Tensor:
    rows, columns = entry.shape
    rows = min(rows, max(1, _LOOKED_AT // columns))
    raw = read_range(path, entry.start, entry.start + rows * columns * DTYPE_BYTES[entry.dtype])
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[entry.dtype]).view(rows, columns).float()
