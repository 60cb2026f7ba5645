"""What all groups of commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.service import Workbench
from app.settings import settings_for

Home = Annotated[Path | None, typer.Option("--home", help="Home folder; default $LORA_WORKBENCH_HOME or the user's data folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing.")]


def open_workbench(home: Path | None) -> Workbench:
    """The workbench of a home folder, after a look at what has died since."""
    workbench = Workbench(settings_for(home))
    workbench.notice_deaths()
    return workbench
