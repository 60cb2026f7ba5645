"""Playground: the base and what was made of it answer one prompt, side by side in one batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.chats import MAX_SIDE_BY_SIDE
from app.service.usual import usual_base
from app.service.workbench import Workbench
from app.shared.bases import base_for, require_writing_base
from app.web.parts.options_form import option_fields
from app.web.parts.panes import bar, opener, sheet
from app.web.parts.routes import wish
from app.web.parts.shell import (
    QUIET,
    QUIET_QUEUED,
    WORKING,
    Shell,
    choose_from,
    choose_many,
    offered,
    refusal,
    told,
    values_of,
)
from app.web.sections.playground import (
    blend_sheet,
    chats_sheet,
    classify_sheet,
    judge_sheet,
    reference_sheet,
    row_sheet,
)
from app.web.sections.playground.talk import PLAIN, PLAIN_BASE, talk_panel, talk_value
from app.web.sections.playground.who_answers import SIDE, SINGLE, adapters_for, columns_choices, speakers_of
from core.base_model.describe import writes_text
from core.errors import WrongBase
from core.generate.config import GenerationConfig
from storage.errors import NotFound
from storage.tables import Adapter, Base

TAB, TITLE = "playground", "Playground"


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench, kept = shell.workbench, shell.kept["playground"]
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
    with bar():
        clear = gr.Button("New chat", size="md", scale=0, min_width=0)
        opener(chats_sheet.KEY, "Conversations")
        opener("sampling", "Sampling")
        opener(classify_sheet.KEY, "Classify")
        opener(blend_sheet.KEY, "Blend")
        opener(reference_sheet.KEY, "Reference answer")
        judging = opener(judge_sheet.KEY, "Judge")
    warned = gr.HTML()
    talk = talk_panel(workbench)
    with gr.Row(elem_classes="ask-line"):
        prompt = gr.Textbox(
            label="Prompt",
            show_label=False,
            lines=1,
            max_lines=10,
            scale=8,
            placeholder="Ask all of them the same question. Enter sends, Shift+Enter breaks the line.",
            elem_id="prompt",
        )
        send = gr.Button("Send", variant="primary", size="md", scale=0, min_width=80)
        stop = gr.Button("Stop", interactive=False, size="md", scale=0, min_width=80, elem_id="stop-answers")
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
    chat = chats_sheet.chats_sheet(shell)
    classify_outputs = classify_sheet.classify_sheet(shell)
    row_outputs = row_sheet.row_sheet(shell)
    blend, live = blend_sheet.blend_sheet(shell, base, adapters, chat, sampling)
    judge_sheet.judge_sheet(shell, judging, [base, adapters], sampling)

    fields: list[Any] = [base, adapters, speaker, mode, with_base]
    _bind_choice(shell, fields, kept)
    _bind_columns(workbench, fields, talk, chat, warned)
    _bind_wishes(shell, [base, adapters, mode, with_base, chat], classify_outputs)

    @told
    def ask(question: str, chat_now: str, system_now: str, as_text: bool, *values: Any) -> tuple[object, ...]:
        (base_now, *who), settings = values[: len(fields)], values[len(fields) :]
        if not base_now:
            raise refusal("Add a base model that writes text first, under Models.")
        config, names = _config(sampling, settings), _speakers(who)
        chat_id = workbench.conversations.ask(
            _existing(workbench, chat_now), base_now, names, question, config, system_now, raw=as_text
        )
        return "", str(chat_id), talk_value(chat_id, names), gr.Button(interactive=True)

    asked = [prompt, chat, system, raw, *fields, *sampling.values()]
    gr.on([send.click, prompt.submit], ask, asked, [prompt, chat, talk, stop], **QUIET_QUEUED)

    reference_sheet.reference_sheet(shell, chat, fields[1:], _speakers)

    @told
    def slid(parts: str, follows: bool, chat_now: str, *values: Any) -> tuple[object, ...]:
        (base_now, *who), settings = values[: len(fields)], values[len(fields) :]
        found = blend_sheet.moved(workbench, parts, base_now, who[0]) if follows else None
        if found is None:
            return gr.skip(), gr.skip()
        columns, old, new = found
        answered = workbench.conversations.last_of(int(chat_now or 0), old)
        if answered is not None:
            workbench.conversations.again(answered, _config(sampling, settings), new)
        names = [new if one == old else one for one in _speakers(who)]
        return columns, talk_value(int(chat_now or 0), names)

    slid_by = [blend, live, chat, *fields, *sampling.values()]
    blend.submit(slid, slid_by, [adapters, talk], trigger_mode="always_last", **QUIET_QUEUED)

    @told
    def act(event: gr.EventData, chat_now: str, *values: Any) -> tuple[object, ...]:
        (_, *who), settings = values[: len(fields)], values[len(fields) :]
        wanted, skipped = event._data, [gr.skip()] * len(row_outputs)
        if wanted["do"] in ("busy", "idle"):
            return gr.skip(), gr.skip(), gr.Button(interactive=wanted["do"] == "busy"), *skipped
        if wanted["do"] == "row":
            return *[gr.skip()] * 3, *row_sheet.filled(workbench, int(wanted["message"]))
        chat_id = _done(workbench, wanted, int(chat_now or 0), _speakers(who), _config(sampling, settings))
        return str(chat_id), talk_value(chat_id, _speakers(who)), gr.skip(), *skipped

    acted = [chat, *fields, *sampling.values()]
    talk.submit(act, acted, [chat, talk, stop, *row_outputs], trigger_mode="multiple", **QUIET_QUEUED)

    def halt(chat_now: str) -> None:
        workbench.conversations.stop(int(chat_now or 0))

    stop.click(told(halt), chat, None, **QUIET)
    clear.click(lambda *who: ("", talk_value(0, _speakers(who))), fields[1:], [chat, talk], **QUIET)


def _bind_choice(shell: Shell, fields: list[Any], kept: gr.BrowserState) -> None:
    """Who there is to choose from, and what was chosen before this page was loaded."""
    workbench, (base, adapters, speaker, mode, with_base) = shell.workbench, fields

    def show(
        base_now: str | None, adapters_now: list[str] | None, speaker_now: str | None, before: str
    ) -> tuple[object, ...]:
        shown, mode_now, with_base_now = (base_now, adapters_now, speaker_now), gr.skip(), gr.skip()
        if not base_now and before:
            base_now, adapters_now, speaker_now, mode_now, with_base_now = json.loads(before)
        names = _bases(workbench)
        usual = usual_base(workbench)
        chosen = next((one for one in (base_now, usual, *names) if one in names), None)
        fitting, columns = adapters_for(workbench, chosen), columns_choices(workbench, chosen, adapters_now)
        return (
            offered(names, chosen, shown[0]),
            choose_many(columns, adapters_now, fitting[:1], shown[1]),
            choose_from([*fitting, PLAIN_BASE], speaker_now, shown=shown[2]),
            mode_now,
            with_base_now,
        )

    shell.refresh(show, [base, adapters, speaker, kept], fields)

    def show_of(base_now: str, adapters_now: list[str], speaker_now: str) -> tuple[object, ...]:
        return show(base_now, adapters_now, speaker_now, "")[1:3]

    base.input(show_of, [base, adapters, speaker], [adapters, speaker], **QUIET)
    gr.on(
        [one.change for one in fields],
        None,
        [*fields, kept],
        kept,
        js="(...chosen) => chosen[0] ? JSON.stringify(chosen.slice(0, 5)) : chosen[5]",
        show_progress="hidden",
    )

    def show_mode(mode: str) -> tuple[object, ...]:
        side = mode == SIDE
        return gr.Dropdown(visible=side), gr.Dropdown(visible=not side), gr.Checkbox(visible=side)

    mode.change(show_mode, mode, [adapters, speaker, with_base], **QUIET)


def _bind_columns(
    workbench: Workbench, fields: list[Any], talk: gr.HTML, chat: gr.HTML, warned: gr.HTML
) -> None:
    """The columns follow who is chosen, and a conversation that is opened brings its own."""

    def show(chat_now: str, base_now: str, *who: Any) -> tuple[str, str]:
        names = _speakers(who)
        return talk_value(int(chat_now or 0), names), warnings_html(workbench, base_now, names)

    changes = [one.change for one in fields]
    gr.on(changes, show, [chat, *fields], [talk, warned], trigger_mode="always_last", **QUIET)

    def opened(chat_now: str, _: str, *who: Any) -> tuple[object, ...]:
        found = chats_sheet.conversation(workbench, chat_now)
        turns = workbench.conversations.turns(int(chat_now)) if found else []
        if found is None or not turns or found.base_name not in workbench.registry.names(Base):
            return *[gr.skip()] * 5, talk_value(int(chat_now or 0), _speakers(who))
        fitting, said = adapters_for(workbench, found.base_name), list(turns[-1].answers)
        choices = columns_choices(workbench, found.base_name, [one for one in said if one])
        columns = [one for one in said if one == PLAIN or one in values_of(choices)]
        chosen = gr.Dropdown(choices=choices, value=[one for one in columns if one])
        base_now = _of_bases(workbench, found.base_name)
        alone = gr.Dropdown(choices=[*fitting, PLAIN_BASE], value=(columns or [PLAIN])[0] or PLAIN_BASE)
        mode_now = gr.skip() if len(columns) == 1 else SIDE  # one can be shown either way
        return base_now, chosen, alone, mode_now, PLAIN in columns, talk_value(int(chat_now), columns)

    chat.submit(opened, [chat, *fields], [*fields, talk], **QUIET_QUEUED)


def _bind_wishes(shell: Shell, outputs: list[Any], sheet_outputs: list[Any]) -> None:
    """Another section wants to try an adapter, or to chat with a base: in a new conversation."""
    workbench = shell.workbench

    @told
    def with_adapter(name: str) -> tuple[object, ...]:
        adapter = workbench.registry.find(Adapter, name)
        if workbench.classifiers.labels(adapter) is not None:
            return *[gr.skip()] * len(outputs), *classify_sheet.asked_for(workbench, name)
        at_home = base_for(workbench.registry, adapter).name
        answers = gr.Dropdown(choices=columns_choices(workbench, at_home), value=[name])
        return _of_bases(workbench, at_home), answers, SIDE, True, "", *[gr.skip()] * len(sheet_outputs)

    @told
    def with_model(name: str) -> tuple[object, ...]:
        require_writing_base(found := workbench.registry.find(Base, name))
        answers = gr.Dropdown(choices=columns_choices(workbench, found.name), value=[])
        return _of_bases(workbench, found.name), answers, SIDE, True, ""

    for parameter, handler, into in (
        ("adapter", with_adapter, [*outputs, *sheet_outputs]),
        ("base", with_model, outputs),
    ):
        wished = wish(TAB, parameter)
        wished.submit(handler, wished, into, **WORKING)


def _of_bases(workbench: Workbench, chosen: str) -> gr.Dropdown:
    """The bases that write text, one of them chosen."""
    return gr.Dropdown(choices=_bases(workbench), value=chosen)


def _bases(workbench: Workbench) -> list[str]:
    return [row.name for row in workbench.registry.all(Base) if writes_text(row.architecture)]


def _speakers(who: Sequence[Any]) -> list[str]:
    """Of the fields behind the base."""
    adapters, speaker, mode, with_base = who
    return speakers_of(mode, adapters, speaker, with_base)


def _config(fields: dict[str, Component], values: Sequence[Any]) -> GenerationConfig:
    return GenerationConfig.parse(dict(zip(fields, values, strict=True)))


def _existing(workbench: Workbench, chat: str) -> int | None:
    """The conversation that is shown, unless it is gone."""
    found = chats_sheet.conversation(workbench, chat)
    return found.id if found else None


def _done(
    workbench: Workbench, wanted: dict[str, Any], chat_id: int, speakers: list[str], config: GenerationConfig
) -> int:
    """Do what was asked of a message. The conversation that is shown from then on."""
    message = int(wanted["message"])
    if wanted["do"] == "again":
        workbench.conversations.again(message, config)
    elif wanted["do"] == "also":
        workbench.conversations.also(chat_id, [str(wanted["speaker"])], config)
    elif wanted["do"] == "adopt":
        workbench.conversations.adopt(message)
    elif wanted["do"] == "stop":
        workbench.conversations.stop(chat_id, message)
    elif wanted["do"] == "branch":
        return workbench.conversations.branch(message, str(wanted["prompt"]), speakers, config)
    return chat_id


def warnings_html(workbench: Workbench, base: str | None, names: Sequence[str]) -> str:
    """What will go wrong when these answer on this base; empty if nothing."""
    try:
        found = workbench.chats.warnings(base, [one for one in names if one]) if base else []
    except (NotFound, WrongBase) as error:
        found = [str(error)]
    return "".join(f"<p class='fault' role='alert'>{escape(one)}</p>" for one in found)


__all__ = ["SINGLE", "TAB", "TITLE", "build", "warnings_html"]
