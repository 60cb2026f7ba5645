"""The command line's part about training: train, preflight, runs and presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.console import Console, guarded
from app.cli.options import Home, Json, Yes, open_workbench
from app.cli.terminal_curve import watch_run
from app.service.comparing import compare
from app.service.presets import Preset, read_options
from app.service.workbench import Workbench
from core.errors import InvalidInput
from core.train.sweep import combinations, parse_grid
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Run

runs = typer.Typer(
    no_args_is_help=True,
    help=(
        "Training runs: list, show, watch, compare, move, change, pause, save, sample, resume, stop, "
        "keep, duplicate, remove."
    ),
)
presets = typer.Typer(no_args_is_help=True, help="Presets of training options: list, show, save, remove.")

RunId = Annotated[int, typer.Argument(help="Number of the run.", min=1, max=2**63 - 1)]
Config = Annotated[
    Path | None, typer.Option(help="TOML file of training options.", exists=True, dir_okay=False)
]
PresetName = Annotated[str, typer.Option("--preset", help="A preset to start from; see presets list.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One option, such as rank=8; repeatable."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep", metavar="KEY=A,B,…", help="Several values of one option, trained at once; repeatable."
    ),
]


@guarded
def train(
    base: Annotated[str, typer.Option(help="Name of the base model.")],
    dataset: Annotated[str, typer.Option("--data", help="Name of the data set.")],
    name: Annotated[str, typer.Option(help="Name of the adapter; default from the data set.")] = "",
    preset: PresetName = "",
    config: Config = None,
    option: Settings = None,
    sweep: Sweep = None,
    together: Annotated[
        bool, typer.Option("--together", help="May train at once with other waiting runs.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; the run goes on in the engine.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train an adapter, or a sweep of them at once.

    Interrupting this command leaves runs going; end one with: runs stop ID.
    """
    console, workbench = Console(json), open_workbench(home)
    options = TrainingOptions.parse(_given_options(workbench, preset, config, option or []))
    if sweep:
        started = workbench.training.sweep(base, dataset, options, parse_grid(sweep), name)
    else:
        started = [workbench.training.start(base, dataset, options, name, together=together)]
    _follow(console, workbench, started, json, detach=detach, as_sweep=bool(sweep))


def _follow(
    console: Console, workbench: Workbench, started: list[Run], json: bool, *, detach: bool, as_sweep: bool
) -> None:
    """Watch runs to their end, unless they are left to themselves, and show how they ended."""
    if not detach:
        try:
            with console.progress() as progress:
                one = progress.run_watcher(workbench)
                watch = progress.sweep_watcher(workbench) if as_sweep else lambda runs: one(runs[0])
                started = workbench.wait_runs([run.id or 0 for run in started], watch)
        except KeyboardInterrupt:
            for run in started:
                console.say(
                    f"Run {run.id} ({run.name}) goes on in the engine. Stop it with: lora-workbench "
                    f"runs stop {run.id}"
                )
            raise typer.Exit(130) from None
    if as_sweep:
        _show_sweep(console, workbench, started)
    else:
        _show_run(console, workbench, started[0], json)
    if any(run.state in ("failed", "interrupted") for run in started):
        raise typer.Exit(1)


def _show_sweep(console: Console, workbench: Workbench, started: list[Run]) -> None:
    """All runs of a sweep beside each other, the best first."""
    rows: list[dict[str, Any]] = []
    for run in started:
        adapter = workbench.registry.get(Adapter, run.adapter_id) if run.adapter_id is not None else None
        rows.append(
            {
                "id": run.id,
                "name": run.name,
                "state": run.state,
                "train_loss": adapter.train_loss if adapter else None,
                "validation_loss": adapter.validation_loss if adapter else None,
                "reason": run.reason,
            }
        )
    console.records(sorted(rows, key=_loss))


def _loss(row: Mapping[str, Any]) -> float:
    """What a run of a sweep is judged by: the validation loss,
    or the last training loss where there is none.
    """
    return next((row[key] for key in ("validation_loss", "train_loss") if row[key] is not None), math.inf)


def _show_run(console: Console, workbench: Workbench, run: Run, json: bool) -> None:
    """How a run stands, with its adapter's name and losses if it has one."""
    extra: dict[str, Any] = {}
    if run.adapter_id is not None:
        adapter = workbench.registry.get(Adapter, run.adapter_id)
        extra = {
            "adapter": adapter.name,
            "train_loss": adapter.train_loss,
            "validation_loss": adapter.validation_loss,
        }
    brief = (
        ()
        if json
        else (
            "config",
            "details",
            "base_id",
            "dataset_id",
            "adapter_id",
            "changes",
            "position",
            "bytes_needed",
        )
    )
    console.row(run, leave_out=brief, extra=extra)


def _given_options(
    workbench: Workbench, preset: str, config: Path | None, settings: list[str]
) -> dict[str, Any]:
    """Options from the preset, then from the file, then from --set."""
    options = dict(workbench.presets.find(preset).options) if preset else {}
    if config:
        try:
            options.update(read_options(config))
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {setting}: expected KEY=VALUE, such as --set rank=8.")
        options[key.strip()] = value.strip()
    return options


@guarded
def preflight(
    base: Annotated[str, typer.Option(help="Name of the base model.")],
    dataset: Annotated[str, typer.Option("--data", help="Name of the data set.")],
    preset: PresetName = "",
    config: Config = None,
    option: Settings = None,
    sweep: Sweep = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Measure what a run would take: memory, time and disk, by a few micro-batches of its longest rows."""
    console, workbench = Console(json), open_workbench(home)
    options = TrainingOptions.parse(_given_options(workbench, preset, config, option or []))
    wanted = [one for _, one in combinations(options, parse_grid(sweep))] if sweep else [options]
    with console.progress() as progress:
        progress.say("Measuring")
        found, offered = workbench.training.measure(base, dataset, wanted)
    hints = [
        ("Instead", f"{text}: {' '.join(f'--set {key}={value}' for key, value in change.items())}")
        for text, change in offered
    ]
    console.result(
        {**found, "instead": [change for _, change in offered]},
        [
            ("Verdict", found["verdict"]),
            ("Peak memory", f"{found['peak_bytes'] / 2**30:.2f} of {found['total_bytes'] / 2**30:.2f} GiB"),
            ("Time a step", f"{found['seconds_a_step']:.2f} s with the longest rows"),
            (
                "Time",
                (
                    f"at most {found['seconds'] / 60:.1f} min for {found['steps']:,} steps, evaluations not "
                    "counted"
                ),
            ),
            ("Disk", f"at most {found['disk_bytes'] / 1e6:,.0f} MB for checkpoints"),
            *[("Note", text) for text in found["notices"]],
            *hints,
        ],
    )
    if not found["fits"]:
        raise typer.Exit(1)


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
    """Show a run: its configuration, its checkpoints, samples, log and last measurement."""
    registry = open_workbench(home).registry
    row, last = registry.get(Run, run_id), registry.measurements.last_point(run_id)
    Console(json).row(
        row,
        extra={
            "last": last.model_dump() if last else None,
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
    values = _given_options(workbench, "", None, option)
    workbench.runs.change(run_id, values)
    Console(json).result(
        {"run": run_id, "changed": values}, [("Asked", f"run {run_id} changes from its next step on")]
    )


@runs.command("stop")
@guarded
def runs_stop(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Stop a run and keep what it has learnt as an adapter."""
    workbench, console = open_workbench(home), Console(json)
    before = workbench.registry.get(Run, run_id)
    if not before.active:
        console.say(f"Run {run_id} is {before.state}; there is nothing to stop.")
    workbench.runs.stop(run_id)
    _show_run(console, workbench, workbench.wait_run(run_id), json)


@runs.command("pause")
@guarded
def runs_pause(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Save where a run stands and let go of it; go on with runs resume."""
    workbench, console = open_workbench(home), Console(json)
    workbench.runs.pause(run_id)
    _show_run(console, workbench, workbench.wait_run(run_id), json)


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
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Go on with a run that was paused, interrupted, stopped or has failed, from its last checkpoint."""
    workbench, console = open_workbench(home), Console(json)
    _follow(console, workbench, [workbench.runs.resume(run_id)], json, detach=detach, as_sweep=False)


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
    home: Home = None,
    json: Json = False,
) -> None:
    """Train again with the options of a run, on its base and the newest version of its data, with changes."""
    workbench, console = open_workbench(home), Console(json)
    row = workbench.registry.get(Run, run_id)
    options = workbench.runs.options(run_id) | _given_options(workbench, "", None, option or [])
    run = workbench.training.start(row.base_name, row.dataset_name, TrainingOptions.parse(options), name)
    _follow(console, workbench, [run], json, detach=detach, as_sweep=False)


@runs.command("remove")
@guarded
def runs_remove(run_id: RunId, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Forget a run that is not under way, with its curve, log and checkpoints; its adapter stays."""
    console = Console(json)
    console.confirm(f"Remove run {run_id}?", yes)
    open_workbench(home).runs.remove(run_id)
    console.result({"removed": run_id}, [("Removed", f"run {run_id}")])


# Presets.


@presets.command("list")
@guarded
def presets_list(home: Home = None, json: Json = False) -> None:
    """List the presets."""
    found = open_workbench(home).presets.all()
    Console(json).records(
        [{"name": one.name, "from": str(one.file or "shipped"), "why": one.why or one.fault} for one in found]
    )


@presets.command("show")
@guarded
def presets_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show the options of a preset; what is not named has its default."""
    found: Preset = open_workbench(home).presets.find(name)
    content = {"name": found.name, "why": found.why, "own": found.own, "options": dict(found.options)}
    Console(json).result(
        content, [("Why", found.why), *[(key, str(value)) for key, value in found.options.items()]]
    )


@presets.command("save")
@guarded
def presets_save(
    name: str,
    run: Annotated[
        int | None, typer.Option("--run", help="Take the options of this run.", min=1, max=2**63 - 1)
    ] = None,
    option: Settings = None,
    why: Annotated[str, typer.Option(help="A sentence why.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Save options as a preset of your own: those of a run, or those given with --set."""
    workbench = open_workbench(home)
    options = (workbench.runs.options(run) if run else {}) | _given_options(workbench, "", None, option or [])
    path = workbench.presets.save(name, TrainingOptions.parse(options), why)
    Console(json).result({"preset": name, "file": str(path)}, [("Saved", str(path))])


@presets.command("remove")
@guarded
def presets_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Delete a preset of your own."""
    console = Console(json)
    console.confirm(f"Delete the preset {name}?", yes)
    open_workbench(home).presets.remove(name)
    console.result({"removed": name}, [("Removed", name)])
