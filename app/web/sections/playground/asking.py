"""What asking does, and what is done with a message that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.shell import QUIET, QUIET_QUEUED, Shell, refusal, told
from app.web.sections.playground import blend_sheet, chats_sheet, row_sheet
from app.web.sections.playground.column_fields import ColumnFields, Said
from app.web.sections.playground.talk import talk_value

_ASKED = "() => dispatchEvent(new CustomEvent('workbench-asked', {{detail: {}}}))"


def bind_asking(
    shell: Shell,
    fields: ColumnFields,
    start: tuple[gr.Textbox, gr.Checkbox],
    chat: gr.HTML,
    talk: gr.HTML,
    stop: gr.Button,
) -> None:
    """start: the system prompt, and whether text is raw.

    The panel takes the question from its line at the key: Gradio reads a field a moment later, when the next
    one may be begun in it.
    """
    workbench = shell.workbench

    @told
    def ask(event: gr.EventData, chat_now: str, system: str, raw: bool, *values: Any) -> tuple[object, ...]:
        question, said = event._data["prompt"], fields.read(values)
        if not said.base:
            raise refusal("Add a base model that writes text first, under Models.")
        found = chats_sheet.conversation(workbench, chat_now)
        chat_id = workbench.conversations.ask(
            found.id if found else None, said.base, said.speakers, question, said.config, system, raw=raw
        )
        return str(chat_id), talk_value(chat_id, said.speakers), gr.Button(interactive=True)

    given, outputs = [chat, *start, *fields.inputs], [chat, talk, stop]
    asked = talk.input(ask, given, outputs, trigger_mode="multiple", **QUIET_QUEUED)
    asked.success(None, None, None, js=_ASKED.format("true"), **QUIET)
    asked.failure(None, None, None, js=_ASKED.format("false"), **QUIET)
    halt = told(lambda chat_now: workbench.conversations.stop(int(chat_now or 0)))
    stop.click(halt, chat, None, **QUIET)


def bind_messages(
    shell: Shell,
    fields: ColumnFields,
    chat: gr.HTML,
    talk: gr.HTML,
    stop: gr.Button,
    row_outputs: Sequence[Any],
) -> None:
    """What the panel asks for: an answer anew, another question, a row of a data set, and the like."""
    workbench = shell.workbench

    @told
    def act(event: gr.EventData, chat_now: str, *values: Any) -> tuple[object, ...]:
        wanted, skipped = event._data, [gr.skip()] * len(row_outputs)
        if wanted["do"] in ("busy", "idle"):
            return gr.skip(), gr.skip(), gr.Button(interactive=wanted["do"] == "busy"), *skipped
        if wanted["do"] == "row":
            return *[gr.skip()] * 3, *row_sheet.filled(workbench, int(wanted["message"]))
        said = fields.read(values)
        chat_id = _done(workbench, wanted, int(chat_now or 0), said)
        return str(chat_id), talk_value(chat_id, said.speakers), gr.skip(), *skipped

    outputs = [chat, talk, stop, *row_outputs]
    talk.submit(act, [chat, *fields.inputs], outputs, trigger_mode="multiple", **QUIET_QUEUED)


def _done(workbench: Workbench, wanted: Mapping[str, Any], chat_id: int, said: Said) -> int:
    """Do what was asked of a message. The conversation that is shown from then on."""
    message, conversations = int(wanted["message"]), workbench.conversations
    if wanted["do"] == "again":
        conversations.again(message, said.config)
    elif wanted["do"] == "also":
        conversations.also(chat_id, [str(wanted["speaker"])], said.config)
    elif wanted["do"] == "adopt":
        conversations.adopt(message)
    elif wanted["do"] == "stop":
        conversations.stop(chat_id, message)
    elif wanted["do"] == "branch":
        return conversations.branch(message, str(wanted["prompt"]), said.speakers, said.config)
    return chat_id


def bind_sliding(
    shell: Shell, fields: ColumnFields, blend: gr.HTML, live: gr.Checkbox, chat: gr.HTML, talk: gr.HTML
) -> None:
    """The column of a mixture follows its sliders, and answers the last question again."""
    workbench = shell.workbench

    @told
    def slid(parts: str, follows: bool, chat_now: str, *values: Any) -> tuple[object, ...]:
        said = fields.read(values)
        found = blend_sheet.moved(workbench, parts, said.base, said.adapters) if follows else None
        if found is None:
            return gr.skip(), gr.skip()
        columns, old, new = found
        answered = workbench.conversations.last_of(int(chat_now or 0), old)
        if answered is not None:
            workbench.conversations.again(answered, said.config, new)
        names = [new if one == old else one for one in said.speakers]
        return columns, talk_value(int(chat_now or 0), names)

    given = [blend, live, chat, *fields.inputs]
    blend.submit(slid, given, [fields.who.adapters, talk], trigger_mode="always_last", **QUIET_QUEUED)
