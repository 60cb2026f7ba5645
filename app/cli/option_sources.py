"""Where the command line takes training options from: a preset, a file, --set and --sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.service.presets import read_options
from app.service.workbench import Workbench
from core.errors import InvalidInput

Config = Annotated[
    Path | None, typer.Option(help="TOML file of training options.", exists=True, dir_okay=False)
]
PresetName = Annotated[str, typer.Option("--preset", help="A preset to start from; see presets list.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One option, such as rank=8; repeatable."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep", metavar="KEY=A,B,…", help="Several values of one option, trained at once; repeatable."
    ),
]


def given_options(
    workbench: Workbench, preset: str, config: Path | None, settings: list[str]
) -> dict[str, Any]:
    """Options from the preset, then from the file, then from --set."""
    options = dict(workbench.presets.find(preset).options) if preset else {}
    if config:
        try:
            options.update(read_options(config))
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {setting}: expected KEY=VALUE, such as --set rank=8.")
        options[key.strip()] = value.strip()
    return options
