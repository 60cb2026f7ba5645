"""The commands about data sets, put together."""

from __future__ import annotations

from collections.abc import Callable

import typer

from app.cli.data_add import data_add
from app.cli.data_report import data_check, data_report
from app.cli.data_rows import data_exclude, data_fit, data_restore, data_split
from app.cli.data_versions import data_list, data_remove, data_show, data_use, data_versions

data = typer.Typer(
    no_args_is_help=True,
    help="Data sets: check, add, report, exclude, restore, split, fit, versions, use, list, show, remove.",
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "add": data_add,
    "check": data_check,
    "report": data_report,
    "exclude": data_exclude,
    "restore": data_restore,
    "split": data_split,
    "fit": data_fit,
    "versions": data_versions,
    "use": data_use,
    "list": data_list,
    "show": data_show,
    "remove": data_remove,
}
for name, command in _COMMANDS.items():
    data.command(name)(command)
