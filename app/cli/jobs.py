"""The command line's part about jobs: those that have no command of their own, and all that were started."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, Settings, finished, open_workbench, parsed_settings
from app.cli.console import Console, guarded
from app.jobs.kinds import JOBS
from storage.tables import Job

jobs = typer.Typer(no_args_is_help=True, help="Jobs: kinds, start, list, show, cancel.")
JobId = Annotated[int, typer.Argument(help="Number of the job.", min=1, max=2**63 - 1)]


@jobs.command("kinds")
@guarded
def jobs_kinds(home: Home = None, json: Json = False) -> None:
    """List the kinds of jobs, where each is started, and with what options."""
    Console(json).records(
        [
            {
                "name": kind.name,
                "what": kind.help,
                "where": kind.place or f"jobs start {kind.name}",
                "options": ", ".join(option.name for option in kind.options.options()),
            }
            for kind in JOBS.all().values()
        ]
    )


@jobs.command("start")
@guarded
def jobs_start(
    kind: Annotated[str, typer.Argument(help="Name of the kind; see jobs kinds.")],
    option: Settings = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Start a job that has no command of its own, and wait for its result."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.jobs.start_offered(kind, parsed_settings(option)), progress)
    console.result(result, [(key, str(value)) for key, value in result.items()])


@jobs.command("list")
@guarded
def jobs_list(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    home: Home = None,
    json: Json = False,
) -> None:
    """List the jobs, the newest first."""
    rows = open_workbench(home).registry.all(Job, limit=limit)
    Console(json).table(rows, ["id", "kind", "title", "state", "message", "created"])


@jobs.command("show")
@guarded
def jobs_show(number: JobId, home: Home = None, json: Json = False) -> None:
    """Show everything known of a job, with its result."""
    Console(json).row(open_workbench(home).registry.get(Job, number))


@jobs.command("cancel")
@guarded
def jobs_cancel(number: JobId, home: Home = None, json: Json = False) -> None:
    """End a job that is under way; what it had begun is thrown away."""
    workbench = open_workbench(home)
    job = workbench.registry.get(Job, number)
    workbench.jobs.cancel(job)
    Console(json).result({"cancelled": job.id}, [("Cancelled", job.title)])
