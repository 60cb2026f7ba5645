"""What all groups of commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.console import ProgressLine
from app.service.workbench import Workbench
from app.shared.settings import settings_for
from storage.tables import Job

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; default $LORA_WORKBENCH_HOME or the user's data folder."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing.")]


def open_workbench(home: Path | None) -> Workbench:
    """The workbench of a home folder, after a look at what has died since."""
    workbench = Workbench(settings_for(home))
    workbench.notice_deaths()
    return workbench


def finished(workbench: Workbench, job: Job, progress: ProgressLine) -> dict[str, Any]:
    """A job's result. Interrupting the command ends the job."""
    try:
        return workbench.jobs.wait(job, progress.job)
    except KeyboardInterrupt:
        workbench.jobs.cancel(job)
        raise
