"""Where the processes that train one group find each other: a file on one machine, private to its user, or
a port of the first of several machines (core/train/joining.py). There it says who has come, and why somebody
will not; nobody waits in a call until all are there.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from core.errors import InvalidConfig
from core.train.data_apart import PATIENCE, DataApart, backend

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_CHOSEN = {name: os.environ.get(name, "") for name in (_GLOO, _NCCL)}  # by the user, who knows better
_Connection = tuple[int, tuple[str, int], tuple[str, int]]


def store_in(file: Path, count: int) -> dist.Store:
    """Of `count` processes of one machine; the file is made."""
    return dist.FileStore(str(file), count)


def store_at(host: str, port: int, name: str) -> dist.Store:
    """Of processes of several machines: where the first one listens, under the group's name there."""
    reached = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
    return dist.PrefixStore(name, reached)


class Meeting:
    """One process's view of the place where they meet."""

    def __init__(
        self, store: dist.Store, number: int, count: int, network: str = "", where: str = ""
    ) -> None:
        """number: this process's of `count`, from 0. network: the interface over which they talk, by default
        the one that nobody outside this machine reaches. where: what the machine is called, of several.
        """
        self._number, self._count, self._where = number, count, where
        self._store, self._network = store, network
        self._connections: set[_Connection] = set()

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
        _talk_over(self._network, device)
        # who is lost is seen by the engine, which must not be ended with it
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        store = dist.PrefixStore("group", self._store)
        with self._noting_connections():
            dist.init_process_group(
                backend(device), store=store, rank=self._number, world_size=self._count, timeout=PATIENCE
            )
            if not in_parts:
                return DataApart(device, self._where)
            from core.train.base_apart import BaseApart

            return BaseApart(device)

    def leave(self) -> None:
        """Let go of who could not be joined, and of what listens for them."""
        if dist.is_initialized():
            dist.destroy_process_group()
        del self._store

    @contextmanager
    def _noting_connections(self) -> Iterator[None]:
        before = _connections()
        try:
            yield
        finally:
            self._connections = _connections() - before

    def give_up(self) -> None:
        """End what waits for a process that is gone: it would wait for half an hour where a machine has
        fallen silent, and NCCL's collectives on the device for ever.
        """
        world = dist.group.WORLD
        if world is not None and torch.cuda.is_available() and "nccl" in dist.get_backend_config():
            world._get_backend(torch.device("cuda")).abort()
        for connection in self._connections & _connections():
            _shut(*connection)


def _shut(descriptor: int, own: tuple[str, int], other: tuple[str, int]) -> None:
    """End one of this process's connections. What holds it may let go of it at any moment, since it hears of
    the lost process, too: then there is nothing to end, and its number may be another's already.
    """
    try:
        copy = os.dup(descriptor)
    except OSError as error:
        if error.errno == errno.EBADF:
            return
        raise
    try:
        with socket.socket(fileno=copy) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                return
            if [_end(connection.getsockname()), _end(connection.getpeername())] == [own, other]:
                connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno == errno.ENOTSOCK:
            os.close(copy)
        elif error.errno != errno.ENOTCONN:
            raise


def _end(address: tuple[str, int]) -> tuple[str, int]:
    """Of a connection, as psutil names it: without IPv6's scope and flow."""
    return address[0].partition("%")[0], address[1]


def loopback() -> str:
    """The interface that nobody outside this machine reaches; empty where its name is not known."""
    return next((name for name, one in _addresses() if ip_address(one).is_loopback), "")


def network_of(address: str) -> str:
    """The interface that has this address. Raises InvalidConfig if none has it."""
    wanted, there = ip_address(address), list(_addresses())
    found = next((name for name, one in there if ip_address(one) == wanted), "")
    if not found:
        said = ", ".join(f"{one} ({name})" for name, one in there)
        raise InvalidConfig(f"{address} is no address of this machine, which has {said}.")
    return found


def _addresses() -> Iterator[tuple[str, str]]:
    """Interfaces with each of their addresses."""
    for name, found in psutil.net_if_addrs().items():
        for one in found:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                yield name, one.address.partition("%")[0]


def _talk_over(network: str, device: torch.device) -> None:
    """network: empty where the processes are those of one machine.

    Raises InvalidConfig where NCCL was told another one: it hears of it once in a process.
    """
    own = network or (loopback() if sys.platform == "linux" else "")
    if not own:
        return
    os.environ[_GLOO] = _CHOSEN[_GLOO] or own
    if device.type != "cuda":
        return
    told = os.environ.setdefault(_NCCL, own)
    if network and told not in (_CHOSEN[_NCCL], network):
        raise InvalidConfig(
            f"The cards of this engine have talked over {told}, and {network} is asked for now, which NCCL "
            "takes up only in a new process: close the page, wait until the engine has ended, and start it "
            "again."
        )


def _connections() -> set[_Connection]:
    """This process's, as (descriptor, its end, the other end)."""
    return {
        (one.fd, one.laddr, one.raddr)
        for one in psutil.Process().net_connections("tcp")
        if one.status == psutil.CONN_ESTABLISHED and one.fd >= 0
    }
