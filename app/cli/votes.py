"""The commands about votes: who was voted best, and the votes taken along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import BaseName, Home, Json, base_or_default, open_workbench, write_new
from app.cli.console import Console, guarded
from app.service.vote_rows import FORMS, PAIRS
from core.errors import InvalidInput

votes = typer.Typer(no_args_is_help=True, help="Votes on answers: leaderboard, export, to-data.")
OfBase = Annotated[str, typer.Option("--base", help="Only votes on this base model; by default all.")]


@votes.command("leaderboard")
@guarded
def votes_leaderboard(base: BaseName = "", home: Home = None, json: Json = False) -> None:
    """Show the Bradley–Terry ratings of all votes on a base, with 95 % intervals.

    A rating without an interval is compared with nobody; ratings compare within one part only. by_prior says
    that somebody there has only won, or only lost, and that a weak prior holds the ratings.
    """
    console, workbench = Console(json), open_workbench(home)
    found = [one.record() for one in workbench.judging.leaderboard(base_or_default(workbench, base))]
    console.records(found, "No votes on this base yet; they are given under Playground, Judge.")


@votes.command("export")
@guarded
def votes_export(
    file: Annotated[Path, typer.Argument(help="A new file, for JSON lines.")],
    form: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {words}" for name, words in FORMS.items()) + ".")
    ] = PAIRS,
    base: OfBase = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Write votes into a file: all of them as they are kept, or as chosen and rejected answers."""
    lines = list(open_workbench(home).votes.lines(form, base))
    if not lines:
        raise InvalidInput("There are no votes to write; they are given under Playground, Judge.")
    write_new(file, "".join(lines))
    Console(json).result(
        {"file": str(file), "rows": len(lines)}, [("Written", str(file)), ("Rows", f"{len(lines):,}")]
    )


@votes.command("to-data")
@guarded
def votes_to_data(
    name: Annotated[str, typer.Argument(help="Name of the new data set.")],
    base: OfBase = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a data set with a row for each vote that has a best answer."""
    made = open_workbench(home).votes.to_data(name, base)
    content = {"name": made.row.name, "rows": made.votes, "left_out": made.left_out}
    Console(json).result(content, [("Made", made.sentence)])
