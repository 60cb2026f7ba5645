"""Jobs: work that a process of its own does once, outside the engine.

Starting, following and cancelling them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

from app.service.usage import require_quota
from app.shared.errors import JobFailed
from app.shared.processes import exit_reason, is_held, start_detached
from app.shared.settings import Settings
from storage.registry import Registry
from storage.tables import FAILED, INTERRUPTED, QUEUED, STOPPED, Job

_FREE = ("inspect_adapter", "verify_adapter", "check_data")  # keep nothing, so no quota is in their way
_POLL_SECONDS = 0.2
_START_SECONDS = 60.0


class Jobs:
    """The jobs of one home folder."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry, self._settings = registry, settings
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, kind: str, title: str, arguments: dict[str, Any]) -> Job:
        """Start a process that does the job.

        Raises QuotaExceeded if it would keep something and there is no room left.
        """
        if kind not in _FREE:
            require_quota(self._registry, self._settings)
        job = self._registry.save(Job(kind=kind, title=title, arguments=arguments, message="Starting"))
        given = ["--home", str(self._settings.home), "--job", str(job.id)]
        self._processes[job.id or 0] = start_detached(
            "app.jobs.process", given, self._settings.logs / "jobs.log"
        )
        return job

    def wait(self, job: Job, watch: Callable[[Job], None] = lambda job: None) -> dict[str, Any]:
        """Follow a job to its end; return its result. Raises JobFailed with the reason."""
        while True:
            self.notice_deaths()
            job = self._registry.get(Job, job.id or 0)
            watch(job)
            if not job.active:
                break
            time.sleep(_POLL_SECONDS)
        if job.state in (FAILED, INTERRUPTED, STOPPED):
            raise JobFailed(job.message)
        return job.result

    def cancel(self, job: Job) -> None:
        """End a job; what it had begun is thrown away. Raises JobFailed if another program started it."""
        process = self._processes.get(job.id or 0)
        if process is None:
            raise JobFailed(f"{job.title} was started by another program; end it there.")
        process.terminate()
        process.wait()
        self._registry.jobs.stop(job.id or 0, "Cancelled. Nothing was added.")

    def notice_deaths(self) -> None:
        """Mark jobs whose process is gone as interrupted, with the reason as far as it is known."""
        for job in self._registry.jobs.active():
            self._notice_death(job)

    def _notice_death(self, job: Job) -> None:
        process = self._processes.get(job.id or 0)
        code = process.poll() if process else None
        starting = job.state == QUEUED and code is None and time.time() - job.created < _START_SECONDS
        if starting or is_held(self._settings.job_lock(job.id or 0)):
            return
        reason = f"{job.title}: {exit_reason(code, 'its process')}. Nothing was added; start it again."
        self._registry.jobs.interrupt(job, reason)  # if it has not begun or ended between the two looks
