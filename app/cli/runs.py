"""The commands about runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, Settings, Yes, open_workbench, parsed_settings
from app.cli.console import Console, guarded
from app.cli.following import follow_runs, show_run
from app.cli.option_sources import Anyway
from app.cli.terminal_curve import watch_run
from app.service.comparing import compare
from app.service.metrics import last_metrics
from core.train.training_options import TrainingOptions
from storage.tables import ACTIVE_STATES, IDLE_STATES, Run

runs = typer.Typer(
    no_args_is_help=True,
    help=(
        "Training runs: list, show, watch, compare, move, change, pause, save, sample, resume, stop, "
        "extend, keep, duplicate, remove."
    ),
)

RunId = Annotated[int, typer.Argument(help="Number of the run.", min=1, max=2**63 - 1)]


@runs.command("list")
@guarded
def runs_list(home: Home = None, json: Json = False) -> None:
    """List the runs; those that wait come first, in the queue's order."""
    registry = open_workbench(home).registry
    waiting = registry.queue.waiting()
    rows = [*waiting, *[run for run in registry.all(Run) if run.id not in {one.id for one in waiting}]]
    Console(json).table(rows, ["id", "name", "state", "base_name", "dataset_name", "reason"])


@runs.command("show")
@guarded
def runs_show(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Show a run: its configuration, its checklist, checkpoints, samples, log and last measurement."""
    workbench = open_workbench(home)
    registry = workbench.registry
    row, last = registry.get(Run, run_id), registry.measurements.last_point(run_id)
    table = registry.measurements.last_label_table(run_id)
    Console(json).row(
        row,
        extra={
            "last": last.model_dump() if last else None,
            "metrics": last_metrics(registry, row),
            "labels": table.content | {"step": table.step} if table else None,
            "checklist": [one.record() for one in workbench.training.checklist_of(run_id)],
            "checkpoints": [
                {"step": one.step, "validation_loss": one.validation_loss, "bytes": one.size_bytes}
                for one in registry.checkpoints.of(run_id)
            ],
            "samples": [
                {"step": one.step, "prompt": one.prompt, "text": one.text}
                for one in registry.measurements.samples(run_id)
            ],
            "log": [note.text for note in registry.measurements.notes(run_id)],
        },
    )


@runs.command("watch")
@guarded
def runs_watch(run_id: RunId, home: Home = None) -> None:
    """Draw a run's curve in the terminal until the run has ended."""
    watch_run(open_workbench(home), run_id)


@runs.command("compare")
@guarded
def runs_compare(
    run_ids: Annotated[list[int], typer.Argument(help="Numbers of the runs.", min=1)],
    home: Home = None,
    json: Json = False,
) -> None:
    """Put runs beside each other, the best first: in which options they differ, how they ended, what they
    cost.
    """
    workbench = open_workbench(home)
    found, console = compare(workbench.registry, run_ids), Console(json)
    console.records([one.record() for one in found.rows])
    for caveat in found.caveats:
        console.say(caveat)


@runs.command("move")
@guarded
def runs_move(
    run_id: RunId,
    place: Annotated[int, typer.Argument(help="Place in the queue; 1 is the next.", min=1)],
    home: Home = None,
    json: Json = False,
) -> None:
    """Put a waiting run at another place of the queue."""
    workbench = open_workbench(home)
    workbench.runs.move(run_id, place - 1)
    order = [run.id for run in workbench.registry.queue.waiting()]
    Console(json).result({"queue": order}, [("Queue", ", ".join(str(one) for one in order))])


@runs.command("change")
@guarded
def runs_change(
    run_id: RunId,
    option: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="learning_rate, epochs or max_steps; repeatable."),
    ],
    home: Home = None,
    json: Json = False,
) -> None:
    """Change the learning rate or the planned length of a run, from its next step on."""
    workbench = open_workbench(home)
    values = parsed_settings(option)
    workbench.runs.change(run_id, values)
    Console(json).result(
        {"run": run_id, "changed": values}, [("Asked", f"run {run_id} changes from its next step on")]
    )


@runs.command("stop")
@guarded
def runs_stop(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Stop a run and keep what it has learnt as an adapter: of one that is paused, its last checkpoint."""
    workbench, console = open_workbench(home), Console(json)
    before = workbench.registry.get(Run, run_id)
    if before.state not in (*ACTIVE_STATES, *IDLE_STATES):
        console.say(f"Run {run_id} is {before.state}; there is nothing to stop.")
    workbench.runs.stop(run_id)
    show_run(console, workbench, workbench.runs.wait(run_id), json)


@runs.command("pause")
@guarded
def runs_pause(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Save where a run stands and let go of it; go on with runs resume."""
    workbench, console = open_workbench(home), Console(json)
    workbench.runs.pause(run_id)
    show_run(console, workbench, workbench.runs.wait(run_id), json)


@runs.command("save")
@guarded
def runs_save(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Have a run write a checkpoint now."""
    open_workbench(home).runs.save(run_id)
    Console(json).result(
        {"run": run_id, "asked": True}, [("Asked", f"run {run_id} saves after the step at hand")]
    )


@runs.command("sample")
@guarded
def runs_sample(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Have a run answer its sample prompts now; see them with runs show."""
    open_workbench(home).runs.sample(run_id)
    Console(json).result(
        {"run": run_id, "asked": True}, [("Asked", f"run {run_id} answers after the step at hand")]
    )


@runs.command("resume")
@guarded
def runs_resume(
    run_id: RunId,
    step: Annotated[
        int | None,
        typer.Option("--step", help="Of an earlier checkpoint to go on from; the later ones are forgotten."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="devices or machines from now on, such as machines=1; repeatable.",
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Go on with a run that was paused, interrupted, stopped or has failed, from its last checkpoint."""
    workbench, console = open_workbench(home), Console(json)
    resumed = workbench.runs.resume(run_id, step, parsed_settings(option))
    follow_runs(console, workbench, [resumed], json, detach=detach, as_sweep=False)


@runs.command("extend")
@guarded
def runs_extend(
    run_id: RunId,
    option: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="epochs or max_steps, in all; learning_rate; repeatable."
        ),
    ],
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train a finished run further, from its last checkpoint to a later end; its adapter stays beside the new
    one.
    """
    workbench, console = open_workbench(home), Console(json)
    run = workbench.runs.extend(run_id, parsed_settings(option))
    follow_runs(console, workbench, [run], json, detach=detach, as_sweep=False)


@runs.command("keep")
@guarded
def runs_keep(
    run_id: RunId,
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; default the newest.")] = None,
    name: Annotated[str, typer.Option(help="Name of the adapter.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Make an adapter of a checkpoint, to chat with, compare and export."""
    kept = open_workbench(home).runs.keep(run_id, step, name)
    Console(json).result(
        {"adapter": kept.name, "step": kept.steps}, [("Adapter", kept.name), ("Step", str(kept.steps))]
    )


@runs.command("duplicate")
@guarded
def runs_duplicate(
    run_id: RunId,
    option: Settings = None,
    name: Annotated[str, typer.Option(help="Name of the adapter; default from the data set.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on.")] = False,
    anyway: Anyway = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train again with the options of a run, on its base and the newest version of its data, with changes."""
    workbench, console = open_workbench(home), Console(json)
    row = workbench.registry.get(Run, run_id)
    options = workbench.runs.options(run_id) | parsed_settings(option)
    parsed = TrainingOptions.parse(options)
    run = workbench.training.start(row.base_name, row.dataset_name, parsed, name, anyway=anyway)
    follow_runs(console, workbench, [run], json, detach=detach, as_sweep=False)


@runs.command("remove")
@guarded
def runs_remove(run_id: RunId, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Forget a run that is not under way, with its curve, log and checkpoints; its adapter stays."""
    console = Console(json)
    console.confirm(f"Remove run {run_id}?", yes)
    open_workbench(home).runs.remove(run_id)
    console.result({"removed": run_id}, [("Removed", f"run {run_id}")])
