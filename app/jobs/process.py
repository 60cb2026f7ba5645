"""One job in a process of its own, of whatever kind its row names. Survives the app's end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock

from app.jobs.kinds import JOBS, JobContext, left_by
from app.shared.bases import open_registry
from app.shared.disk import is_full, plain_sentence
from app.shared.errors import USER_ERRORS
from app.shared.private import private_by_default
from app.shared.settings import Settings, settings_for
from app.shared.user_settings import heed_offline
from app.shared.ways import StoredWays
from core.base_model.decisions import keep_decisions_in
from core.events import Progress
from core.panics import panics_as_errors
from storage.registry import Registry
from storage.tables import Job

_REPORT_SECONDS = 0.25
_ENDED = 143  # the exit code of a process that was asked to end

log = logging.getLogger("job")


class _RowReport:
    """A Report that writes to the job's row, a few times a second."""

    def __init__(self, registry: Registry, job_id: int) -> None:
        self._registry, self._job_id = registry, job_id
        self._last = ("", 0.0)

    def __call__(self, progress: Progress) -> None:
        message, at = self._last
        if progress.message.split(" (")[0] == message and time.monotonic() - at < _REPORT_SECONDS:
            return
        self._last = (progress.message.split(" (")[0], time.monotonic())
        self._registry.jobs.report(self._job_id, progress.message, progress.fraction)


def run_job(
    settings: Settings,
    job_id: int,
    ended: threading.Event | None = None,
    concluding: threading.Event | None = None,
) -> bool:
    """Do the job and write its end into its row. Returns whether it went well.

    Where it was `ended` from outside, that is its end: libraries may turn it into an error. `concluding` is
    set when it is too late for that.
    """
    registry = open_registry(settings)
    job = registry.jobs.begin(job_id)
    try:
        report, concluding = _RowReport(registry, job_id), concluding or threading.Event()
        context = JobContext(settings, registry, report, job_id, concluding)
        heed_offline(settings)
        with panics_as_errors():
            result = JOBS.get(job.kind).run(context, job.arguments)
    except Exception as error:  # noqa: BLE001  (the boundary: whatever ends a job must end up in its row)
        if ended is not None and ended.is_set():
            sys.exit(_ENDED)
        _note_failure(registry, job_id, error)
        return False
    if not concluding.is_set():
        registry.jobs.finish(job_id, result)
    return True


def _note_failure(registry: Registry, job_id: int, error: Exception) -> None:
    """Write why the job failed: a refusal in its own words, anything else with where to look further."""
    if isinstance(error, (*USER_ERRORS, OSError)) or is_full(error):
        log.warning("job %s was refused", job_id, exc_info=error)
        registry.jobs.fail(job_id, plain_sentence(error))
        return
    log.error("job %s failed", job_id, exc_info=error)
    said = f"Unexpected {type(error).__name__}: {str(error)[:300]}"
    registry.jobs.fail(job_id, f"{said} (details in logs/jobs.log of the home folder)")


def main() -> int:
    """Hold the job's lock and do it."""
    private_by_default()
    parser = argparse.ArgumentParser(description="One job of the LoRA Workbench; started by the app.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", type=int, required=True)
    given = parser.parse_args()
    settings = settings_for(given.home)
    ended, concluding = threading.Event(), threading.Event()

    def end(*about: object) -> None:
        ended.set()
        if not concluding.is_set():
            sys.exit(_ENDED)  # what was begun is cleaned up on the way out

    signal.signal(signal.SIGTERM, end)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    pid = settings.job_pid(given.job)
    with FileLock(settings.job_lock(given.job)):
        try:
            pid.write_text(str(os.getpid()))
        except OSError as error:  # on a full disk: then only who started the job can cancel it
            log.warning("the process id of job %s could not be written: %s", given.job, error)
        keep_decisions_in(StoredWays(open_registry(settings)))
        try:
            return 0 if run_job(settings, given.job, ended, concluding) else 1
        except SystemExit:
            # Written while the lock is held: who looks for processes that died must not find one.
            registry = open_registry(settings)
            kind = registry.get(Job, given.job).kind
            registry.jobs.stop(given.job, f"Cancelled. {left_by(kind)}.")
            raise
        finally:
            pid.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
