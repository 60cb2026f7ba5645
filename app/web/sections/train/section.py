"""Train: choose, configure, start, and watch the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import duration, facts, size
from app.web.parts.options_form import option_fields
from app.web.parts.shell import QUIET, WORKING, Shell, choose_from, refusal, told
from app.web.sections.train.run_controls import RunPanel, run_panel
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.options import Option
from core.train.config import TrainConfig
from core.train.estimate import Estimate
from core.train.objectives import OBJECTIVES, Objective
from core.train.sweep import combinations, parse_grid
from core.train.training_options import TrainingOptions, all_options, without_unchosen
from storage.tables import Base, Dataset, Run

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
_MOST_OFFERED = 3  # changes that would make a run fit


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    with gr.Row():
        with gr.Column(scale=5, min_width=430):
            form = _form(shell.workbench)
            with gr.Row(elem_id="start-row"):
                start = gr.Button("Start training", variant="primary", elem_id="start-training")
                measure = gr.Button("Measure first", elem_id="measure")
        with gr.Column(scale=7, min_width=520):
            panel = run_panel(shell)
    _bind_bases_and_data(shell, form)
    _bind_plan(shell, form)
    _bind_start(shell, form, start, panel)
    _bind_measuring(shell, form, measure)
    _bind_presets(shell, form)
    _bind_duplicates(shell, form, panel)


@dataclass(frozen=True)
class _Form:
    """What a run is started with."""

    base: gr.Dropdown
    dataset: gr.Dropdown
    name: gr.Textbox
    preset: gr.Dropdown
    why: gr.HTML
    save_name: gr.Textbox
    save: gr.Button
    forget: gr.Button
    options: dict[str, Any]
    sweep: gr.Textbox
    together: gr.Checkbox
    plan: gr.HTML
    measured: gr.HTML
    changes: list[gr.Button]
    offered: gr.State

    @property
    def inputs(self) -> dict[str, Any]:
        """By the names of the handlers' arguments."""
        return {"base": self.base, "dataset": self.dataset, "sweep": self.sweep, **self.options}

    def values(self, options: Mapping[str, Any]) -> list[Any]:
        """What the option fields show for these options; what is not named has its default."""
        known = all_options()
        return [options.get(name, known[name].default) for name in self.options]


def _form(workbench: Workbench) -> _Form:
    base = gr.Dropdown([], label="Base model", interactive=True)
    dataset = gr.Dropdown([], label="Data set", interactive=True)
    with gr.Row(equal_height=True):
        name = gr.Textbox(value="", label="Name of the adapter", info="Empty: taken from the data set.")
        preset = gr.Dropdown([], value=None, label="Preset", info="Sets all options below.", interactive=True)
    why = gr.HTML()
    options = _options()
    sweep = gr.Textbox(
        value="",
        label="Sweep",
        lines=2,
        max_lines=6,
        elem_id="sweep",
        placeholder="rank=4,8,16\nlearning_rate=1e-4,3e-4",
        info="Several values for any option, one option a line. Every combination becomes an adapter; "
        "they train at once on the one base.",
    )
    together = gr.Checkbox(
        value=False,
        label="May train at once with other waiting runs",
        info="Runs on the same base that allow it share every pass over its weights.",
    )
    with gr.Accordion("Save these options as a preset", open=False), gr.Row(equal_height=True):
        save_name = gr.Textbox(value="", label="Name of the preset", scale=3)
        save = gr.Button("Save preset", scale=1, min_width=110)
        forget = gr.Button("Delete preset", scale=1, min_width=110)
    plan, measured = gr.HTML(), gr.HTML(elem_id="measured")
    with gr.Row():
        changes = [
            gr.Button("", visible=False, size="sm", elem_classes="offered") for _ in range(_MOST_OFFERED)
        ]
    return _Form(
        base,
        dataset,
        name,
        preset,
        why,
        save_name,
        save,
        forget,
        options,
        sweep,
        together,
        plan,
        measured,
        changes,
        gr.State([]),
    )


def _bind_bases_and_data(shell: Shell, form: _Form) -> None:
    registry = shell.workbench.registry

    def show(base_now: str, data_now: str) -> tuple[object, ...]:
        bases, sets = [row.name for row in registry.all(Base)], [row.name for row in registry.all(Dataset)]
        return choose_from(bases, base_now), choose_from(sets, data_now)

    shell.refresh(show, [form.base, form.dataset], [form.base, form.dataset])


def _bind_plan(shell: Shell, form: _Form) -> None:
    def show_plan(base: str, dataset: str, sweep: str, **values: Any) -> str:
        return plan_html(shell.workbench, base, dataset, values, sweep)

    changed = [field.change for field in form.options.values()]
    triggers = [shell.page.load, form.base.change, form.dataset.change, form.sweep.change, *changed]
    gr.on(
        triggers, show_plan, None, form.plan, inputs_kwargs=form.inputs, trigger_mode="always_last", **QUIET
    )


def _bind_start(shell: Shell, form: _Form, start: gr.Button, panel: RunPanel) -> None:
    workbench = shell.workbench

    @told
    def begin(
        base: str, dataset: str, name: str, sweep: str, together: bool, **values: Any
    ) -> tuple[object, ...]:
        _require_chosen(base, dataset)
        options = parsed(values)
        if sweep.strip():
            started = workbench.training.sweep(base, dataset, options, grid_of(sweep), name.strip())
        else:
            started = [workbench.training.start(base, dataset, options, name.strip(), together=together)]
        return "", *panel.show(started[0].id, [run.id or 0 for run in started[1:]])

    inputs = {**form.inputs, "name": form.name, "together": form.together}
    start.click(
        begin, None, [form.name, *panel.outputs], inputs_kwargs=inputs, concurrency_id="start", **WORKING
    )


def _bind_measuring(shell: Shell, form: _Form, measure: gr.Button) -> None:
    @told
    def find_out(base: str, dataset: str, sweep: str, **values: Any) -> tuple[object, ...]:
        _require_chosen(base, dataset)
        found, offered = shell.workbench.training.measure(base, dataset, wanted(values, sweep))
        buttons = [
            gr.Button(offered[at][0] if at < len(offered) else "", visible=at < len(offered))
            for at in range(_MOST_OFFERED)
        ]
        return measured_html(found), [options for _, options in offered], *buttons

    shown = [form.measured, form.offered, *form.changes]
    measure.click(find_out, None, shown, inputs_kwargs=form.inputs, concurrency_id="measure", **WORKING)
    fields = list(form.options.values())
    for place, button in enumerate(form.changes):

        def take(offered: list[dict[str, Any]], place: int = place) -> list[object]:
            return [offered[place].get(name, gr.skip()) for name in form.options]

        button.click(take, form.offered, fields, **QUIET)


def _bind_presets(shell: Shell, form: _Form) -> None:
    presets, fields = shell.workbench.presets, list(form.options.values())

    def names() -> list[str]:
        return [one.name for one in presets.usable()]

    def choices(chosen: str | None = None) -> gr.Dropdown:
        return gr.Dropdown(choices=names(), value=chosen)

    @told
    def choose(name: str | None) -> list[object]:
        if not name:
            return ["", *[gr.skip()] * len(fields)]
        found = presets.find(name)
        return [f"<p class='hint'>{escape(found.why)}</p>", *form.values(found.options)]

    @told
    def save(name: str, **values: Any) -> tuple[object, ...]:
        presets.save(name, parsed(values))
        return "", choices(name.strip()), ""

    @told
    def forget(name: str | None) -> tuple[object, ...]:
        if not name:
            raise refusal("Choose the preset to delete first, at the top.")
        presets.remove(name)
        return choices(), ""

    shell.refresh(lambda now: choose_from(names(), now, None), [form.preset], [form.preset])
    form.preset.input(choose, form.preset, [form.why, *fields], **QUIET)
    form.save.click(
        save,
        None,
        [form.save_name, form.preset, form.why],
        inputs_kwargs={"name": form.save_name, **form.options},
        **WORKING,
    )
    form.forget.click(forget, form.preset, [form.preset, form.why], **WORKING)


def _bind_duplicates(shell: Shell, form: _Form, panel: RunPanel) -> None:
    """Another section wants a run shown, or its options put into the form."""
    runs, registry, fields = shell.workbench.runs, shell.workbench.registry, list(form.options.values())

    @told
    def bring(wish: tuple[str, int]) -> tuple[object, ...]:
        what, run_id = wish[0], int(wish[1])
        row = registry.get(Run, run_id)
        untouched = [gr.skip()] * (2 + len(fields))
        if what == "show":
            return *untouched, *panel.show(run_id, [])
        return (row.base_name, row.dataset_name, *form.values(runs.options(run_id)), *panel.show(run_id, []))

    shell.to_train.change(
        bring, shell.to_train, [form.base, form.dataset, *fields, *panel.outputs], **WORKING
    )


def _require_chosen(base: str | None, dataset: str | None) -> None:
    if not base or not dataset:
        missing = "a base model (under Models)" if not base else "a data set (under Data)"
        raise refusal(f"Choose {missing} first.")


def _options() -> dict[str, Any]:
    """All training options: the ones people change first, the rest folded away."""
    (kind, *lora), (objective, *train) = LoraConfig.options(), TrainConfig.options()
    gr.Markdown("#### Adapter")
    fields = _kind_fields(kind, ADAPTER_KINDS.all())
    fields |= option_fields([option for option in lora if option.name in _MAIN], per_row=2)
    gr.Markdown("#### Training")
    fields |= _kind_fields(objective, OBJECTIVES.all())
    fields |= option_fields([option for option in train if option.name in _MAIN], per_row=2)
    with gr.Accordion("More options", open=False):
        fields |= option_fields([option for option in (*lora, *train) if option.name not in _MAIN], per_row=2)
    return fields


def _kind_fields(option: Option, heads: Mapping[str, AdapterKind | Objective]) -> dict[str, Any]:
    """A choice among several kinds, and below it what the chosen one is for and the options it has of its
    own. A kind that is the only one is not asked for.
    """
    if len(heads) == 1:
        return option_fields(heads[option.default].options.options(), per_row=2)
    choices = [(head.label, name) for name, head in heads.items()]
    chooser = gr.Dropdown(
        choices, value=option.default, label=option.label, info=option.help, interactive=True
    )
    fields: dict[str, Any] = {option.name: chooser}
    groups = []
    for name, head in heads.items():
        with gr.Group(visible=name == option.default) as group:
            gr.Markdown(head.help)
            fields |= option_fields(head.options.options(), per_row=2)
        groups.append(group)

    def show(chosen: str) -> list[gr.Group]:
        return [gr.Group(visible=name == chosen) for name in heads]

    chooser.change(show, chooser, groups, **QUIET)
    return fields


def parsed(values: Mapping[str, object]) -> TrainingOptions:
    """What the fields say, of the chosen kinds alone. Raises InvalidConfig."""
    return TrainingOptions.parse(without_unchosen(values))


def wanted(values: Mapping[str, object], sweep: str) -> list[TrainingOptions]:
    """The options of the run that the form describes, or of each run of its sweep. Raises InvalidConfig."""
    options = parsed(values)
    if not sweep.strip():
        return [options]
    return [one for _, one in combinations(options, grid_of(sweep))]


def grid_of(sweep: str) -> dict[str, list[str]]:
    """The grid that the lines of the sweep field describe. Raises InvalidConfig."""
    return parse_grid(line for line in sweep.splitlines() if line.strip())


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
    if plan.steps < _FEW_STEPS:
        hint += (
            f"<p class='hint'>Only {plan.steps} optimiser steps: with little data a smaller effective batch "
            "(fewer accumulation steps) learns more.</p>"
        )
    return f"{_plan_facts(plan)}{hint}"


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


def measured_html(found: dict[str, Any]) -> str:
    """What a short trial has shown."""
    share = f"{size(found['peak_bytes'])} of {size(found['total_bytes'])}"
    notices = "".join(f"<p class='hint'>{escape(one)}</p>" for one in found["notices"])
    several = f" ({found['together']} runs at once)" if found["together"] > 1 else ""
    card = facts(
        [
            ("Peak memory", f"{share}{several}"),
            ("Time a step", f"{found['seconds_a_step']:.2f} s with the longest rows"),
            (
                "Time",
                f"at most {duration(found['seconds'])} for {found['steps']:,} steps, evaluations not counted",
            ),
            ("Disk", f"at most {size(found['disk_bytes'])} for checkpoints"),
        ],
        f"Measured: {found['verdict']}",
    )
    return f"{card}{notices}"
