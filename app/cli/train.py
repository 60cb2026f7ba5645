"""The commands that train, or measure what training would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.cli.common import BaseName, Home, Json, Settings, base_or_default, open_workbench
from app.cli.console import Console, guarded
from app.cli.following import follow_runs
from app.cli.option_sources import Anyway, Config, PresetName, Sweep, given_options
from app.service.workbench import Workbench
from core.train.checklist import BAD, GOOD, MIND, OPEN, Check
from core.train.sweep import combinations, parse_grid
from core.train.training_options import TrainingOptions

_MARKS = {GOOD: "✓", MIND: "!", BAD: "✗", OPEN: "·"}


@guarded
def train(
    dataset: Annotated[str, typer.Option("--data", help="Name of the data set.")],
    base: BaseName = "",
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
    anyway: Anyway = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train an adapter, or a sweep of them at once.

    Interrupting this command leaves runs going; end one with: runs stop ID.
    """
    console, workbench = Console(json), open_workbench(home)
    base = base_or_default(workbench, base)
    options = TrainingOptions.parse(given_options(workbench, preset, config, option))
    training, swept = workbench.training, combinations(options, parse_grid(sweep)) if sweep else []
    for check in _checks(workbench, base, dataset, [one for _, one in swept] or [options]):
        console.say(check_line(check))
    if swept:
        started = training.start_all(base, dataset, swept, name, anyway=anyway)
    else:
        started = [training.start(base, dataset, options, name, together=together, anyway=anyway)]
    follow_runs(console, workbench, started, json, detach=detach, as_sweep=bool(sweep))


@guarded
def preflight(
    dataset: Annotated[str, typer.Option("--data", help="Name of the data set.")],
    base: BaseName = "",
    preset: PresetName = "",
    config: Config = None,
    option: Settings = None,
    sweep: Sweep = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Measure what a run would take: memory, time and disk, by a few of its micro-batches."""
    console, workbench = Console(json), open_workbench(home)
    base = base_or_default(workbench, base)
    options = TrainingOptions.parse(given_options(workbench, preset, config, option))
    wanted = [one for _, one in combinations(options, parse_grid(sweep))] if sweep else [options]
    targets = [workbench.training.estimate(base, dataset, one).target_sentence for one in wanted]
    with console.progress() as progress:
        progress.say("Measuring")
        found, offered = workbench.training.measure(base, dataset, wanted)
    checks = _checks(workbench, base, dataset, wanted)
    hints = [
        ("Instead", f"{text}: {' '.join(f'--set {key}={value}' for key, value in change.items())}")
        for text, change in offered
    ]
    console.result(
        {
            **found,
            "targets": targets,
            "instead": [change for _, change in offered],
            "checklist": [one.record() for one in checks],
        },
        [
            ("Verdict", found["verdict"]),
            *[("Trains", text) for text in dict.fromkeys(targets)],
            ("Peak memory", _peak(found)),
            *(_times(found) if found["fits"] else []),
            ("Disk", f"at most {found['disk_bytes'] / 1e6:,.0f} MB for checkpoints"),
            *[("Note", text) for text in found["notices"]],
            *hints,
            *[("Check", check_line(one)) for one in checks],
        ],
    )
    if not found["fits"]:
        raise typer.Exit(1)


def _checks(workbench: Workbench, base: str, dataset: str, wanted: Sequence[TrainingOptions]) -> list[Check]:
    """The checklist of the first, and of the others what is not well and not said yet."""
    first, *others = [workbench.training.checklist(base, dataset, options) for options in wanted]
    said = {check.reason: check for check in first}
    for checks in others:
        said |= {one.reason: one for one in checks if one.state != GOOD and one.reason not in said}
    return list(said.values())


def check_line(check: Check) -> str:
    """One point of the checklist in a line."""
    return f"{_MARKS[check.state]} {check.label}: {check.reason}"


def _peak(found: dict[str, Any]) -> str:
    where = f" on the first of {found['cards']} cards" if found["cards"] > 1 else ""
    return f"{found['peak_bytes'] / 2**30:.2f} of {found['total_bytes'] / 2**30:.2f} GiB{where}"


def _times(found: dict[str, Any]) -> list[tuple[str, str]]:
    parts = ", ".join(
        f"{name} {found[key] / 60:.1f}"
        for key, name in (("evaluating_seconds", "evaluations"), ("saving_seconds", "checkpoints"))
    )
    return [
        ("Time", f"about {found['seconds'] / 60:.1f} min, of it {parts}"),
        ("Time a step", f"{found['seconds_a_step']:.2f} s on average over {found['steps']:,} steps"),
    ]
