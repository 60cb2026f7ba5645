"""The form of a prompt set: writing one, taking prompts from elsewhere, and keeping it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from app.service.prompt_texts import parse_prompts, prompts_text
from app.service.workbench import Workbench
from app.web.parts.panes import bar, opener
from app.web.parts.shell import QUIET, WORKING, Shell, choose_from, inform, refusal, told
from storage.tables import Dataset

NEW = "New set"
_HOW = (
    'One prompt a line. What is more than a line of text is a line of JSON: {"prompt": "…", "system": "…"}, '
    'or {"messages": […]}.'
)


@dataclass(frozen=True)
class SetForm:
    """Its fields, and the buttons that are bound elsewhere."""

    chosen: gr.Dropdown
    name: gr.Textbox
    text: gr.Textbox
    answer: gr.Button
    remove: gr.Button


def set_form(shell: Shell, base: gr.Dropdown, columns: gr.Dropdown) -> SetForm:
    """Lay it out and bind what fills and keeps a set. base and columns say who would answer."""
    workbench = shell.workbench
    with gr.Row(elem_classes="judge-who"):
        name = gr.Textbox(label="Name of the set")
        chosen = gr.Dropdown([NEW], value=NEW, label="Kept sets", interactive=True, elem_id="prompt-set")
    text = gr.Textbox(label="Prompts", info=_HOW, lines=6, max_lines=16, elem_id="prompt-lines")
    _taking(shell, text)
    who = gr.HTML()
    with bar():
        keep = gr.Button("Keep the set", size="md", scale=0)
        answer = gr.Button("Answer all of them", variant="primary", size="md", scale=0)
        remove = opener("remove-prompts", "Remove the set …", variant="stop")

    def show(now: str, base_now: str | None, columns_now: list[str]) -> list[object]:
        return [choose_from(set_names(workbench), now, NEW), who_html(base_now, columns_now)]

    shell.refresh(show, [chosen, base, columns], [chosen, who])
    gr.on([base.change, columns.change], who_html, [base, columns], who, **QUIET)

    @told
    def fill(event: gr.SelectData) -> tuple[object, ...]:
        if event.value == NEW:
            return "", ""
        return event.value, prompts_text(workbench.prompts.find(event.value).prompts)

    # An input event comes when it is left, too.
    chosen.select(fill, None, [name, text], trigger_mode="multiple", **QUIET)

    @told
    def store(now: str, wanted: str, prompts: str) -> object:
        found = kept(workbench, now, wanted, prompts)
        inform(f"{found} is kept.", "Prompt set")
        return sets_update(workbench, found)

    keep.click(store, [chosen, name, text], chosen, **WORKING)
    return SetForm(chosen, name, text, answer, remove)


def _taking(shell: Shell, text: gr.Textbox) -> None:
    """What takes prompts from a file or a data set, behind those that are there."""
    workbench = shell.workbench
    with gr.Accordion("Take prompts from a file or a data set", open=False):
        file = gr.File(
            label="A file of text, JSON lines or JSON", file_types=[".txt", ".jsonl", ".json"], height=96
        )
        with gr.Row(elem_classes="asked"):
            data = gr.Dropdown([], label="Data set", interactive=True, scale=3)
            rows = gr.Number(50, label="Rows", precision=0, minimum=1, maximum=2000, scale=1)
            take = gr.Button("Take its prompts", size="md", scale=0)

    def show(now: str | None) -> object:
        return choose_from([row.name for row in workbench.registry.all(Dataset)], now)

    shell.refresh(show, [data], [data])

    @told
    def from_file(path: str | None, before: str) -> object:
        return _behind(before, prompts_text(workbench.prompts.in_file(Path(path)))) if path else gr.skip()

    file.upload(from_file, [file, text], text, **WORKING)

    @told
    def from_data(wanted: str | None, count: int | None, before: str) -> str:
        if not wanted:
            raise refusal("Choose a data set first; there is none until one was added.")
        return _behind(before, prompts_text(workbench.prompts.in_data(wanted, int(count or 1))))

    take.click(from_data, [data, rows, text], text, **WORKING)


def kept(workbench: Workbench, chosen: str, name: str, text: str) -> str:
    """The name of the set that is kept as it stands in the form. Raises InvalidInput, NameTaken."""
    return workbench.prompts.keep(name, parse_prompts(text), "" if chosen == NEW else chosen).name


def set_names(workbench: Workbench) -> list[str]:
    """What can be chosen: a new set, and those that are kept."""
    return [NEW, *(one.name for one in workbench.prompts.all())]


def sets_update(workbench: Workbench, chosen: str) -> gr.Dropdown:
    """The choice of sets as it is now, one of them chosen."""
    return gr.Dropdown(choices=set_names(workbench), value=chosen)


def who_html(base: str | None, columns: list[str] | None) -> str:
    """Who will answer, as it was chosen where judging begins."""
    if not base or not columns:
        return "<p class='hint'>Choose who answers under Judge.</p>"
    names = ", ".join(escape(one) for one in columns)
    return f"<p class='hint'>Answered on {escape(base)} by {names}, as chosen under Judge.</p>"


def _behind(before: str, more: str) -> str:
    return f"{before.rstrip()}\n{more}".lstrip("\n")
