"""The commands about base models."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, Settings, Yes, finished, open_workbench, parsed_settings
from app.cli.console import Console, guarded
from app.shared.bases import experts_of
from core.base_model.packings import made_plain
from core.base_model.way import WAYS
from core.lora.targets import counted
from core.train.training_options import TrainingOptions
from storage.tables import Base

models = typer.Typer(no_args_is_help=True, help="Base models: add, list, show, targets, verify, remove.")


@models.command("add")
@guarded
def models_add(
    origin: Annotated[
        str, typer.Argument(help="starter, a folder of safetensors, a .gguf file, or a hub id (owner/name).")
    ],
    name: Annotated[str, typer.Option(help="Name to show; default from the source.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Add a base model."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.models.add(origin, name), progress)
    rows = [("Added", result["name"]), ("Fingerprint", result["fingerprint"])]
    rows += [("Computed", f"on {WAYS[result['way']]}")] if result["way"] in WAYS else []
    console.result(result, rows + ([("The same model as", result["same_as"])] if result["same_as"] else []))


@models.command("list")
@guarded
def models_list(home: Home = None, json: Json = False) -> None:
    """List the base models."""

    Console(json).table(
        open_workbench(home).registry.all(Base),
        ["name", "architecture", "parameters", "dtype", "size_bytes", "way", "source"],
    )


@models.command("show")
@guarded
def models_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show everything known of a base model."""
    registry = open_workbench(home).registry
    base = registry.find(Base, name)
    experts = experts_of(registry, base)
    extra = {"experts": experts} if experts else {}
    extra |= {"computed": f"on {WAYS[base.way]}"} if base.way in WAYS else {}
    plain = made_plain(base.source, base.dtype)
    extra |= {"made_plain": plain} if plain else {}
    Console(json).row(base, leave_out=("layer_shapes",), extra=extra)


@models.command("targets")
@guarded
def models_targets(name: str, option: Settings = None, home: Home = None, json: Json = False) -> None:
    """Show which layers of a base model each usual choice of target modules hits, and how many parameters an
    adapter trains there, at the rank and of the kind that is set.
    """
    workbench = open_workbench(home)
    options = TrainingOptions.parse(parsed_settings(option))
    choices = workbench.training.targets(name, options)
    Console(json).records(
        [
            {
                "choice": label,
                "target_modules": one.target_modules,
                "layers": counted(one.layers),
                "parameters": one.parameters,
            }
            for label, one in choices.items()
        ]
    )


@models.command("verify")
@guarded
def models_verify(
    name: str,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take over changes in files other than the weights.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Compute the fingerprint afresh and compare it, and every other file, with what was recorded."""
    found = open_workbench(home).models.verify(name, accept=accept)
    Console(json).result({"name": name, "fingerprint": found, "unchanged": True}, [("Unchanged", found)])


@models.command("remove")
@guarded
def models_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Forget a base model; files that the workbench downloaded or converted are deleted."""
    console = Console(json)
    console.confirm(f"Remove the base model {name}?", yes)
    open_workbench(home).models.remove(name)
    console.result({"removed": name}, [("Removed", name)])
