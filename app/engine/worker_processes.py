"""Workers of this machine: started, watched and ended by who has them train, the engine or a machine that has
joined another one's run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.shared.processes import exit_reason, last_lines, start_detached
from app.shared.settings import Settings

_LOOK_SECONDS = 0.01
_END_SECONDS = 2.0  # for one that has trained to the end


class WorkerProcesses:
    """Processes of a group of `count`."""

    def __init__(
        self, settings: Settings, folder: Path, task: Mapping[str, object], numbers: Sequence[int]
    ) -> None:
        """Start one for each of these numbers in the group. task: what they are told beside (worker.py); it
        is put into the folder, which is private.
        """
        self._count, self.folder = task["count"], folder
        file = folder / "task.json"
        file.write_text(json.dumps({**task, "engine": os.getpid()}))
        self._logs = {one: settings.logs / f"worker-{one}.log" for one in numbers}
        self._processes = {
            one: start_detached("app.engine.worker", ["--task", str(file), "--number", str(one)], log)
            for one, log in self._logs.items()
        }

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each, by number."""
        return {number: process.pid for number, process in self._processes.items()}

    def lost(self) -> str:
        """Which of them is gone, and why; empty while none is."""
        for number, process in self._processes.items():
            if code := process.poll():
                said = last_lines(self._logs[number], 1) if code > 0 else ""
                why = exit_reason(code, f"Worker {number} of {int(str(self._count)) - 1}")
                return f"{why}{f' ({said})' if said else ''}"
        return ""

    def have_ended(self) -> bool:
        """Whether all have, by themselves, as those do that have trained to the end."""
        until = time.monotonic() + _END_SECONDS
        while any(process.poll() is None for process in self._processes.values()):
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_SECONDS)
        return all(process.poll() == 0 for process in self._processes.values())

    def kill(self) -> None:
        """End those that are still there."""
        for process in self._processes.values():
            process.kill()
