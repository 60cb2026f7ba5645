"""What the run in the form would take, estimated as the form changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.shared.bases import shapes_of
from app.shared.errors import USER_ERRORS
from app.web.parts.markup import duration, size
from app.web.parts.routes import link
from app.web.parts.shell import FOLLOWING, QUIET, Shell, told
from app.web.sections.train.checklist_view import checklist_html
from app.web.sections.train.form import TrainForm
from app.web.sections.train.form_values import FormValues
from core.base_model.describe import writes_text
from core.errors import InvalidConfig
from core.lora.targets import CHOICE_WORDS, Targeted, layer_kinds, usual_targets
from core.train.checklist import BAD, Check
from core.train.config import TrainConfig
from core.train.estimate import Estimate
from core.train.objectives import OBJECTIVES
from core.train.step_count import smaller_plans
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.tables import Base, Dataset

Offers = Sequence[tuple[str, Mapping[str, Any]]]
"""Changes of options that are proposed: in words, and the options."""
_FEW_STEPS = 30
_TELL = """
const tell = () => {
  const found = element.querySelector('[data-targets]');
  if (found) dispatchEvent(new CustomEvent('workbench-targets', {detail: JSON.parse(found.dataset.targets)}));
};
element.addEventListener('click', event => {
  const offer = event.target.closest('[data-offer]');
  if (offer) dispatchEvent(new CustomEvent('workbench-options', {detail: JSON.parse(offer.dataset.offer)}));
});
watch('value', tell);
tell();
const pane = element.closest('.plan-scroll');  // it may scroll, and is to be reached by keyboard then
for (const [name, value] of [['tabindex', '0'], ['role', 'region'], ['aria-label', 'Plan']])
  pane?.setAttribute(name, value);
"""


def plan_panel(elem_id: str) -> gr.HTML:
    """A component for HTML that may propose changes, which go into the form when they are pressed."""
    return gr.HTML("", js_on_load=_TELL, elem_id=elem_id)


def bind_plan(shell: Shell, form: TrainForm, plan: gr.HTML, measured: gr.HTML) -> None:
    """Estimate again whenever the form changes; what was measured of an earlier state of it goes away."""

    def show_plan(base: str | None, dataset: str | None, options: str) -> tuple[str, gr.Checkbox]:
        return shown_plan(shell.workbench, base, dataset, options)

    changes = [form.options.submit, form.base.change, form.dataset.change]
    # By the browser, at once: an answer may come when the next measuring has begun.
    gr.on(changes, None, None, measured, js="() => ''", **QUIET)
    outputs = [plan, form.anyway]
    # On one path with the registry's changes: of two answers the older one might come last, and stay.
    gr.on(
        [*changes, shell.changed.change],
        show_plan,
        form.training,
        outputs,
        **FOLLOWING,
    )


def shown_plan(
    workbench: Workbench, base: str | None, dataset: str | None, options: str
) -> tuple[str, gr.Checkbox]:
    """The plan, and the box by which people insist, which is there where the checklist refuses."""
    checks = _checks(workbench, base, dataset, options)
    plan = plan_html(workbench, base, dataset, options, checks)
    if any(one.state == BAD for one in checks):
        return plan, gr.Checkbox(visible=True)
    return plan, gr.Checkbox(value=False, visible=False)


def _checks(workbench: Workbench, base: str | None, dataset: str | None, options: str) -> list[Check]:
    """The checklist of the run in the form; of a sweep that of the first that is refused, or else of its
    first. None where the plan says why there can be no run.
    """
    if not base or not dataset:
        return []
    try:
        wanted = FormValues.read(options).wanted()
        lists = [workbench.training.checklist(base, dataset, one) for one in wanted]
    except USER_ERRORS:
        return []
    return next((one for one in lists if any(check.state == BAD for check in one)), lists[0])


def plan_html(
    workbench: Workbench,
    base: str | None,
    dataset: str | None,
    options: str,
    checks: Sequence[Check],
) -> str:
    """What the run would need, or each run of a sweep, or why it cannot start; and its checklist."""
    said = FormValues.read(options)
    targets = targets_html(workbench, base, said)
    if not base or not dataset:
        return targets + _first_steps(workbench, base)
    try:
        runs = told(said.wanted)()
        plan = told(workbench.training.estimate)(base, dataset, runs[0])
    except gr.Error as error:
        why = f"<span class='state bad'>cannot start</span> {error.message}"
        return f"{targets}<div class='plan-bad'>{why}</div>{offers_html(_what_it_can(workbench, base, said))}"
    room = workbench.training.room(runs[0].train)
    listed = checklist_html(checks) if checks else ""
    return targets + _facts(plan, room) + _hints(plan, runs) + _too_large(plan, room, runs[0]) + listed


def _what_it_can(workbench: Workbench, base: str, said: FormValues) -> Offers:
    """What a base without a head that writes can learn instead of answers."""
    if writes_text(workbench.registry.find(Base, base).architecture):
        return []
    return [
        (f"Objective: {one.label.lower()}", {"objective": one.name})
        for one in OBJECTIVES.all().values()
        if one.classifies and said.values.get("objective") != one.name
    ]


def _first_steps(workbench: Workbench, base: str | None) -> str:
    """What is missing: of what there is, the form chooses some by itself, a moment after it is opened."""
    if not base and not workbench.registry.names(Base):
        add = link("Add one under Models", "models")
        said = f"There is no base model to train yet. {add}: the starter model is enough."
    elif not base:
        said = "Choose a base model."
    elif not workbench.registry.names(Dataset):
        said = f"There is nothing to learn from yet. {link('Import a data set', 'data')}."
    else:
        said = "Choose a data set."
    return f"<div class='empty'>{said}</div>"


def _facts(plan: Estimate, room: int | None) -> str:
    seconds = f"known after the first run on this base{' on as many cards' if plan.hold else ''}"
    if plan.seconds is not None:
        seconds = f"about {duration(plan.seconds)}"
    packed = ", rows packed into blocks" if plan.packed else ""
    free = f" of {size(room)} free" if room else ""
    each = " on each card" if plan.hold else ""
    rows = [
        ("Trainable parameters", f"{plan.trainable_parameters:,} in {plan.targeted_layers} layers"),
        ("Target modules", escape(plan.layer_sentence)),
        ("Steps", f"{plan.steps:,}, about {plan.tokens:,} tokens{packed}"),
        ("Time", seconds),
        ("Memory", f"about {size(plan.memory_bytes)}{free}{each}{memory_bar(plan.memory_bytes, room)}"),
        *([("Cards", escape(plan.hold.sentence))] if plan.hold else []),
    ]
    lines = "".join(f"<div><dt>{name}</dt><dd>{said}</dd></div>" for name, said in rows)
    return f"<dl class='plan-facts'>{lines}</dl>"


def memory_bar(taken: int, room: int | None) -> str:
    """How much of the memory is taken, as a bar; nothing where nobody knows how much there is."""
    if not room:
        return ""
    share = taken / room
    kind = "too-much" if share > 1 else ""
    return (
        f"<span class='bar {kind}' role='meter' aria-label='Share of the free memory' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{min(100, round(100 * share))}'>"
        f"<i style='width:{min(100.0, 100 * share):.0f}%'></i></span>"
    )


def _hints(plan: Estimate, runs: Sequence[TrainingOptions]) -> str:
    said = []
    if len(runs) > 1:
        said.append(
            f"{len(runs)} adapters, trained at once where memory allows; the plan is that of the first."
        )
    if plan.experts:
        said.append(plan.experts)
    if plan.steps < _FEW_STEPS:
        said.append(f"Only {plan.steps} optimiser steps: {_more_steps(runs[0].train)}")
    return "".join(f"<p class='plan-hint'>{escape(one)}</p>" for one in said)


def _too_large(plan: Estimate, room: int | None, options: TrainingOptions) -> str:
    if not room or plan.memory_bytes <= room:
        return ""
    said = "That may be more memory than there is. Measure first, or take less:"
    return (
        f"<p class='plan-hint'>{said}</p>{offers_html(smaller_plans(options.train, plan.hold, plan.cards))}"
    )


def offers_html(offers: Offers) -> str:
    """Buttons, each of which puts its changes into the form."""
    buttons = "".join(
        f"<button type='button' class='small' data-offer='{escape(json.dumps(dict(change)))}'>"
        f"{escape(words)}</button>"
        for words, change in offers
    )
    return f"<div class='offers'>{buttons}</div>" if buttons else ""


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


def targets_html(workbench: Workbench, base: str | None, said: FormValues) -> str:
    """For the picker of target modules: the kinds of layers of the chosen base with what each would cost, and
    usual choices.
    """
    try:
        model = workbench.registry.find(Base, base) if base else None
    except NotFound:  # removed meanwhile
        model = None
    if model is None:
        return _targets([], {})
    try:
        options = said.parsed()
    except InvalidConfig:  # the plan says so; the counts are those of the defaults until it is mended
        options = TrainingOptions()
    kinds = layer_kinds(shapes_of(model), model.head, options.lora, options.kind)
    choices = usual_targets(shapes_of(model), model.head, options.lora, options.kind)
    return _targets([[one.name, one.layers, one.parameters, one.is_head] for one in kinds], choices)


def _targets(kinds: Sequence[Sequence[object]], choices: Mapping[str, Targeted]) -> str:
    words = {word: choices[label] for label, word in CHOICE_WORDS.items() if label in choices}
    told_of = json.dumps(
        {
            "kinds": kinds,
            "choices": {label: one.target_modules for label, one in choices.items()},
            "hits": {label: one.sentence for label, one in choices.items()},
            "words": {word: one.target_modules.split(",") for word, one in words.items()},
        }
    )
    return f"<i hidden data-targets='{escape(told_of)}'></i>"
