"""The form that a run is started with: its fields, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from app.web.parts.shell import refusal

NO_PRESET = ("No preset", "")


@dataclass(frozen=True)
class TrainForm:
    """What a run is started with."""

    base: gr.Dropdown
    dataset: gr.Dropdown
    preset: gr.Dropdown
    name: gr.Textbox
    options: gr.HTML
    """Its value is what FormValues writes."""
    together: gr.Checkbox
    anyway: gr.Checkbox
    """Whether to train what the checklist refuses; there only where it does."""

    @property
    def training(self) -> list[gr.Dropdown | gr.HTML]:
        """What decides what is trained, on what, and how."""
        return [self.base, self.dataset, self.options]

    @property
    def all(self) -> list[gr.components.Component]:
        """In the order in which the form is kept."""
        return [self.base, self.dataset, self.preset, self.name, self.together, self.options]


def what_line() -> tuple[gr.Dropdown, gr.Dropdown, gr.Dropdown, gr.Textbox]:
    """What is trained, on what, with which preset, and what it will be called."""
    with gr.Row(elem_classes="what-line"):
        base = gr.Dropdown([], label="Base model", interactive=True, min_width=140)
        dataset = gr.Dropdown([], label="Data set", interactive=True, min_width=140)
        preset = gr.Dropdown([NO_PRESET], value="", label="Preset", interactive=True, min_width=140)
        name = gr.Textbox(
            value="",
            label="Name of the adapter",
            placeholder="taken from the data set",
            min_width=140,
            max_lines=1,
        )
    return base, dataset, preset, name


def require_chosen(base: str | None, dataset: str | None) -> None:
    """Refuse what needs both while one is missing."""
    if not base or not dataset:
        missing = "a base model (under Models)" if not base else "a data set (under Data)"
        raise refusal(f"Choose {missing} first.")
