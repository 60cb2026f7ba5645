"""Train: choose, configure, start, and watch the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app.components.curve import loss_curve
from app.components.markup import facts, log_lines, size
from app.components.options_form import option_fields
from app.components.shell import QUIET, WORKING, Shell, choose_from, refusal, told
from app.quickstart import QUICK_OPTIONS
from app.service import Workbench
from core.config import LoraConfig, TrainConfig
from core.sweep import combinations, parse_grid
from core.train.estimate import Estimate
from storage.errors import NotFound
from storage.tables import RESUMABLE_STATES, RUNNING, Base, Checkpoint, Dataset, Run

TAB, TITLE = "train", "Train"
_MAIN = (
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "learning_rate",
    "epochs",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "lr_scheduler",
)
_FEW_STEPS = 30


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    with gr.Row():
        with gr.Column(scale=5, min_width=430):
            base = gr.Dropdown([], label="Base model", interactive=True)
            dataset = gr.Dropdown([], label="Data set", interactive=True)
            name = gr.Textbox(label="Name of the adapter", info="Empty: taken from the data set.")
            options = _options()
            sweep = gr.Textbox(
                value="", label="Sweep", lines=2, max_lines=6, elem_id="sweep",
                placeholder="rank=4,8,16\nlearning_rate=1e-4,3e-4",
                info="Several values for any option, one option a line. Every combination becomes an adapter; "
                     "they train at once on the one base.",
            )  # fmt: skip
            plan = gr.HTML()
            with gr.Row(elem_id="start-row"):
                start = gr.Button("Start training", variant="primary", elem_id="start-training")
                quick = gr.Button("Settings for a quick try")
        with gr.Column(scale=7, min_width=520):
            run = gr.Dropdown([], label="Run", interactive=True, elem_id="run-choice")
            curve = loss_curve(workbench)
            with gr.Row():
                pause = gr.Button("Pause", scale=0, min_width=110, interactive=False)
                resume = gr.Button("Resume", scale=0, min_width=110, interactive=False)
                save = gr.Button("Save now", scale=0, min_width=110, interactive=False)
                stop = gr.Button("Stop and keep", variant="stop", scale=0, min_width=150, interactive=False)
            controls = [pause, resume, save, stop]
            detail = gr.HTML()

    def show(base_now: str, data_now: str, run_now: int | None) -> tuple[object, ...]:
        runs = run_choices(workbench)
        ids = [run_id for _, run_id in runs]
        chosen = run_now if run_now in ids else (ids[0] if ids else None)
        return (
            choose_from([row.name for row in workbench.registry.all(Base)], base_now),
            choose_from([row.name for row in workbench.registry.all(Dataset)], data_now),
            gr.Dropdown(choices=runs, value=chosen), str(chosen or ""), *run_parts(workbench, chosen),
        )  # fmt: skip

    shell.refresh(show, [base, dataset, run], [base, dataset, run, curve, *controls, detail])

    def pick(run_now: int | None) -> tuple[object, ...]:
        return str(run_now or ""), *run_parts(workbench, run_now)

    run.input(pick, run, [curve, *controls, detail], **QUIET)

    fields = {"base": base, "dataset": dataset, "sweep": sweep, **options}

    def show_plan(base: str, dataset: str, sweep: str, **values: Any) -> str:
        return plan_html(workbench, base, dataset, values, sweep)

    plan_triggers = [shell.page.load, base.change, dataset.change, sweep.change, *[field.change for field in options.values()]]
    gr.on(plan_triggers, show_plan, None, plan, inputs_kwargs=fields, trigger_mode="always_last", **QUIET)

    @told
    def begin(base: str, dataset: str, name: str, sweep: str, **values: Any) -> tuple[object, ...]:
        if not base or not dataset:
            missing = "a base model (under Models)" if not base else "a data set (under Data)"
            raise refusal(f"Choose {missing} first.")
        if sweep.strip():
            started = workbench.sweep(base, dataset, values, grid_of(sweep), name.strip())[0]
        else:
            started = workbench.train(base, dataset, values, name.strip())
        runs = run_choices(workbench)
        return "", gr.Dropdown(choices=runs, value=started.id), str(started.id), *run_parts(workbench, started.id)

    start.click(
        begin, None, [name, run, curve, *controls, detail], inputs_kwargs={**fields, "name": name},
        concurrency_id="start", **WORKING,
    )  # fmt: skip
    quick.click(lambda: [QUICK_OPTIONS.get(key, gr.skip()) for key in options], None, list(options.values()), **QUIET)

    def doing(act: Callable[[int], Run]) -> Callable[[int | None], tuple[object, ...]]:
        def handler(run_now: int | None) -> tuple[object, ...]:
            if run_now:
                act(run_now)
            return run_parts(workbench, run_now)

        return told(handler)

    for button, act in (
        (pause, workbench.runs.pause),
        (resume, workbench.runs.resume),
        (save, workbench.runs.save),
        (stop, workbench.runs.stop),
    ):
        button.click(doing(act), run, [*controls, detail], concurrency_id="control", **WORKING)


def _options() -> dict[str, Any]:
    """All training options: the ones people change first, the rest folded away."""
    train = TrainConfig.options()
    gr.Markdown("#### Adapter")
    lora = LoraConfig.options()
    fields = option_fields([option for option in lora if option.name in _MAIN], per_row=2)
    gr.Markdown("#### Training")
    fields |= option_fields([option for option in train if option.name in _MAIN], per_row=2)
    with gr.Accordion("More options", open=False):
        fields |= option_fields([option for option in (*lora, *train) if option.name not in _MAIN], per_row=2)
    return fields


def run_choices(workbench: Workbench) -> list[tuple[str, int]]:
    """All runs, newest first, as choices."""
    return [(f"{run.id} · {run.name} · {run.state}", run.id or 0) for run in workbench.registry.all(Run, limit=200)]


def run_parts(workbench: Workbench, run_id: int | None) -> tuple[object, ...]:
    """The buttons to pause, resume, save and stop, and the details of the chosen run."""
    try:
        run = workbench.registry.get(Run, run_id) if run_id else None
    except NotFound:
        run = None
    if run is None:
        return *[gr.Button(interactive=False)] * 4, ""
    stopping, pausing = run.stop_requested and run.active, run.pause_requested and run.active
    free = run.active and not stopping and not pausing
    return (
        gr.Button("Pausing …" if pausing else "Pause", interactive=free), gr.Button(interactive=run.state in RESUMABLE_STATES),
        gr.Button("Saving …" if run.save_requested and free else "Save now", interactive=free and run.state == RUNNING),
        gr.Button("Stopping …" if stopping else "Stop and keep", interactive=free), run_html(workbench, run),
    )  # fmt: skip


def run_html(workbench: Workbench, run: Run) -> str:
    """A run's configuration and log."""
    lora, train = run.config["lora"], run.config["train"]
    batch = train["micro_batch_size"] * train["gradient_accumulation_steps"]
    about = facts([
        ("Base model", run.base_name), ("Data set", f"{run.dataset_name}, version {run.dataset_version}"),
        ("Adapter", f"rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}, {lora['target_modules']}"),
        ("Training", f"learning rate {train['learning_rate']:g}, {train['lr_scheduler']}, effective batch {batch}, "
                     f"max length {train['max_length']:,}, seed {train['seed']}"),
        ("Checkpoints", _saved(workbench.registry.checkpoints(run.id or 0))),
    ], f"Run {run.id}: {run.name}")  # fmt: skip
    return f"{about}{log_lines(workbench.registry.notes(run.id or 0))}"


def _saved(rows: Sequence[Checkpoint]) -> str:
    """Which steps a run can go on from; the newest is the one it does."""
    each = [
        f"step {one.step}{f' (validation {one.validation_loss:.4f})' if one.validation_loss is not None else ''}" for one in rows
    ]
    return f"{', '.join(each)}; {size(rows[0].size_bytes)} in {rows[0].seconds:.1f} s" if rows else ""


def grid_of(sweep: str) -> dict[str, list[str]]:
    """The grid that the lines of the sweep field describe. Raises InvalidConfig."""
    return parse_grid(line for line in sweep.splitlines() if line.strip())


def plan_html(workbench: Workbench, base: str | None, dataset: str | None, values: dict[str, Any], sweep: str = "") -> str:
    """What the run would need, or each run of a sweep, or why it cannot start."""
    if not base or not dataset:
        return ""
    try:
        wanted = told(lambda: combinations(values, grid_of(sweep)))() if sweep.strip() else [("", values)]
        plan = told(workbench.estimate)(base, dataset, wanted[0][1])
    except gr.Error as error:
        return f"<div class='card'><span class='state bad'>cannot start</span> {error.message}</div>"
    hint = ""
    if len(wanted) > 1:
        hint = f"<p class='hint'>{len(wanted)} adapters, trained at once where memory allows; the plan is that of the first.</p>"
    if plan.steps < _FEW_STEPS:
        hint += (
            f"<p class='hint'>Only {plan.steps} optimiser steps: with little data a smaller effective batch "
            "(fewer accumulation steps) learns more.</p>"
        )
    return f"{_plan_facts(plan)}{hint}"


def _plan_facts(plan: Estimate) -> str:
    seconds = "known after the first run on this base" if plan.seconds is None else _duration(plan.seconds)
    return facts([
        ("Trainable parameters", f"{plan.trainable_parameters:,} in {plan.targeted_layers} layers"),
        ("Steps", f"{plan.steps:,}, about {plan.tokens:,} tokens{', rows packed into blocks' if plan.packed else ''}"),
        ("Memory", f"about {size(plan.memory_bytes)} (estimate)"),
        ("Time", f"about {seconds} (estimate)" if plan.seconds is not None else seconds),
    ], "Plan")  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
