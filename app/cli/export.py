"""Exporting from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import Home, Json, finished, listed, open_workbench, parsed_settings
from app.cli.console import Console, guarded
from core.export.cards import MUCH_ROUNDED, quantised_rows, rounding_words
from core.export.config import ExportConfig, require_own_options


@guarded
def export(
    adapter: Annotated[str, typer.Option(help="Name of the adapter.")],
    to: Annotated[Path, typer.Option(help="A new folder.")],
    format: Annotated[str, typer.Option(help=listed(ExportConfig, "format"))] = "safetensors",
    dtype: Annotated[
        str, typer.Option(help=f"Number format of the weights. {listed(ExportConfig, 'dtype')}")
    ] = "auto",
    shard_gigabytes: Annotated[
        float, typer.Option(help="Largest safetensors file, in GB; 0: as the base's files.")
    ] = 0.0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="One option of the format; repeatable. See: options export."
        ),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, or write it alone, for other software; the result is loaded again and
    checked.
    """
    console, workbench = Console(json), open_workbench(home)
    own = ({"shard_gigabytes": shard_gigabytes} if shard_gigabytes else {}) | parsed_settings(option)
    options = {"format": format, "dtype": dtype} | own
    require_own_options(str(options["format"]), own)
    target = to.expanduser().absolute()
    with console.progress() as progress:
        result = finished(workbench, workbench.exports.start(adapter, target, options), progress)
    show_export(console, result)


def _rounded(share: float) -> str:
    said = rounding_words(share, "these weights")
    if share < MUCH_ROUNDED:
        return f"{said}."
    return f"{said}. --dtype float32 keeps all of it, and so does the adapter alone: --format peft."


def show_export(console: Console, result: dict[str, Any]) -> None:
    """Where an export lies and what its check found; a failed one ends the command with 1."""
    rounding = result.get("rounding_loss")
    console.result(
        result,
        [
            ("Written", result["folder"]),
            ("Check", result["sentence"]),
            *([("Rounding", _rounded(rounding))] if rounding else []),
            *quantised_rows(result),
            *([("Registered as the base", result["base"])] if result.get("base") else []),
            *[("Warning", line) for line in result["warnings"]],
        ],
    )
    if not result["passed"]:
        raise typer.Exit(1)
