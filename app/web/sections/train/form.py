"""The form that a run is started with: its fields, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.options_form import option_fields
from app.web.parts.shell import QUIET, Shell, choose_from, refusal
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.options import Option
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES, Objective
from core.train.training_options import all_options
from storage.tables import Base, Dataset

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
MOST_OFFERED = 3  # changes that would make a run fit


@dataclass(frozen=True)
class TrainForm:
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


def train_form(workbench: Workbench) -> TrainForm:
    """Lay out the form."""
    base = gr.Dropdown([], label="Base model", interactive=True)
    dataset = gr.Dropdown([], label="Data set", interactive=True)
    with gr.Row(equal_height=True):
        name = gr.Textbox(value="", label="Name of the adapter", info="Empty: taken from the data set.")
        preset = gr.Dropdown([], value=None, label="Preset", info="Sets all options below.", interactive=True)
    why = gr.HTML()
    options = _option_fields()
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
            gr.Button("", visible=False, size="sm", elem_classes="offered") for _ in range(MOST_OFFERED)
        ]
    return TrainForm(
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


def bind_choices(shell: Shell, form: TrainForm) -> None:
    """Offer the base models and data sets that there are."""
    registry = shell.workbench.registry

    def show(base_now: str, data_now: str) -> tuple[object, ...]:
        bases, sets = [row.name for row in registry.all(Base)], [row.name for row in registry.all(Dataset)]
        return choose_from(bases, base_now), choose_from(sets, data_now)

    shell.refresh(show, [form.base, form.dataset], [form.base, form.dataset])


def require_chosen(base: str | None, dataset: str | None) -> None:
    """Refuse what needs both while one is missing."""
    if not base or not dataset:
        missing = "a base model (under Models)" if not base else "a data set (under Data)"
        raise refusal(f"Choose {missing} first.")


def _option_fields() -> dict[str, Any]:
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
