"""Following runs to their end, and showing how they ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from app.cli.console import Console, ProgressLine
from app.service.workbench import Workbench
from storage.tables import FAILED, INTERRUPTED, Adapter, Run


def follow_runs(
    console: Console, workbench: Workbench, started: list[Run], json: bool, *, detach: bool, as_sweep: bool
) -> None:
    """Watch runs to their end, unless they are left to themselves, and show how they ended."""
    if not detach:
        try:
            with console.progress() as progress:
                one = progress.run_watcher(workbench)
                watch = progress.sweep_watcher(workbench) if as_sweep else lambda runs: one(runs[0])
                started = workbench.runs.wait_all([run.id or 0 for run in started], watch)
        except KeyboardInterrupt:
            for run in started:
                console.say(
                    f"Run {run.id} ({run.name}) goes on in the engine. Stop it with: lora-workbench "
                    f"runs stop {run.id}"
                )
            raise typer.Exit(130) from None
    for run in started:
        if remark := _left_aside(run):
            console.say(f"Run {run.id} ({run.name}): {remark}")
    if as_sweep:
        _show_sweep(console, workbench, started)
    else:
        show_run(console, workbench, started[0], json)
    exit_if_lost(started)


def wait_for(progress: ProgressLine, workbench: Workbench, run: Run | None) -> list[Run]:
    """Watch one run to its end; how it ended, and nothing where there is none."""
    if run is None:
        return []
    watch = progress.run_watcher(workbench)
    return workbench.runs.wait_all([run.id or 0], lambda runs: watch(runs[0]))


def exit_if_lost(ended: Sequence[Run]) -> None:
    """Raise Exit(1) where one has failed or was interrupted: what was asked for is not there."""
    if any(run.state in (FAILED, INTERRUPTED) for run in ended):
        raise typer.Exit(1)


def _left_aside(run: Run) -> str:
    """What of its data a run has not trained on, as far as it is prepared; empty if that is nothing."""
    long, silent = (run.details.get(key, 0) for key in ("truncated_rows", "skipped_rows"))
    if not long and not silent:
        return ""
    kept, length = run.details["train_rows"], run.details["max_length"]
    return (
        f"rows longer than {length:,} tokens: {long:,}; with nothing to train on: {silent:,}; "
        f"trained on: {kept:,}."
    )


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


def show_run(console: Console, workbench: Workbench, run: Run, json: bool) -> None:
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
