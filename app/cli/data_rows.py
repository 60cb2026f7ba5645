"""Which rows of a data set are left out, and which are for validation."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded
from app.cli.data_report import DEFAULT_LENGTH, BaseName, MaxLength, checked_with
from app.cli.data_sources import (
    Count,
    FoldSystem,
    JoinTurns,
    Seed,
    Share,
    Stratify,
    TemplateKwargs,
    given_split,
)
from core.data.chat_options import ChatOptions, parsed_kwargs
from core.data.findings import ERROR, KINDS
from storage.tables import Dataset


@guarded
def data_exclude(
    name: str,
    errors: Annotated[bool, typer.Option("--errors", help="All rows with errors.")] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="All rows with this finding, such as duplicate; repeatable.")
    ] = None,
    base: BaseName = "",
    max_length: MaxLength = DEFAULT_LENGTH,
    home: Home = None,
    json: Json = False,
) -> None:
    """Leave rows out, as a new version. They are kept, and can be brought back with restore."""
    workbench, console = open_workbench(home), Console(json)
    unknown = [one for one in kind or [] if one not in KINDS]
    if unknown or not (errors or kind):
        raise typer.BadParameter(f"give --errors, or --kind with one of: {', '.join(KINDS)}")
    codes = [
        one.code for one in KINDS.values() if (errors and one.level == ERROR) or one.code in (kind or [])
    ]
    checked = (
        checked_with(workbench, console, workbench.registry.find(Dataset, name), base, max_length)
        if base
        else None
    )
    show_changed(console, workbench.datasets.leave_out(name, codes, base=checked))


@guarded
def data_restore(name: str, home: Home = None, json: Json = False) -> None:
    """Bring back all rows that were left out, as a new version."""
    show_changed(Console(json), open_workbench(home).datasets.bring_back(name))


@guarded
def data_split(
    name: str,
    share: Share = None,
    count: Count = None,
    seed: Seed = 0,
    stratify: Stratify = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Choose the validation rows anew, as a new version."""
    show_changed(
        Console(json), open_workbench(home).datasets.split(name, given_split(share, count, seed, stratify))
    )


@guarded
def data_fit(
    name: str,
    fold_system: FoldSystem = False,
    join_turns: JoinTurns = False,
    template_kwargs: TemplateKwargs = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Choose anew how conversations are fitted to a base's chat template, as a new version; what is not named
    is off.
    """
    chat = ChatOptions(fold_system, join_turns, parsed_kwargs(template_kwargs))
    show_changed(Console(json), open_workbench(home).datasets.fit(name, chat))


def show_changed(console: Console, row: Dataset) -> None:
    content = {
        key: getattr(row, key)
        for key in ("name", "version", "rows", "validation_rows", "excluded_rows", "faulty_rows", "digest")
    }
    console.result(
        content,
        [
            ("Data set", f"{row.name}, version {row.version}"),
            ("Rows", f"{row.rows:,}, {row.excluded_rows:,} left out"),
            ("Validation", f"{row.validation_rows:,}"),
            ("Rows with errors", f"{row.faulty_rows:,}"),
        ],
    )
