"""The commands that hold a run against what it has to beat."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, finished, open_workbench
from app.cli.console import Console, guarded
from app.cli.following import exit_if_lost, follow_runs, wait_for
from app.cli.runs import RunId
from app.service.baselines import SHOTS
from app.service.costs import latency_rows
from storage.tables import Run

Detach = Annotated[bool, typer.Option("--detach", help="Return at once; what was started goes on.")]


@guarded
def baselines(
    run_id: RunId,
    shots: Annotated[
        int, typer.Option(help="Examples from the training part in the prompt.", min=1, max=64)
    ] = SHOTS,
    full: Annotated[
        bool, typer.Option("--full/--no-full", help="Whether full fine-tuning is trained, where it fits.")
    ] = True,
    detach: Detach = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Hold a run against full fine-tuning, the plain base, and examples in its prompt.

    What is missing is trained and measured first. The table has parameters, file, memory, time, validation
    loss and scores.
    """
    console, workbench = Console(json), open_workbench(home)
    begun = workbench.baselines.begin(run_id, shots, full=full)
    if begun.left_out:
        console.say(begun.left_out)
    ended: list[Run] = []
    if not detach:
        with console.progress() as progress:
            if begun.measuring is not None:
                finished(workbench, begun.measuring, progress)
            ended = wait_for(progress, workbench, begun.full)
    console.records([one.record() for one in workbench.baselines.table(run_id, shots)])
    exit_if_lost(ended)


@guarded
def costs(
    run_id: Annotated[
        int | None, typer.Argument(help="Number of the run; by default the newest.", min=1, max=2**63 - 1)
    ] = None,
    detach: Detach = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """What LoRA costs: hold the literature's claims against a run and full fine-tuning beside it.

    What is missing is trained and measured first. The second table is the time of answers with the adapter
    beside the base, and merged into it, as shares of the base's own.
    """
    console, workbench = Console(json), open_workbench(home)
    run_id = run_id or workbench.costs.usual().id or 0
    begun = workbench.costs.begin(run_id)
    if begun.left_out:
        console.say(begun.left_out)
    ended: list[Run] = []
    if not detach:
        with console.progress() as progress:
            ended = wait_for(progress, workbench, begun.full)
            if begun.latency is not None:
                finished(workbench, begun.latency, progress)
    found = workbench.costs.of(run_id)
    times = latency_rows(found.latency.result) if found.latency and found.latency.result else []
    if json:
        console.result({"claims": [one.record() for one in found.claims], "latency": times}, [])
    else:
        console.records([one.record() for one in found.claims])
        console.records(times, "The time of its answers is not measured yet.")
    exit_if_lost(ended)


@guarded
def enough(run_id: RunId, detach: Detach = False, home: Home = None, json: Json = False) -> None:
    """Is LoRA enough here? Train a run again at ranks 4, 8, 16 and 64, and full fine-tuning behind them."""
    console, workbench = Console(json), open_workbench(home)
    started = workbench.baselines.enough(run_id)
    follow_runs(console, workbench, started, json, detach=detach, as_sweep=True)
