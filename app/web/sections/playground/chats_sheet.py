"""The conversations that were held: found, opened, renamed, removed, taken along as files."""

from __future__ import annotations

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import day
from app.web.parts.panes import bar, sheet
from app.web.parts.picker import Query, Row, Rows, picker
from app.web.parts.shell import FOLLOWING, QUIET, WORKING, Shell, told
from storage.errors import NotFound
from storage.tables import Chat

KEY = "chats"


def chats_sheet(shell: Shell) -> gr.HTML:
    """Lay it out. Returns the list, whose value is the conversation that is shown: its id, or empty for a new
    one.
    """
    workbench = shell.workbench
    with sheet(KEY, "Conversations", "Each is kept as it is held, also while this page is closed."):
        chosen = picker(
            shell,
            "playground",
            "Conversations",
            lambda query: _rows(workbench, query),
            "Nothing was said yet.",
            search="Search what was said",
            opens_first=False,
        )
        files = gr.HTML()
        with bar():
            title = gr.Textbox(value="", label="Name", scale=2)
            rename = gr.Button("Rename", size="md", scale=0)
            ask = gr.Button("Delete …", variant="stop", size="md", scale=0)
        with bar() as question:
            question.visible = False
            gr.HTML("<p class='lead'>Delete this conversation? It cannot be brought back.</p>")
            yes = gr.Button("Delete it", variant="stop", size="md", scale=0)
            no = gr.Button("Keep it", size="md", scale=0)
    ask.click(lambda chat: gr.Row(visible=bool(chat)), chosen, question, **QUIET)
    no.click(lambda: gr.Row(visible=False), None, question, **QUIET)
    gone = yes.click(
        told(lambda chat: _delete(workbench, chat)), chosen, [chosen, question, files, title], **WORKING
    )
    shell.soon(gone)

    def show(chat: str) -> tuple[str, str]:
        found = conversation(workbench, chat)
        return (_files_html(found), found.title) if found else ("", "")

    chosen.submit(show, chosen, [files, title], **FOLLOWING)

    @told
    def renamed(chat: str, new: str) -> None:
        workbench.registry.chats.change(int(chat or 0), title=new.strip())

    done = rename.click(renamed, [chosen, title], None, **WORKING)
    # Conversations are not counted among what changes the page: the list is told by itself.
    done.success(None, None, None, js="() => dispatchEvent(new CustomEvent('workbench-changed'))", **QUIET)
    return chosen


def conversation(workbench: Workbench, chat: str) -> Chat | None:
    """The conversation of this id, if it is still there."""
    try:
        return workbench.registry.get(Chat, int(chat)) if chat.isdecimal() else None
    except NotFound:
        return None


def _rows(workbench: Workbench, query: Query) -> Rows:
    found, total = workbench.conversations.find(query.words, query.start, query.most)
    rows = [
        Row(str(chat.id), title or "–", f"{chat.base_name} · {day(chat.changed)}") for chat, title in found
    ]
    return Rows(rows, total)


def _delete(workbench: Workbench, chat: str) -> tuple[object, ...]:
    workbench.conversations.stop(int(chat or 0))
    workbench.registry.chats.remove(int(chat or 0))
    return "", gr.Row(visible=False), "", ""


def _files_html(chat: Chat) -> str:
    links = [
        f"<a class='link-button' href='/workbench/chats/{chat.id}.{kind}' download>{words}</a>"
        for kind, words in (("md", "As Markdown"), ("jsonl", "As JSONL"))
    ]
    return f"<div class='action-bar'>{''.join(links)}</div>"
