"""The processes that train a group together with this one: started, met, watched and ended."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

from app.shared.processes import exit_reason, last_lines, start_detached
from app.shared.settings import Settings
from core.base_model.source import BaseSource
from core.errors import WorkerLost
from core.train.meeting import Meeting, give_up, leave

_LOOK_SECONDS = 0.1  # between two looks whether all are there
_SURE_SECONDS = 2.0  # after which a fault is not for want of another process


class Workers:
    """`count` processes with this one, which is the first of them."""

    def __init__(self, settings: Settings, source: BaseSource, count: int) -> None:
        """Start the others; they load the base, unless it is to lie in parts, which all load together."""
        self._count, self._over, self._in_parts = count, False, source.parts > 1
        self._lost = ""
        settings.cache.mkdir(exist_ok=True)
        for left in settings.cache.glob("workers-*"):  # by an engine that was killed; there is one at a time
            rmtree(left, ignore_errors=True)
        self._folder = Path(tempfile.mkdtemp(prefix="workers-", dir=settings.cache))
        task: dict[str, object] = {
            "meeting": str(self._folder / "meeting"),
            "count": count,
            "engine": os.getpid(),
        }
        task["base"] = _told(source)
        (self._folder / "task.json").write_text(json.dumps(task))
        self._meeting = Meeting(self._folder / "meeting", 0, count)
        self._logs = {one: settings.logs / f"worker-{one}.log" for one in range(1, count)}
        arguments = ["--task", str(self._folder / "task.json"), "--number"]
        self._processes = {
            one: start_detached("app.engine.worker", [*arguments, str(one)], log)
            for one, log in self._logs.items()
        }
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each of the others, by number."""
        return {number: process.pid for number, process in self._processes.items()}

    def gather(self) -> Iterator[None]:
        """Pause again and again until all are there. Raises WorkerLost with what keeps one away."""
        while self._meeting.missing:
            for number, why in self._meeting.refusals.items():
                raise WorkerLost(f"Worker {number} of {self._count - 1} cannot join: {why}")
            self.require()
            yield None
            time.sleep(_LOOK_SECONDS / 10)

    def open(self, engine_device: object) -> Any:
        """Work with them: this process's share, which tells them of the runs to train (asked())."""
        return self._meeting.open(engine_device, in_parts=self._in_parts)  # type: ignore[arg-type]

    def require(self) -> None:
        """Raise WorkerLost if one of them is gone."""
        if self._lost:
            raise WorkerLost(self._lost)

    def explained(self, error: Exception) -> Exception:
        """WorkerLost in the place of a fault that comes of one, else the fault."""
        until = time.monotonic() + _SURE_SECONDS
        while not self._lost and isinstance(error, RuntimeError) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        return WorkerLost(self._lost) if self._lost else error

    def end(self) -> None:
        """Let go of all; who still works is killed."""
        self._over = True
        self._watching.join()
        ended = not self._lost and all(self._has_ended(one) for one in self._processes)
        for process in self._processes.values():
            process.kill()
        if not ended:
            give_up()
        leave()
        rmtree(self._folder, ignore_errors=True)

    def _has_ended(self, number: int) -> bool:
        """By itself, as all do that have trained to the end."""
        until = time.monotonic() + _SURE_SECONDS
        while self._processes[number].poll() is None and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS / 10)
        return self._processes[number].poll() == 0

    def _watch(self) -> None:
        while not self._over and not self._lost:
            for number, process in self._processes.items():
                if code := process.poll():
                    self._lose(number, code)
            time.sleep(_LOOK_SECONDS)

    def _lose(self, number: int, code: int) -> None:
        said = last_lines(self._logs[number], 1) if code > 0 else ""
        why = exit_reason(code, f"Worker {number} of {self._count - 1}")
        self._lost = f"{why}{f' ({said})' if said else ''}; the run can go on from its last checkpoint"
        give_up()


def _told(source: BaseSource) -> dict[str, str | int]:
    """What a worker is told of the base."""
    names = ("name", "fingerprint", "stat_key", "template", "config", "quantisation", "parts")
    return {name: getattr(source, name) for name in names} | {"folder": str(source.folder)}
