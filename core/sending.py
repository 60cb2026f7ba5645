"""Numbers on their way to the device, for which nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """Numbers, nested or not, on the device. To CUDA they are queued behind what it does: a copy from memory
    that is not pinned waits for that, and then the device waits for the next call.
    """
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
