"""What the run in the form would take: estimated as it changes, or measured when asked."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import duration, facts, size
from app.web.parts.shell import QUIET, WORKING, Shell, told
from app.web.sections.train.form import MOST_OFFERED, TrainForm, require_chosen
from app.web.sections.train.form_values import wanted
from core.train.config import TrainConfig
from core.train.estimate import Estimate

_FEW_STEPS = 30


def bind_plan(shell: Shell, form: TrainForm) -> None:
    """Estimate again whenever the form changes."""

    def show_plan(base: str, dataset: str, sweep: str, **values: Any) -> str:
        return plan_html(shell.workbench, base, dataset, values, sweep)

    changed = [field.change for field in form.options.values()]
    triggers = [shell.page.load, form.base.change, form.dataset.change, form.sweep.change, *changed]
    gr.on(
        triggers, show_plan, None, form.plan, inputs_kwargs=form.inputs, trigger_mode="always_last", **QUIET
    )


def bind_measuring(shell: Shell, form: TrainForm, measure: gr.Button) -> None:
    """Measure when asked, and offer what would make the run fit."""

    @told
    def find_out(base: str, dataset: str, sweep: str, **values: Any) -> tuple[object, ...]:
        require_chosen(base, dataset)
        found, offered = shell.workbench.training.measure(base, dataset, wanted(values, sweep))
        buttons = [
            gr.Button(offered[at][0] if at < len(offered) else "", visible=at < len(offered))
            for at in range(MOST_OFFERED)
        ]
        return measured_html(found), [options for _, options in offered], *buttons

    shown = [form.measured, form.offered, *form.changes]
    measure.click(find_out, None, shown, inputs_kwargs=form.inputs, concurrency_id="measure", **WORKING)
    fields = list(form.options.values())
    for place, button in enumerate(form.changes):

        def take(offered: list[dict[str, Any]], place: int = place) -> list[object]:
            return [offered[place].get(name, gr.skip()) for name in form.options]

        button.click(take, form.offered, fields, **QUIET)


def plan_html(
    workbench: Workbench, base: str | None, dataset: str | None, values: dict[str, Any], sweep: str = ""
) -> str:
    """What the run would need, or each run of a sweep, or why it cannot start."""
    if not base or not dataset:
        return ""
    try:
        runs = told(wanted)(values, sweep)
        plan = told(workbench.training.estimate)(base, dataset, runs[0])
    except gr.Error as error:
        return f"<div class='card'><span class='state bad'>cannot start</span> {error.message}</div>"
    hint = ""
    if len(runs) > 1:
        hint = (
            f"<p class='hint'>{len(runs)} adapters, trained at once where memory allows; the plan "
            "is that of the first.</p>"
        )
    if plan.experts:
        hint += f"<p class='hint'>{escape(plan.experts)}</p>"
    if plan.steps < _FEW_STEPS:
        hint += f"<p class='hint'>Only {plan.steps} optimiser steps: {_more_steps(runs[0].train)}</p>"
    return f"{_plan_facts(plan)}{hint}"


def _more_steps(train: TrainConfig) -> str:
    """What makes more of few steps, with these settings."""
    if train.max_steps and train.max_steps < _FEW_STEPS:
        return f"that is what max_steps = {train.max_steps} says; raise it, or leave it at 0, to learn more."
    if train.gradient_accumulation_steps > 1:
        return (
            "with little data a smaller effective batch learns more; there are "
            f"{train.gradient_accumulation_steps} accumulation steps, take fewer."
        )
    if train.micro_batch_size > 1:
        return f"with little data a smaller micro-batch than {train.micro_batch_size} learns more."
    return "with so little data more epochs, or more rows, learn more."


def _plan_facts(plan: Estimate) -> str:
    seconds = "known after the first run on this base" if plan.seconds is None else duration(plan.seconds)
    return facts(
        [
            ("Trainable parameters", f"{plan.trainable_parameters:,} in {plan.targeted_layers} layers"),
            (
                "Steps",
                (
                    f"{plan.steps:,}, about {plan.tokens:,} "
                    f"tokens{', rows packed into blocks' if plan.packed else ''}"
                ),
            ),
            ("Memory", f"about {size(plan.memory_bytes)} (estimate)"),
            ("Time", f"about {seconds} (estimate)" if plan.seconds is not None else seconds),
        ],
        "Plan",
    )


def _time_text(found: dict[str, Any]) -> str:
    parts = [
        f"{duration(found[key])} for {name}"
        for key, name in (("evaluating_seconds", "evaluations"), ("saving_seconds", "checkpoints"))
        if found[key] >= 1
    ]
    return f"about {duration(found['seconds'])}{', of it ' + ' and '.join(parts) if parts else ''}"


def _pace_text(found: dict[str, Any]) -> str:
    return f"{found['seconds_a_step']:.2f} s on average over {found['steps']:,} steps"


def measured_html(found: dict[str, Any]) -> str:
    """What a short trial has shown."""
    share = f"{size(found['peak_bytes'])} of {size(found['total_bytes'])}"
    notices = "".join(f"<p class='hint'>{escape(one)}</p>" for one in found["notices"])
    several = f" ({found['together']} runs at once)" if found["together"] > 1 else ""
    card = facts(
        [
            ("Peak memory", f"{share}{several}"),
            *([("Time", _time_text(found)), ("Time a step", _pace_text(found))] if found["fits"] else []),
            ("Disk", f"at most {size(found['disk_bytes'])} for checkpoints"),
        ],
        f"Measured: {found['verdict']}",
    )
    return f"{card}{notices}"
