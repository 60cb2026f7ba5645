"""The commands about presets."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, Settings, Yes, open_workbench, parsed_settings
from app.cli.console import Console, guarded
from app.service.presets import Preset
from core.train.training_options import TrainingOptions

presets = typer.Typer(no_args_is_help=True, help="Presets of training options: list, show, save, remove.")


@presets.command("list")
@guarded
def presets_list(home: Home = None, json: Json = False) -> None:
    """List the presets."""
    found = open_workbench(home).presets.all()
    Console(json).records(
        [{"name": one.name, "from": str(one.file or "shipped"), "why": one.why or one.fault} for one in found]
    )


@presets.command("show")
@guarded
def presets_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show the options of a preset; what is not named has its default."""
    found: Preset = open_workbench(home).presets.find(name)
    content = {"name": found.name, "why": found.why, "own": found.own, "options": dict(found.options)}
    Console(json).result(
        content, [("Why", found.why), *[(key, str(value)) for key, value in found.options.items()]]
    )


@presets.command("save")
@guarded
def presets_save(
    name: str,
    run: Annotated[
        int | None, typer.Option("--run", help="Take the options of this run.", min=1, max=2**63 - 1)
    ] = None,
    option: Settings = None,
    why: Annotated[str, typer.Option(help="A sentence why.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="In the place of your preset of this name.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Save options as a preset of your own: those of a run, or those given with --set."""
    workbench = open_workbench(home)
    options = (workbench.runs.options(run) if run else {}) | parsed_settings(option)
    path = workbench.presets.save(name, TrainingOptions.parse(options), why, replace=replace)
    Console(json).result({"preset": name, "file": str(path)}, [("Saved", str(path))])


@presets.command("remove")
@guarded
def presets_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Delete a preset of your own."""
    console = Console(json)
    console.confirm(f"Delete the preset {name}?", yes)
    open_workbench(home).presets.remove(name)
    console.result({"removed": name}, [("Removed", name)])
