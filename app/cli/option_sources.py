"""Where the command line takes training options from: a preset, a file, --set and --sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import parsed_settings
from app.service.presets import read_options
from app.service.workbench import Workbench
from core.errors import InvalidInput

Config = Annotated[
    Path | None, typer.Option(help="TOML file of training options.", exists=True, dir_okay=False)
]
PresetName = Annotated[str, typer.Option("--preset", help="A preset to start from; see presets list.")]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep", metavar="KEY=A,B,…", help="Several values of one option, trained at once; repeatable."
    ),
]

Anyway = Annotated[
    bool, typer.Option("--anyway", help="Train what the checklist refuses, such as the queries alone.")
]


def given_options(
    workbench: Workbench, preset: str, config: Path | None, settings: list[str] | None
) -> dict[str, Any]:
    """Options from the preset, then from the file, then from --set."""
    options = dict(workbench.presets.find(preset).options) if preset else {}
    if config:
        try:
            options.update(read_options(config))
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None
    return options | parsed_settings(settings)
