"""Data sets and their versions: listed, shown, taken back, removed."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, Yes, open_workbench
from app.cli.console import Console, guarded
from app.cli.data_rows import show_changed
from storage.tables import Dataset


@guarded
def data_versions(name: str, home: Home = None, json: Json = False) -> None:
    """List the versions of a data set, the newest first."""
    registry = open_workbench(home).registry
    rows = registry.datasets.versions(registry.find(Dataset, name).id or 0)
    Console(json).table(
        rows,
        ["number", "parent", "change", "rows", "validation_rows", "excluded_rows", "faulty_rows", "digest"],
    )


@guarded
def data_use(
    name: str,
    number: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    home: Home = None,
    json: Json = False,
) -> None:
    """Make an earlier version the newest again."""
    show_changed(Console(json), open_workbench(home).datasets.go_back(name, number))


@guarded
def data_list(home: Home = None, json: Json = False) -> None:
    """List the data sets."""
    columns = [
        "name",
        "version",
        "format",
        "rows",
        "validation_rows",
        "excluded_rows",
        "faulty_rows",
        "size_bytes",
        "source_name",
    ]
    Console(json).table(open_workbench(home).registry.all(Dataset), columns)


@guarded
def data_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show a data set and its first rows."""
    Console(json).row(open_workbench(home).registry.find(Dataset, name))


@guarded
def data_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Delete a data set with all its versions."""
    console = Console(json)
    console.confirm(f"Delete the data set {name}?", yes)
    open_workbench(home).datasets.remove(name)
    console.result({"removed": name}, [("Removed", name)])
