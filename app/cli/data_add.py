"""Adding a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded
from app.cli.data_sources import (
    Count,
    Files,
    FoldSystem,
    JoinTurns,
    Like,
    Map,
    Near,
    Seed,
    Separator,
    Share,
    SpecialTokens,
    Stratify,
    Template,
    TemplateKwargs,
    existing_files,
    given_mapping,
    given_split,
)
from app.shared.data_import import ImportRequest, import_dataset
from app.shared.text import require_text
from core.data.chat_options import ChatOptions, parsed_kwargs


@guarded
def data_add(
    files: Files,
    name: Annotated[str, typer.Option(help="Name to show; default the file's.")] = "",
    map_: Map = None,
    template: Template = None,
    separator: Separator = "",
    special_tokens: SpecialTokens = False,
    validation: Annotated[
        list[str] | None, typer.Option(help="A file whose rows are for validation only; repeatable.")
    ] = None,
    share: Share = None,
    count: Count = None,
    seed: Seed = 0,
    stratify: Stratify = False,
    near: Near = True,
    fold_system: FoldSystem = False,
    join_turns: JoinTurns = False,
    template_kwargs: TemplateKwargs = "",
    like: Like = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Import a data set: one or several files, a zip of them, or a data set of the hub."""
    workbench, console = open_workbench(home), Console(json)
    if "sample" in files:
        if len(files) > 1 or map_ or template or separator or special_tokens or like or validation:
            raise typer.BadParameter(
                "sample is a data set of its own; leave out the other files and options."
            )
        row = workbench.datasets.add_sample(name)
    else:
        require_text(*files, name)
        chat = ChatOptions(fold_system, join_turns, parsed_kwargs(template_kwargs))
        mapping = given_mapping(workbench, files, map_, template, separator, like, special_tokens)
        split = given_split(share, count, seed, stratify, has_file=bool(validation))
        for_validation = [str(one) for one in existing_files(validation or [])]
        request = ImportRequest(
            [str(one) for one in existing_files(files)], name, for_validation, mapping, split, near, chat
        )
        with console.progress() as progress:
            row = import_dataset(workbench.registry, request, progress.report)
    console.row(row, leave_out=() if json else ("preview", "mapping", "digest"))
    summary = workbench.datasets.open(row).summary
    for hint in summary.hints if summary else ():
        console.say(hint)
    if row.faulty_rows:
        console.say(
            f"Rows with errors: {row.faulty_rows:,}. See them: data report {row.name!r}. "
            f"Leave them out: data exclude {row.name!r} --errors"
        )
