"""What could be wrong, as a command."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded
from app.shared.settings import settings_for


@guarded
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every stored file and compare it with its digest.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Look at python, torch, GPU, memory, disk, SQLite, the home folder and the engine."""
    from app.service.doctor import examine, examine_deeply

    findings = examine(settings_for(home))
    if deep:
        findings += examine_deeply(open_workbench(home))
    Console(json).findings(findings)
    if any(finding.level == "fault" for finding in findings):
        raise typer.Exit(1)
