"""Playground: the base and up to four adapters answer one prompt, side by side in one batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from app.service.chats import MAX_SIDE_BY_SIDE, Asked, history
from app.service.usual import usual_base
from app.service.workbench import Workbench
from app.shared.bases import base_for, require_writing_base
from app.web.parts.options_form import option_fields
from app.web.parts.panes import opener, sheet
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
)
from app.web.sections.playground.classify_sheet import KEY, asked_for, classify_sheet
from app.web.sections.playground.judge_sheet import KEY as JUDGE
from app.web.sections.playground.judge_sheet import judge_sheet
from core.base_model.describe import writes_text
from core.errors import WrongBase
from core.generate.config import GenerationConfig
from storage.errors import NotFound
from storage.tables import Adapter, Base, Chat

TAB, TITLE = "playground", "Playground"
SIDE, SINGLE = "Side by side", "One at a time"
_SHOW_SECONDS = 0.1


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    chat_id, kept = shell.kept["chat"], shell.kept["playground"]
    asking = gr.State(0)
    with gr.Row(elem_classes="who-answers"):
        base = gr.Dropdown([], label="Base model", interactive=True, scale=2)
        mode = gr.Radio([SIDE, SINGLE], value=SIDE, label="Mode", scale=0, min_width=260)
        adapters = gr.Dropdown(
            [],
            label="Adapters (up to four)",
            multiselect=True,
            max_choices=MAX_SIDE_BY_SIDE - 1,
            interactive=True,
            scale=4,
        )
        speaker = gr.Dropdown([], label="Who answers", interactive=True, visible=False, scale=4)
        with_base = gr.Checkbox(True, label="Plain base too", scale=0, min_width=130)
        opener("sampling", "Sampling")
        opener(KEY, "Classify")
        judging = opener(JUDGE, "Judge")
        clear = gr.Button("New chat", size="md", scale=0, min_width=0)
    warned = gr.HTML()
    with gr.Row(elem_classes="chats grows"):
        boxes = [
            gr.Chatbot(
                label="–",
                visible=index == 0,
                height="100%",
                layout="bubble",
                feedback_options=None,
                buttons=["copy"],
                allow_tags=False,
            )
            for index in range(MAX_SIDE_BY_SIDE)
        ]
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
    sheet_outputs = classify_sheet(shell)
    judge_sheet(shell, judging, [base, adapters], sampling)

    who: dict[str, Any] = {"mode": mode, "adapters": adapters, "speaker": speaker, "with_base": with_base}
    fields: list[Any] = [base, adapters, speaker, mode, with_base]

    def show(
        base_now: str | None, adapters_now: list[str] | None, speaker_now: str | None, before: str
    ) -> tuple[object, ...]:
        """What there is to choose from; on a page that was loaded anew what was chosen before."""
        shown, mode_now, with_base_now = (base_now, adapters_now, speaker_now), gr.skip(), gr.skip()
        if not base_now and before:
            base_now, adapters_now, speaker_now, mode_now, with_base_now = json.loads(before)
        names = [row.name for row in workbench.registry.all(Base) if writes_text(row.architecture)]
        usual = usual_base(workbench)
        chosen = next((one for one in (base_now, usual, *names) if one in names), None)
        fitting = adapters_for(workbench, chosen)
        return (
            offered(names, chosen, shown[0]),
            choose_many(fitting, adapters_now, fitting[:1], shown[1]),
            choose_from([*fitting, PLAIN], speaker_now, shown=shown[2]),
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
    _bind_wishes(shell, [base, adapters, mode, with_base], sheet_outputs)

    def warn(base_now: str, mode_now: str, adapters_now: list[str] | None, speaker_now: str | None) -> str:
        names = [one for one in speakers_of(mode_now, adapters_now or [], speaker_now or PLAIN, False) if one]
        return warnings_html(workbench, base_now, names)

    seen_by: list[Any] = [base, mode, adapters, speaker]
    gr.on([one.change for one in seen_by], warn, seen_by, warned, trigger_mode="always_last", **QUIET)

    def show_boxes(
        mode: str, adapters: list[str], speaker: str, with_base: bool, chat_id: int
    ) -> list[object]:
        names = speakers_of(mode, adapters, speaker, with_base)
        return boxes_for(names, stored_histories(workbench, chat_id, names))

    choices = [mode.change, adapters.change, speaker.change, with_base.change, shell.page.load]
    gr.on(choices, show_boxes, None, boxes, inputs_kwargs={**who, "chat_id": chat_id}, **QUIET)

    def show_mode(mode: str) -> tuple[object, ...]:
        side = mode == SIDE
        return gr.Dropdown(visible=side), gr.Dropdown(visible=not side), gr.Checkbox(visible=side)

    mode.change(show_mode, mode, [adapters, speaker, with_base], **QUIET)

    under_way: dict[int, Asked] = {}  # by ticket: what a Stop button needs to reach

    @told
    def talk(
        base: str,
        mode: str,
        adapters: list[str],
        speaker: str,
        with_base: bool,
        prompt: str,
        chat_id: int,
        **values: Any,
    ) -> Iterator[list[object]]:
        if not base:
            raise refusal("Add a base model that writes text first, under Models.")
        names = speakers_of(mode, adapters, speaker, with_base)
        asked = workbench.chats.ask(
            _existing(workbench, chat_id), base, names, prompt, GenerationConfig.parse(values)
        )
        ticket = id(asked)
        under_way[ticket] = asked
        try:
            yield from follow(workbench, asked, names, ticket)
        finally:
            under_way.pop(ticket, None)
        if asked.error:
            raise refusal(asked.error)

    outputs = [prompt, chat_id, asking, *boxes]
    given = {"base": base, **who, "prompt": prompt, "chat_id": chat_id, **sampling}
    gr.on(
        [send.click, prompt.submit],
        talk,
        None,
        outputs,
        inputs_kwargs=given,
        concurrency_id="generate",
        concurrency_limit=4,
        **QUIET_QUEUED,
    )

    def halt(ticket: int) -> None:
        if ticket in under_way:
            under_way[ticket].cancel()

    stop.click(halt, asking, **QUIET)
    asking.change(lambda ticket: gr.Button(interactive=bool(ticket)), asking, stop, **QUIET)

    def renew(mode: str, adapters: list[str], speaker: str, with_base: bool) -> list[object]:
        names = speakers_of(mode, adapters, speaker, with_base)
        return [0, *boxes_for(names, [[] for _ in names])]

    clear.click(renew, None, [chat_id, *boxes], inputs_kwargs=who, **QUIET)


PLAIN = "Plain base"


def _bind_wishes(shell: Shell, outputs: list[Any], sheet_outputs: list[Any]) -> None:
    """Another section wants to try an adapter, or to chat with a base."""
    workbench = shell.workbench

    @told
    def with_adapter(name: str) -> tuple[object, ...]:
        adapter = workbench.registry.find(Adapter, name)
        if workbench.classifiers.labels(adapter) is not None:
            return *[gr.skip()] * len(outputs), *asked_for(workbench, name)
        at_home = base_for(workbench.registry, adapter).name
        answers = gr.Dropdown(choices=adapters_for(workbench, at_home), value=[name])
        return at_home, answers, SIDE, True, *[gr.skip()] * len(sheet_outputs)

    @told
    def with_model(name: str) -> tuple[object, ...]:
        require_writing_base(found := workbench.registry.find(Base, name))
        model = found.name
        return model, gr.Dropdown(choices=adapters_for(workbench, model), value=[]), SIDE, True

    for parameter, handler, into in (
        ("adapter", with_adapter, [*outputs, *sheet_outputs]),
        ("base", with_model, outputs),
    ):
        wished = wish(TAB, parameter)
        wished.submit(handler, wished, into, **WORKING)


def adapters_for(workbench: Workbench, base: str | None) -> list[str]:
    """Names of the adapters that answer on this base, newest first."""
    if base is None:
        return []
    fingerprint = workbench.registry.find(Base, base).fingerprint
    rows = [row for row in workbench.registry.all(Adapter) if row.base_fingerprint == fingerprint]
    return [row.name for row in rows if workbench.classifiers.labels(row) is None]


def warnings_html(workbench: Workbench, base: str | None, names: list[str]) -> str:
    """What will go wrong when these adapters answer on this base; empty if nothing."""
    try:
        found = workbench.chats.warnings(base, names) if base else []
    except (NotFound, WrongBase) as error:
        found = [str(error)]
    return "".join(f"<p class='fault' role='alert'>{escape(one)}</p>" for one in found)


def speakers_of(
    mode: str, adapters: list[str] | None, speaker: str | None, with_base: bool
) -> list[str | None]:
    """Who answers: names of adapters, None for the plain base."""
    if mode == SINGLE:
        return [None if speaker in (PLAIN, None) else speaker]
    chosen: list[str | None] = list(adapters or [])
    return [None, *chosen] if with_base or not chosen else chosen


def boxes_for(names: list[str | None], conversations: list[list[dict[str, str]]]) -> list[object]:
    """One visible chat for each speaker, the others hidden."""
    shown = [
        gr.Chatbot(value=messages, label=name or PLAIN, visible=True)  # type: ignore[arg-type]
        for name, messages in zip(names, conversations, strict=True)
    ]
    return [*shown, *[gr.Chatbot(visible=False) for _ in range(MAX_SIDE_BY_SIDE - len(shown))]]


def stored_histories(
    workbench: Workbench, chat_id: int, names: list[str | None]
) -> list[list[dict[str, str]]]:
    """What each speaker has said in this conversation so far."""
    said = workbench.registry.chats.messages(chat_id) if chat_id else []
    return [history(said, name) for name in names]


def _existing(workbench: Workbench, chat_id: int) -> int | None:
    """The remembered conversation, unless its home folder is another one now."""
    try:
        return workbench.registry.get(Chat, chat_id).id if chat_id else None
    except NotFound:
        return None


def follow(
    workbench: Workbench, asked: Asked, names: list[str | None], ticket: int
) -> Iterator[list[object]]:
    """Updates for the page while the answers grow.

    The answers are collected elsewhere, whoever listens here.
    """
    before = stored_histories(workbench, asked.chat_id, names)
    yield ["", asked.chat_id, ticket, *boxes_for(names, _with(before, asked))]
    rest = [gr.skip()] * (MAX_SIDE_BY_SIDE - len(names))
    while not asked.done.wait(_SHOW_SECONDS):
        yield [gr.skip(), gr.skip(), gr.skip(), *_with(before, asked), *rest]
    yield [asked.prompt if asked.error else gr.skip(), gr.skip(), 0, *_with(before, asked), *rest]


def _with(before: list[list[dict[str, str]]], asked: Asked) -> list[list[dict[str, str]]]:
    question = {"role": "user", "content": asked.prompt}
    endings = {"length": " …", "stopped": " ■"}
    return [
        [*messages, question, {"role": "assistant", "content": (text + endings.get(finish, "")) or "…"}]
        for messages, text, finish in zip(before, asked.answers, asked.finishes, strict=True)
    ]
