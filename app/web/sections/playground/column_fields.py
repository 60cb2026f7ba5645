"""The fields that say who answers and how: read together, whatever is done with them, and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.chats import MAX_SIDE_BY_SIDE
from app.web.parts.options_form import option_fields
from app.web.parts.panes import sheet
from app.web.parts.shell import QUIET, Shell
from app.web.sections.playground.who_answers import SIDE, SINGLE, speakers_of
from core.generate.config import GenerationConfig


@dataclass(frozen=True)
class Said:
    """What the fields say."""

    base: str
    adapters: list[str]
    speakers: list[str]
    """Who answers, the plain base too."""
    config: GenerationConfig


@dataclass(frozen=True)
class WhoAnswers:
    """The fields of who answers."""

    base: gr.Dropdown
    adapters: gr.Dropdown
    speaker: gr.Dropdown
    mode: gr.Radio
    with_base: gr.Checkbox

    @property
    def all(self) -> list[Any]:
        """In the order in which handlers are given their values."""
        return [self.base, self.adapters, self.speaker, self.mode, self.with_base]

    @staticmethod
    def speakers(values: Sequence[Any]) -> list[str]:
        """Who answers, by the values of all of them."""
        _, adapters, speaker, mode, with_base = values
        return speakers_of(mode, adapters, speaker, with_base)


@dataclass(frozen=True)
class ColumnFields:
    """Those of who answers, and how."""

    who: WhoAnswers
    sampling: Mapping[str, Component]

    @property
    def inputs(self) -> list[Any]:
        """What `read` needs the values of."""
        return [*self.who.all, *self.sampling.values()]

    def read(self, values: Sequence[Any]) -> Said:
        """What the values of `inputs` say. Raises InvalidConfig."""
        count = len(self.who.all)
        config = sampling_of(dict(zip(self.sampling, values[count:], strict=True)))
        who = values[:count]
        return Said(who[0] or "", list(who[1] or []), WhoAnswers.speakers(who), config)


def who_answers_row() -> WhoAnswers:
    """Lay the fields of who answers out in a row."""
    with gr.Row(elem_classes="who-answers"):
        base = gr.Dropdown([], label="Base model", interactive=True, scale=2)
        mode = gr.Radio([SIDE, SINGLE], value=SIDE, label="Mode", scale=0, min_width=260)
        adapters = gr.Dropdown(
            [],
            label="Adapters, checkpoints, blends (up to seven)",
            multiselect=True,
            allow_custom_value=True,
            max_choices=MAX_SIDE_BY_SIDE - 1,
            interactive=True,
            scale=4,
        )
        speaker = gr.Dropdown([], label="Who answers", interactive=True, visible=False, scale=4)
        with_base = gr.Checkbox(True, label="Plain base too", scale=0, min_width=130)
    return WhoAnswers(base, adapters, speaker, mode, with_base)


def sampling_sheet() -> tuple[Mapping[str, Component], gr.Textbox, gr.Checkbox]:
    """Lay the sheet out: fields of a GenerationConfig by name, the system prompt, and whether text is raw."""
    with sheet("sampling", "Sampling", "How the next token is chosen; the same for all columns."):
        sampling = option_fields(GenerationConfig.options(), per_row=2)
        system = gr.Textbox(
            value="",
            label="System prompt",
            info="What each conversation that is begun from now on starts with. Empty: none.",
            lines=3,
        )
        raw = gr.Checkbox(
            False,
            label="Go on with raw text",
            info="Without the chat template and without what was said before, as a base model is tried.",
        )
    return sampling, system, raw


def sampling_of(values: Mapping[str, object]) -> GenerationConfig:
    """What the fields of the sheet say. Raises InvalidConfig, with the words that a field is found by."""
    for option in GenerationConfig.options():
        there, value = replace(option, name=f"{option.label} under Sampling"), values[option.name]
        if isinstance(value, int):
            there.check(value)  # as it was typed: 5, not 5.0
        there.parse(value)
    return GenerationConfig.parse(values)


def keep_sampling(shell: Shell, sampling: Mapping[str, Component], kept: gr.BrowserState) -> None:
    """Keep the sheet in the browser; first shown, it is as it was. sampling: all of its fields, by name."""
    shown = gr.State(False)

    def show(was_shown: bool, before: str) -> tuple[object, ...]:
        was = json.loads(before) if before and not was_shown else {}
        return True, *(was.get(name, gr.skip()) for name in sampling)

    fields: list[Any] = list(sampling.values())
    names = json.dumps(list(sampling))
    shell.refresh(show, [shown, kept], [shown, *fields])
    gr.on(
        [one.input for one in fields],  # by hand only: what the page puts there by itself says nothing
        None,
        fields,
        kept,
        js=f"(...said) => JSON.stringify(Object.fromEntries({names}.map((name, at) => [name, said[at]])))",
        **QUIET,
    )
