"""Where the processes that train one group on one machine find each other: a file, private to its user.

A port would be open to all who reach it. The file tells who has come, and why somebody will not; nobody
waits in a call until all are there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from core.train.data_apart import PATIENCE, DataApart, backend


class Meeting:
    """One process's view of the file."""

    def __init__(self, file: Path, number: int, count: int) -> None:
        """number: this process's of `count`, from 0."""
        self._number, self._count = number, count
        self._store = dist.FileStore(str(file), count)

    def arrive(self) -> None:
        """Say that this process is ready to join."""
        self._store.set(f"here-{self._number}", "1")

    def refuse(self, reason: str) -> None:
        """Say why this process cannot join."""
        self._store.set(f"refused-{self._number}", reason)

    @property
    def missing(self) -> list[int]:
        """Who has not come yet, the first process aside."""
        return [one for one in range(1, self._count) if not self._store.check([f"here-{one}"])]

    @property
    def refusals(self) -> dict[int, str]:
        """Why processes cannot join, by number."""
        told = [one for one in range(1, self._count) if self._store.check([f"refused-{one}"])]
        return {one: self._store.get(f"refused-{one}").decode() for one in told}

    def open(self, device: torch.device, *, in_parts: bool = False) -> DataApart:
        """Join: all do so at the same time, once they are there. in_parts: whether each is to hold a part of
        the base.
        """
        if sys.platform == "linux":  # nobody from outside
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        # who is lost is seen by the engine, which must not be ended with it
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        store = dist.PrefixStore("group", self._store)
        dist.init_process_group(
            backend(device), store=store, rank=self._number, world_size=self._count, timeout=PATIENCE
        )
        if not in_parts:
            return DataApart(device)
        from core.train.base_apart import BaseApart

        return BaseApart(device)


def leave() -> None:
    """Let go of the others, as far as they are there."""
    if dist.is_initialized():
        dist.destroy_process_group()


def give_up() -> None:
    """End what waits for a process that is gone: NCCL's collectives would wait for ever on the device."""
    world = dist.group.WORLD
    if world is None or not torch.cuda.is_available() or "nccl" not in dist.get_backend_config():
        return
    world._get_backend(torch.device("cuda")).abort()
