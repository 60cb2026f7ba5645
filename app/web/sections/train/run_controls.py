"""One run beside the form that starts runs: its live view, what can be asked of it, its checkpoints and
details.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from app.service.runs import has_prompts, options_of
from app.service.workbench import Workbench
from app.web.parts.curve import MOST_RUNS, run_view
from app.web.parts.markup import facts, moment, size, state_badge
from app.web.parts.shell import (
    QUIET,
    QUIET_QUEUED,
    WORKING,
    Shell,
    choose_from,
    inform,
    offered,
    refusal,
    told,
    values_of,
)
from storage.checkpoints import best_checkpoint
from storage.errors import NotFound
from storage.tables import (
    FINISHED,
    IDLE_STATES,
    RESUMABLE_STATES,
    RUNNING,
    STATE,
    UNDER_WAY,
    Checkpoint,
    Note,
    Run,
)

_CHANGE, _EXTEND = "Change from the next step on", "Extend the finished run"


@dataclass(frozen=True)
class RunPanel:
    """What other parts of the tab need of it."""

    outputs: list[Any]
    """Components that show() fills."""
    show: Callable[[int | None, Sequence[int]], tuple[object, ...]]


@dataclass(frozen=True)
class _Chosen:
    """What the panel's dropdowns say: the run, those laid over it, the checkpoint."""

    run: int | None
    over: list[int]
    saved: int | None


_UNKNOWN = _Chosen(-1, [-1], -1)  # equal to no choice, so that all is said


def run_panel(shell: Shell) -> RunPanel:
    """Lay out the panel and bind its handlers."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        run = gr.Dropdown([], label="Run", interactive=True, elem_id="run-choice", scale=3)
        over = gr.Dropdown(
            [], label="Laid over it", multiselect=True, max_choices=MOST_RUNS - 1, interactive=True, scale=2
        )
    with gr.Row():
        pause, resume = _button("Pause"), _button("Resume")
        save, sample = _button("Save now"), _button("Sample now")
        stop = gr.Button("Stop and keep", variant="stop", scale=0, min_width=130, interactive=False)
    view = run_view(workbench)
    controls = [pause, resume, save, sample, stop]
    with gr.Row(equal_height=True, elem_classes="asked"):
        rate = gr.Textbox(value="", label="New peak learning rate", placeholder="as it is", scale=2)
        epochs = gr.Textbox(value="", label="New number of epochs", placeholder="as it is", scale=2)
        change = gr.Button(_CHANGE, scale=2, min_width=200, interactive=False)
    with gr.Row(equal_height=True, elem_classes="asked"):
        saved = gr.Dropdown([], label="Checkpoint", interactive=True, scale=4)
        keep = gr.Button("Keep as adapter and chat", scale=2, min_width=200, interactive=False)
    detail = gr.HTML()
    outputs = [run, over, view, *controls, change, saved, keep, detail]

    def filled(wanted: _Chosen, current: _Chosen) -> tuple[object, ...]:
        choices = run_choices(workbench)
        ids = values_of(choices)
        chosen = wanted.run if wanted.run in ids else _most_interesting(workbench, ids)
        others = [one for one in wanted.over if one in ids and one != chosen]
        stays = (chosen, others) == (current.run, current.over)
        return (
            offered(choices, chosen, current.run),
            offered([one for one in choices if one[1] != chosen], others, current.over),
            gr.skip() if stays else ",".join(str(one) for one in (chosen, *others) if one),
            *_parts(workbench, chosen, (current if chosen == current.run else _UNKNOWN).saved),
        )

    def show(run_id: int | None, over_ids: Sequence[int]) -> tuple[object, ...]:
        return filled(_Chosen(run_id, list(over_ids or []), None), _UNKNOWN)

    def follow(run_now: int | None, over_now: list[int] | None, saved_now: int | None) -> tuple[object, ...]:
        now = _Chosen(run_now, over_now or [], saved_now)
        return filled(now, now)

    shell.refresh(follow, [run, over, saved], outputs)
    shell.soon(gr.on([run.input, over.input], show, [run, over], outputs, **QUIET))

    def doing(act: Callable[[int], object]) -> Callable[[int | None], None]:
        def handler(run_now: int | None) -> None:
            if run_now:
                act(run_now)

        return told(handler)

    runs = workbench.runs
    acts = (
        (pause, runs.pause),
        (resume, runs.resume),
        (save, runs.save),
        (sample, runs.sample),
        (stop, runs.stop),
    )
    for button, act in acts:
        shell.soon(button.click(doing(act), run, None, concurrency_id="control", **WORKING))

    @told
    def change_it(run_now: int | None, new_rate: str, new_epochs: str) -> tuple[object, ...]:
        values = {"learning_rate": new_rate, "epochs": new_epochs}
        given = {name: value for name, value in values.items() if value.strip()}
        if not run_now or not given:
            raise refusal("Give a new learning rate or a new number of epochs first.")
        if workbench.registry.get(Run, run_now).state == FINISHED:
            runs.extend(run_now, given)
            inform(f"Run {run_now} goes on from its last checkpoint.", "Extended")
        else:
            runs.change(run_now, given)
            inform(f"Run {run_now} changes from its next step on; its log says from which.")
        return "", ""

    changed = change.click(
        change_it, [run, rate, epochs], [rate, epochs], concurrency_id="control", **QUIET_QUEUED
    )
    shell.soon(changed)

    @told
    def keep_it(checkpoint: int | None) -> tuple[object, ...]:
        if not checkpoint:
            raise refusal("Choose a checkpoint first.")
        row = runs.checkpoint(checkpoint)
        kept = runs.keep(row.run_id, row.step)
        return gr.Tabs(selected="playground"), kept.name

    keep.click(keep_it, saved, [shell.tabs, shell.to_chat], **WORKING)
    return RunPanel(outputs, show)


def _most_interesting(workbench: Workbench, ids: Sequence[int]) -> int | None:
    """The run that is under way, or the newest."""
    under_way = [run.id for run in workbench.registry.runs.in_states(*UNDER_WAY)]
    return under_way[0] if under_way else (ids[0] if ids else None)


def _button(text: str) -> gr.Button:
    return gr.Button(text, scale=0, min_width=110, interactive=False)


def run_choices(workbench: Workbench) -> list[tuple[str, int]]:
    """All runs, newest first, as choices."""
    return [
        (f"{run.id} · {run.name} · {run.state}", run.id or 0)
        for run in workbench.registry.all(Run, limit=200)
    ]


def _parts(workbench: Workbench, run_id: int | None, saved_now: int | None) -> tuple[object, ...]:
    """The buttons, the checkpoints and the details of the chosen run."""
    try:
        run = workbench.registry.get(Run, run_id) if run_id else None
    except NotFound:
        run = None
    if run is None:
        return (
            *[gr.Button(interactive=False)] * 6,
            gr.Dropdown(choices=[], value=None),
            gr.Button(interactive=False),
            "",
        )
    stopping, pausing = run.stop_requested and run.active, run.pause_requested and run.active
    free = run.active and not stopping and not pausing
    asks = has_prompts(run)
    rows = workbench.registry.checkpoints.of(run.id or 0)
    return (
        gr.Button("Pausing …" if pausing else "Pause", interactive=free),
        gr.Button(interactive=run.state in RESUMABLE_STATES),
        gr.Button(
            "Saving …" if run.save_requested and free else "Save now",
            interactive=free and run.state == RUNNING,
        ),
        gr.Button(
            "Sampling …" if run.sample_requested and free else "Sample now",
            interactive=free and run.state == RUNNING and asks,
        ),
        gr.Button(
            "Stopping …" if stopping else "Stop and keep", interactive=free or run.state in IDLE_STATES
        ),
        gr.Button(_EXTEND if run.state == FINISHED else _CHANGE, interactive=True),
        choose_from(_checkpoint_choices(rows), saved_now, rows[0].id if rows else None),
        gr.Button(interactive=bool(rows)),
        run_html(workbench, run),
    )


def _checkpoint_choices(rows: Sequence[Checkpoint]) -> list[tuple[str, int]]:
    """The newest first, and which is the best."""
    best = best_checkpoint(rows)
    return [
        (f"{_saved(row)}{' · best' if row is best and len(rows) > 1 else ''}", row.id or 0) for row in rows
    ]


def _saved(row: Checkpoint) -> str:
    judged = f", validation {row.validation_loss:.4f}" if row.validation_loss is not None else ""
    return f"step {row.step}{judged} · {size(row.size_bytes)} in {row.seconds:.1f} s"


def run_html(workbench: Workbench, run: Run) -> str:
    """A run's configuration, and its states with their times and reasons."""
    lora, train = run.config["lora"], options_of(run)
    length = f"{train['max_steps']:,} steps" if train["max_steps"] else f"{train['epochs']:g} epochs"
    batch = train["micro_batch_size"] * train["gradient_accumulation_steps"]
    about = facts(
        [
            ("Base model", run.base_name),
            ("Data set", f"{run.dataset_name}, version {run.dataset_version}"),
            (
                "Adapter",
                (
                    f"rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}, "
                    f"{lora['target_modules']}"
                ),
            ),
            (
                "Training",
                f"{length}, learning rate {train['learning_rate']:g}, {train['lr_scheduler']}, "
                f"effective batch {batch}, "
                f"max length {train['max_length']:,}, seed {train['seed']}",
            ),
            ("Stops on", str(train.get("stop_on", "nan")).replace(",", ", ")),
            ("Energy", "" if run.kilowatt_hours is None else f"{run.kilowatt_hours:.4f} kWh"),
        ],
        f"Run {run.id}: {run.name}",
    )
    return f"{about}{states_html(workbench.registry.measurements.notes(run.id or 0))}"


def states_html(notes: Sequence[Note]) -> str:
    """What became of a run, and when; the newest first."""
    lines = "".join(_state_line(note) for note in reversed(notes) if note.kind == STATE)
    return f"<ol class='states' aria-label='States of the run'>{lines}</ol>" if lines else ""


def _state_line(note: Note) -> str:
    state, _, reason = note.text.partition(": ")
    said = f" {escape(reason)}" if reason else ""
    return f"<li><time>{moment(note.at)}</time> {state_badge(state.lower())}{said}</li>"
