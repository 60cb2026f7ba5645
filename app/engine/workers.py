"""The processes that train a group together with this one, of this machine and of others: started or let in,
met, watched and ended.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import rmtree

from app.engine.machines import Machines
from app.engine.worker_processes import WorkerProcesses
from app.shared.settings import Settings
from core.base_model.load import ResidentBase
from core.base_model.source import BaseSource
from core.engine import Engine
from core.errors import WorkerLost
from core.train import joining
from core.train.carried import write_requests
from core.train.config import TrainConfig
from core.train.data_apart import DataApart
from core.train.handing_out import hand_out
from core.train.meeting import Meeting, store_in
from core.train.run import RunRequest
from core.train.share import NotHeld

_LOOK_SECONDS = 0.1  # between two looks whether all are there
_SURE_SECONDS = 2.0  # after which a fault is not for want of another process of this machine


class Workers:
    """Those that runs which are trained so want, with this one, which is the first of them."""

    def __init__(self, settings: Settings, source: BaseSource, train: TrainConfig) -> None:
        """Start those of this machine, which load the base, unless it is to lie in parts, which all load
        together; and listen for other machines.

        Raises InvalidConfig where others cannot join at the address that is set.
        """
        self._over, self._lost, self._count = False, "", train.processes
        self._in_parts = source.parts > 1
        self._share: DataApart | None = None
        settings.cache.mkdir(exist_ok=True)
        for left in settings.cache.glob("workers-*"):  # by an engine that was killed; there is one at a time
            rmtree(left, ignore_errors=True)
        self._machines = Machines(settings, source, train) if train.machines > 1 else None
        self._folder = Path(tempfile.mkdtemp(prefix="workers-", dir=settings.cache))
        self._meeting, place = self._met()
        self._secret = self._machines.secret if self._machines else secrets.token_hex(32)
        task = {
            "place": place,
            "count": self._count,
            "first": 0,
            "secret": self._secret,
            "base": told_of(source),
        }
        self._processes = WorkerProcesses(settings, self._folder, task, range(1, train.devices))
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _met(self) -> tuple[Meeting, dict[str, str]]:
        """Where all come together, and how others of this machine are told of it."""
        if (others := self._machines) is not None:
            place = others.place
            return Meeting(others.store, 0, self._count, place["network"], place["where"]), place
        file = self._folder / "meeting"
        return Meeting(store_in(file, self._count), 0, self._count), {"file": str(file)}

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each of this machine's others, by number."""
        return self._processes.pids

    def gather(self) -> Iterator[str]:
        """Pause again and again until all are there, with what is to be told, mostly nothing. Raises
        WorkerLost with what keeps one away.
        """
        if self._machines is not None:
            yield from self._machines.gather(self.require)
        while self._meeting.missing:
            self.require()
            self._require_willing()
            yield ""
            time.sleep(_LOOK_SECONDS / 10)

    def _require_willing(self) -> None:
        for number, why in self._meeting.refusals.items():
            raise WorkerLost(f"{self._named(number)} cannot join: {why}")

    def _named(self, number: int) -> str:
        where = self._machines.name_of(number) if self._machines else ""
        return f"Worker {number} of {self._count - 1}{' on ' + where if where else ''}"

    def open(self, engine: Engine) -> DataApart:
        """Work with them: this process's share."""
        self._share = self._meeting.open(engine.device, in_parts=self._in_parts)
        return self._share

    def hand_out(self, base: ResidentBase, requests: Sequence[RunRequest]) -> None:
        """Have them train these, too, once they have the base."""
        assert self._share is not None
        files = self._folder / "runs"
        files.mkdir()
        hand_out(self._share, write_requests(requests, base, files), self._secret)

    def require(self) -> None:
        """Raise WorkerLost if one of them is gone."""
        if self._lost:
            if self._share is None:
                self._require_willing()  # who cannot join says so, and ends
            raise WorkerLost(self._lost)

    def explained(self, error: Exception) -> Exception:
        """WorkerLost in the place of a fault that comes of one, else the fault."""
        if isinstance(error, (NotHeld, WorkerLost)):
            return error  # with the first all end, the second says it itself
        silent = joining.SILENT_SECONDS if self._machines else 0.0
        until = time.monotonic() + _SURE_SECONDS + silent
        while not self._lost and isinstance(error, RuntimeError) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        return WorkerLost(self._lost) if self._lost else error

    def end(self, why: str = "") -> None:
        """Let go of all; who still works is killed. why: what ended it, for those of other machines."""
        self._over = True
        self._watching.join()
        if self._machines is not None:
            self._machines.end(self._lost or why)
        ended = not (self._lost or why) and self._processes.have_ended()
        self._processes.kill()
        if not ended:
            self._meeting.give_up()
        if self._share is not None:
            self._share.leave()
        self._meeting.leave()
        rmtree(self._folder, ignore_errors=True)

    def _watch(self) -> None:
        while not self._over and not self._lost:
            lost = self._processes.lost() or (self._machines.lost() if self._machines else "")
            if lost:
                self._lost = f"{lost}; the run can go on from its last checkpoint"
                self._meeting.give_up()
            time.sleep(_LOOK_SECONDS)


def told_of(source: BaseSource) -> dict[str, str | int]:
    """What a worker is told of the base."""
    names = ("name", "fingerprint", "stat_key", "template", "config", "quantisation", "parts")
    return {name: getattr(source, name) for name in names} | {"folder": str(source.folder)}
