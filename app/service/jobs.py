"""Jobs: work that a process of its own does once, outside the engine.

Starting, following and cancelling them.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from app.jobs.kinds import JOBS, JobContext, JobKind, left_by
from app.service.usage import Usage
from app.shared.disk import plain_sentence
from app.shared.errors import JobFailed
from app.shared.processes import exit_reason, is_held, start_detached
from app.shared.settings import Settings
from core.errors import InvalidConfig
from storage.registry import Registry
from storage.tables import FAILED, INTERRUPTED, QUEUED, STOPPED, Job

_POLL_SECONDS = 0.2
_START_SECONDS = 60.0
_END_SECONDS = 10.0


class Jobs:
    """The jobs of one home folder."""

    def __init__(self, registry: Registry, settings: Settings, usage: Usage) -> None:
        self._registry, self._settings, self._usage = registry, settings, usage
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Mapping[str, Any]) -> Job:
        """Start a process that does a job of the kind called `name`.

        Raises InvalidConfig if there is no such kind, what the kind raises for its arguments, and
        QuotaExceeded if it would keep something and there is no room left.
        """
        kind = JOBS.get(name)
        valid = kind.validate(JobContext(self._settings, self._registry), arguments)
        if kind.keeps:
            self._usage.require_room()
        job = self._registry.save(
            Job(kind=name, title=kind.title(valid), arguments=valid, message="Starting")
        )
        given = ["--home", str(self._settings.home), "--job", str(job.id)]
        try:
            self._processes[job.id or 0] = start_detached(
                "app.jobs.process", given, self._settings.logs / "jobs.log"
            )
        except OSError as error:
            self._registry.jobs.interrupt(job, f"{job.title} could not be started. {plain_sentence(error)}")
            raise
        return job

    def offered(self) -> list[JobKind]:
        """The kinds that have no place of their own, and are started with their options alone."""
        return [kind for kind in JOBS.all().values() if not kind.place]

    def start_offered(self, name: str, options: Mapping[str, Any]) -> Job:
        """Start a job of such a kind. Raises as start(), and InvalidConfig for a kind that has its place."""
        kind = JOBS.get(name)
        if kind.place:
            raise InvalidConfig(f"{kind.label} is not started from options alone; see {kind.place}.")
        return self.start(name, options)

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
        """End a job, whoever started it; what it had begun is thrown away. Raises JobFailed if it is not
        under way, or has come to its own end first.
        """
        if not self._registry.get(Job, job.id or 0).active:
            raise JobFailed(f"{job.title} is not under way, so it cannot be cancelled.")
        process = self._processes.get(job.id or 0) or self._process_elsewhere(job)
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process.terminate()
            self._require_end(job, process)
            process.wait()
        # If its process had not come up to do so.
        self._registry.jobs.stop(job.id or 0, f"Cancelled. {left_by(job.kind)}.")
        if self._registry.get(Job, job.id or 0).state != STOPPED:
            raise JobFailed(f"{job.title} came to its end before it could be cancelled.")

    def _require_end(self, job: Job, process: subprocess.Popen[bytes] | psutil.Process) -> None:
        """Kill a process that was asked to end and does not: it is stopped, or stuck. What it leaves is swept
        by the next.
        """
        end = time.monotonic() + _END_SECONDS
        while is_held(self._settings.job_lock(job.id or 0)):
            if time.monotonic() > end:
                process.kill()
                return
            time.sleep(_POLL_SECONDS)

    def _process_elsewhere(self, job: Job) -> psutil.Process:
        """The process of a job that another program started: the one that holds its lock, once it does."""
        while True:
            if is_held(self._settings.job_lock(job.id or 0)):
                try:
                    return psutil.Process(int(self._settings.job_pid(job.id or 0).read_text()))
                except (OSError, ValueError, psutil.NoSuchProcess):
                    pass  # it is coming up or going down
            if not self._is_coming_up(self._registry.get(Job, job.id or 0)):
                raise JobFailed(f"{job.title} is not under way, so it cannot be cancelled.")
            time.sleep(_POLL_SECONDS)

    def _is_coming_up(self, job: Job) -> bool:
        return job.state == QUEUED and time.time() - job.created < _START_SECONDS

    def notice_deaths(self) -> None:
        """Mark jobs whose process is gone as interrupted, with the reason as far as it is known."""
        for job in self._registry.jobs.active():
            self._notice_death(job)

    def _notice_death(self, job: Job) -> None:
        process = self._processes.get(job.id or 0)
        code = process.poll() if process else None
        starting = code is None and self._is_coming_up(job)
        if starting or is_held(self._settings.job_lock(job.id or 0)):
            return
        reason = f"{job.title}: {exit_reason(code, 'its process')}. {left_by(job.kind)}; start it again."
        self._registry.jobs.interrupt(job, reason)  # if it has not begun or ended between the two looks
