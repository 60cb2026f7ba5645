"""The commands about prompt sets: saved lists of prompts, and what was answered to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import (
    BaseName,
    Home,
    Json,
    Sampling,
    Yes,
    base_or_default,
    finished,
    open_workbench,
    sampling,
    write_new,
)
from app.cli.console import Console, guarded
from app.service.prompt_sets import CSV, FORMS, Matrix
from app.service.prompt_texts import prompts_text
from app.service.workbench import Workbench
from core.errors import InvalidInput

prompts = typer.Typer(no_args_is_help=True, help="Prompt sets: list, add, show, remove, run, runs, answers.")
Number = Annotated[int, typer.Argument(help="Number of the run; see prompts runs.", min=1, max=2**63 - 1)]


@prompts.command("list")
@guarded
def prompts_list(home: Home = None, json: Json = False) -> None:
    """List the prompt sets."""
    rows = [
        {"name": one.name, "prompts": len(one.prompts), "created": one.created}
        for one in open_workbench(home).prompts.all()
    ]
    Console(json).records(rows)


@prompts.command("add")
@guarded
def prompts_add(
    name: Annotated[str, typer.Argument(help="Name of the set.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Text with a prompt a line, JSON lines, or a JSON list.", exists=True, dir_okay=False
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeatable.")] = None,
    data: Annotated[str, typer.Option(help="Take them from the rows of this data set.")] = "",
    rows: Annotated[int, typer.Option(help="How many of its rows.", min=1, max=2000)] = 50,
    replace: Annotated[bool, typer.Option("--replace", help="In the place of the set of this name.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Save a prompt set, from a file, from the command line or from the rows of a data set."""
    workbench = open_workbench(home)
    found = [*(workbench.prompts.in_file(file) if file else [])]
    found += [[{"role": "user", "content": one}] for one in prompt or []]
    found += workbench.prompts.in_data(data, rows) if data else []
    if not found:
        raise InvalidInput("There are no prompts: give a file, --prompt or --data.")
    kept = workbench.prompts.keep(name, found, before=name if replace else "")
    content = {"name": kept.name, "prompts": len(kept.prompts)}
    Console(json).result(content, [("Kept", kept.name), ("Prompts", f"{len(kept.prompts):,}")])


@prompts.command("show")
@guarded
def prompts_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show the prompts of a set, as they can be written into a file."""
    found = open_workbench(home).prompts.find(name)
    if json:
        Console(json).result({"name": found.name, "prompts": found.prompts}, [])
        return
    print(prompts_text(found.prompts))


@prompts.command("remove")
@guarded
def prompts_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Remove a prompt set; what was answered to its prompts stays."""
    workbench, console = open_workbench(home), Console(json)
    found = workbench.prompts.find(name)
    console.confirm(f"Remove the prompt set {found.name} with {len(found.prompts):,} prompts?", yes)
    workbench.prompts.remove(found.name)
    console.result({"removed": found.name}, [("Removed", found.name)])


@prompts.command("run")
@guarded
def prompts_run(
    name: Annotated[str, typer.Argument(help="Name of the set.")] = "",
    base: BaseName = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Who answers beside the plain base: an adapter, run-3@200, or a=0.7+b=0.3; repeatable."
        ),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--plain/--no-plain", help="Whether the plain base answers.")
    ] = True,
    resume: Annotated[
        int | None,
        typer.Option(help="Answer what is missing in the run of this number.", min=1, max=2**63 - 1),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    option: Sampling = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Put a prompt set to the base and adapters, and wait for the answers. Each is kept at once, so an
    interrupted run goes on with --resume.
    """
    if not name and resume is None:
        raise typer.BadParameter("name a prompt set, or give --resume with the number of a run")
    workbench, console = open_workbench(home), Console(json)
    if resume is not None:
        number, job = resume, workbench.prompts.go_on(resume)
    else:
        config = sampling(option, greedy, max_tokens=max_tokens, seed=seed)
        speakers = [*([None] if with_base else []), *(adapter or [])]
        started, job = workbench.prompts.start(name, base_or_default(workbench, base), speakers, config)
        number = started.id or 0
    with console.progress() as progress:
        result = finished(workbench, job, progress)
    console.result(
        result,
        [
            ("Answered", f"{result['answers']:,}, {result['refused']:,} refused"),
            ("Read them", f"prompts answers {number}"),
        ],
    )


@prompts.command("runs")
@guarded
def prompts_runs(home: Home = None, json: Json = False) -> None:
    """List the runs over prompt sets, the newest first."""
    workbench = open_workbench(home)
    Console(json).records([_run_line(workbench, one.id or 0) for one in workbench.prompts.runs()])


@prompts.command("answers")
@guarded
def prompts_answers(
    number: Number,
    form: Annotated[str, typer.Option(help=f"One of {', '.join(FORMS)}.")] = CSV,
    out: Annotated[Path | None, typer.Option(help="Write them into this new file.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show the answers of a run, or write them into a file."""
    workbench, console = open_workbench(home), Console(json)
    text = "".join(workbench.prompts.lines(number, form))
    if out is not None:
        write_new(out, text)
        console.result({"file": str(out)}, [("Written", str(out))])
    elif json:
        console.result(
            {**_run_line(workbench, number), "answers": _answers(workbench.prompts.matrix(number))}, []
        )
    else:
        print(text, end="")


def _answers(matrix: Matrix) -> list[dict[str, Any]]:
    return [
        {
            "messages": turns,
            "answers": {
                name: one.text if one else None for name, one in zip(matrix.names, cells, strict=True)
            },
        }
        for turns, cells in zip(matrix.run.prompts, matrix.cells, strict=True)
    ]


def _run_line(workbench: Workbench, number: int) -> dict[str, Any]:
    matrix = workbench.prompts.matrix(number)
    return {
        "id": number,
        "set": matrix.run.set_name,
        "base": matrix.run.base_name,
        "who": ", ".join(matrix.names),
        "answered": f"{matrix.answered} of {len(matrix.cells) * len(matrix.names)}",
        "created": matrix.run.created,
    }
