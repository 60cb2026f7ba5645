"""What the device could do at best, and what a run takes of it: time, memory, energy."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import torch

from core.base_model.load import ResidentBase

_SIZE = {"cuda": 8192, "cpu": 1024}
_REPEATS = 8
_PEAK_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def device_name(device: torch.device) -> str:
    """A device in words, for people."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)}, {memory / 2**30:.0f} GiB"
    return "Apple GPU (MPS)" if device.type == "mps" else f"CPU, {os.cpu_count()} cores"


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product, the best of a few."""
    size = _SIZE.get(device.type, 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS):
        wait_for(device)
        start = time.perf_counter()
        left @ right
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def operations_a_token(base: ResidentBase) -> float:
    """Of a training step on the frozen base: 2N forward, 2N for the gradient of the inputs, N its linear
    layers' weights.
    """
    numbers = sum(layer.in_features * layer.out_features for layer in base.layers.values())
    if (
        base.writes_text and base.head not in base.layers
    ):  # a tied head is not wrapped, but computes all the same
        numbers += base.model.config.vocab_size * base.model.config.hidden_size
    return 4.0 * numbers


class PeakMemory:
    """The most memory taken since it was made: of an accelerator, or by this process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _PEAK_RESET.exists():
            _PEAK_RESET.write_text("5")  # proc(5): sets the peak of the resident set to what it is now

    @property
    def bytes(self) -> int:
        """So far. Where the system keeps no peak that can be set back, what the process holds now."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if not _PEAK_RESET.exists():
            return int(psutil.Process().memory_info().rss)
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    @property
    def total(self) -> int:
        """What the device has."""
        if self._device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._device)[1])
        return int(psutil.virtual_memory().total)


def memory_to_train(device: torch.device) -> int:
    """Bytes that this process could have of the device's memory: what is free, and what it holds itself."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device))
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


class EnergyMeter:
    """Joules that an NVIDIA device has used since the last look; None where it does not say."""

    def __init__(self, device: torch.device) -> None:
        self._handle = _nvml_handle(device)
        self._last = self._total()

    def used(self) -> float | None:
        """Since the last call, or since the beginning."""
        now, before = self._total(), self._last
        self._last = now
        return None if now is None or before is None else now - before

    def _total(self) -> float | None:
        if self._handle is None:
            return None
        import pynvml

        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000.0
        except pynvml.NVMLError:  # older devices do not count
            return None


def _nvml_handle(device: torch.device) -> object | None:
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
