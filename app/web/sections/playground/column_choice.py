"""Which columns there are: what can be chosen, what was chosen before, and what a conversation or another
section brings with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.shared.bases import base_for, require_writing_base
from app.shared.speakers import PLAIN, PLAIN_BASE
from app.web.parts.routes import wish
from app.web.parts.shell import (
    FOLLOWING,
    QUIET,
    WORKING,
    Shell,
    choose_from,
    choose_many,
    offered,
    told,
    values_of,
)
from app.web.sections.playground import chats_sheet, classify_sheet
from app.web.sections.playground.column_fields import WhoAnswers
from app.web.sections.playground.talk import talk_value
from app.web.sections.playground.who_answers import (
    SIDE,
    adapters_for,
    base_to_begin_with,
    columns_choices,
    writing_bases,
)
from core.errors import WrongBase
from storage.errors import NotFound
from storage.tables import Adapter, Base


def bind_choice(shell: Shell, who: WhoAnswers, kept: gr.BrowserState) -> None:
    """Who there is to choose from, and what was chosen before this page was loaded."""
    workbench = shell.workbench

    def show(
        base_now: str | None, adapters_now: list[str] | None, speaker_now: str | None, before: str
    ) -> tuple[object, ...]:
        shown, mode_now, with_base_now = (base_now, adapters_now, speaker_now), gr.skip(), gr.skip()
        if not base_now and before:
            base_now, adapters_now, speaker_now, mode_now, with_base_now = json.loads(before)
        names, chosen = writing_bases(workbench), base_to_begin_with(workbench, base_now)
        fitting, columns = adapters_for(workbench, chosen), columns_choices(workbench, chosen, adapters_now)
        return (
            offered(names, chosen, shown[0]),
            choose_many(columns, adapters_now, fitting[:1], shown[1]),
            choose_from([*fitting, PLAIN_BASE], speaker_now, shown=shown[2]),
            mode_now,
            with_base_now,
        )

    shell.refresh(show, [who.base, who.adapters, who.speaker, kept], who.all)

    def show_of(base_now: str, adapters_now: list[str], speaker_now: str) -> tuple[object, ...]:
        return show(base_now, adapters_now, speaker_now, "")[1:3]

    who.base.input(show_of, [who.base, who.adapters, who.speaker], [who.adapters, who.speaker], **FOLLOWING)
    gr.on(
        [one.change for one in who.all],
        None,
        [*who.all, kept],
        kept,
        js="(...chosen) => chosen[0] ? JSON.stringify(chosen.slice(0, 5)) : chosen[5]",
        show_progress="hidden",
    )

    def show_mode(mode: str) -> tuple[object, ...]:
        side = mode == SIDE
        return gr.Dropdown(visible=side), gr.Dropdown(visible=not side), gr.Checkbox(visible=side)

    who.mode.change(show_mode, who.mode, [who.adapters, who.speaker, who.with_base], **QUIET)


def bind_columns(
    workbench: Workbench,
    who: WhoAnswers,
    talk: gr.HTML,
    chat: gr.HTML,
    warned: gr.HTML,
    kept: gr.BrowserState,
) -> None:
    """The columns follow who is chosen, and a conversation that is opened brings its own."""

    def show(chat_now: str, *values: Any) -> tuple[str, str]:
        names = who.speakers(values)
        return talk_value(int(chat_now or 0), names), warnings_html(workbench, values[0], names)

    # On this one path alone: of two answers on their way the older may come last.
    changes = [one.change for one in [*who.all, chat]]
    gr.on(changes, show, [chat, *who.all], [talk, warned], **FOLLOWING)

    def opened(chat_now: str, before: str, base_now: str | None) -> tuple[object, ...]:
        if not base_now:  # what there is to choose from is on its way, and would come over it: see at_first
            return (gr.skip(),) * len(who.all)
        found = chats_sheet.conversation(workbench, chat_now)
        turns = workbench.conversations.turns(int(chat_now)) if found else []
        if found is None or not turns or found.base_name not in workbench.registry.names(Base):
            return (gr.skip(),) * len(who.all)
        said = list(turns[-1].answers)
        choices = columns_choices(workbench, found.base_name, [one for one in said if one])
        columns = [one for one in said if one == PLAIN or one in values_of(choices)]
        # When a page is loaded again, this may come before what was chosen before is shown.
        mode = json.loads(before)[3] if before else gr.skip()
        return _chosen(workbench, found.base_name, choices, columns, mode)

    once = gr.State(False)

    def at_first(was: bool, *given: Any) -> tuple[object, ...]:
        """A base is there for the first time: the conversation in the address may have waited for it."""
        return True, *((gr.skip(),) * len(who.all) if was else opened(*given))

    given: list[Any] = [chat, kept, who.base]
    chat.submit(opened, given, who.all, **FOLLOWING)
    who.base.change(at_first, [once, *given], [once, *who.all], **FOLLOWING)


def _chosen(
    workbench: Workbench,
    base: str,
    choices: Sequence[tuple[str, str]],
    columns: Sequence[str],
    mode: object,
) -> tuple[object, ...]:
    """The fields of who answers, for these columns; mode: how one alone is shown."""
    alone = (columns[0] if columns else PLAIN) or PLAIN_BASE
    return (
        _of_bases(workbench, base),
        gr.Dropdown(choices=list(choices), value=[one for one in columns if one != PLAIN]),
        gr.Dropdown(choices=[*adapters_for(workbench, base), PLAIN_BASE], value=alone),
        mode if len(columns) == 1 else SIDE,
        PLAIN in columns,
    )


def bind_wishes(
    shell: Shell, section: str, who: WhoAnswers, chat: gr.HTML, sheet_outputs: Sequence[Any]
) -> None:
    """Another section wants to try an adapter, or to chat with a base: in a new conversation."""
    workbench, outputs = shell.workbench, [who.base, who.adapters, who.mode, who.with_base, chat]

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
        wished = wish(section, parameter)
        wished.submit(handler, wished, into, **WORKING)


def _of_bases(workbench: Workbench, chosen: str) -> gr.Dropdown:
    """The bases that write text, one of them chosen."""
    return gr.Dropdown(choices=writing_bases(workbench), value=chosen)


def warnings_html(workbench: Workbench, base: str | None, names: Sequence[str]) -> str:
    """What will go wrong when these answer on this base, and how they are asked; empty if there is nothing to
    say.
    """
    speakers, hints = [one for one in names if one], []
    try:
        found = workbench.chats.warnings(base, speakers) if base else []
        hints = workbench.chats.trained_with(speakers)
    except (NotFound, WrongBase) as error:
        found = [str(error)]
    faults = "".join(f"<p class='fault' role='alert'>{escape(one)}</p>" for one in found)
    return faults + "".join(f"<p class='hint'>{escape(one)}</p>" for one in hints)
