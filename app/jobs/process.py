"""One job in a process of its own: adding a model, importing data, exporting. Survives the app's end."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from app.shared.bases import open_registry
from app.shared.errors import USER_ERRORS
from app.shared.private import private_by_default
from app.shared.settings import Settings, settings_for
from core.events import Progress
from core.reporting import Report
from storage.registry import Registry
from storage.tables import FAILED, FINISHED, RUNNING, Job

_REPORT_SECONDS = 0.25
_ENDED = 143  # the exit code of a process that was asked to end

log = logging.getLogger("job")
Work = Callable[[Settings, Registry, dict[str, Any], Report], dict[str, Any]]

# Imported only when asked for: torch takes seconds, and importing data does not need it.
KINDS = {
    "add_model": "app.jobs.add_model",
    "export_adapter": "app.jobs.export_adapter",
    "import_adapter": "app.jobs.adapters",
    "inspect_adapter": "app.jobs.adapters",
    "verify_adapter": "app.jobs.adapters",
    "resize_adapter": "app.jobs.adapters",
    "combine_adapters": "app.jobs.adapters",
    "import_data": "app.jobs.data",
    "check_data": "app.jobs.data",
}


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
        self._registry.jobs.update(self._job_id, message=progress.message, fraction=progress.fraction)


def run_job(settings: Settings, job_id: int) -> bool:
    """Do the job and write its end into its row. Returns whether it went well."""
    registry = open_registry(settings)
    job = registry.get(Job, job_id)
    registry.jobs.update(job_id, state=RUNNING)
    try:
        work: Work = getattr(importlib.import_module(KINDS[job.kind]), job.kind)
        result = work(settings, registry, job.arguments, _RowReport(registry, job_id))
    except (*USER_ERRORS, OSError) as error:
        log.warning("job %s was refused", job_id, exc_info=error)
        registry.jobs.update(job_id, state=FAILED, message=str(error), ended=time.time())
        return False
    except Exception as error:
        log.error("job %s failed", job_id, exc_info=error)
        message = (
            f"Unexpected {type(error).__name__}: {str(error)[:300]} (details in logs/jobs.log of "
            "the home folder)"
        )
        registry.jobs.update(job_id, state=FAILED, message=message, ended=time.time())
        return False
    registry.jobs.update(job_id, state=FINISHED, message="", fraction=1.0, result=result, ended=time.time())
    return True


def main() -> int:
    """Hold the job's lock and do it."""
    private_by_default()
    parser = argparse.ArgumentParser(description="One job of the LoRA Workbench; started by the app.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", type=int, required=True)
    given = parser.parse_args()
    settings = settings_for(given.home)
    signal.signal(
        signal.SIGTERM, lambda *about: sys.exit(_ENDED)
    )  # what was begun is cleaned up on the way out
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with FileLock(settings.job_lock(given.job)):
        return 0 if run_job(settings, given.job) else 1


if __name__ == "__main__":
    sys.exit(main())
