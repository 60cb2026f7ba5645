"""The editor of a row: its turns as fields, kept as a new version of the data set."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from app.web.parts.panes import bar
from app.web.parts.scripts import script
from app.web.parts.shell import WORKING, Shell, refusal, told
from core.data.dataset_file import StoredRow
from storage.tables import Dataset

_ROLES = ("system", "user", "assistant", "tool", "text")


def editor() -> gr.HTML:
    """Fields for the turns. Its value is JSON: the data set's name and version, the row's index, the roles
    there are, and the row's turns as [role, text].
    """
    return gr.HTML(
        value="",
        label="Turns",
        html_template="<div class='turns-slot'></div>",
        js_on_load=script("turns.js"),
        elem_id="turns",
    )


def editor_value(row: Dataset, index: int, stored: StoredRow) -> str:
    """A row as the editor takes it."""
    said = [[one["role"], one["content"]] for one in stored.example.messages]
    turns = said or [["text", stored.example.text or stored.raw]]
    about = {"name": row.name, "version": row.version, "row": index}
    return json.dumps(about | {"roles": _ROLES, "turns": turns})


def edited_row(value: str) -> int | None:
    """The index of the row that the editor holds."""
    return int(json.loads(value)["row"]) if value else None


def edit_tab(shell: Shell, turns: gr.HTML) -> None:
    """Lay out what can be done with the row in the editor, and bind it."""
    datasets = shell.workbench.datasets
    with bar():
        save = gr.Button("Save as a new version", variant="primary", size="md", scale=0)
        append = gr.Button("Add as a new row", size="md", scale=0)
        leave_out = gr.Button("Leave this row out", size="md", scale=0)
        bring_back = gr.Button("Bring this row back", size="md", scale=0)

    def saved(value: str) -> None:
        about = _held(value)
        datasets.edit(about["name"], about["row"], _pairs(about))

    def appended(value: str) -> None:
        about = _held(value)
        datasets.append(about["name"], _pairs(about))

    def left_out(value: str) -> None:
        about = _held(value)
        datasets.leave_out(about["name"], rows=[about["row"]])

    def brought_back(value: str) -> None:
        about = _held(value)
        datasets.bring_back(about["name"], [about["row"]])

    for button, handler in (
        (save, saved),
        (append, appended),
        (leave_out, left_out),
        (bring_back, brought_back),
    ):
        shell.soon(button.click(told(handler), turns, None, concurrency_id="data-change", **WORKING))


def _held(value: str) -> dict[str, Any]:
    """What the editor holds."""
    if not value:
        raise refusal("Choose a row first.")
    about: dict[str, Any] = json.loads(value)
    return about


def _pairs(about: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(role), str(text)) for role, text in about["turns"]]
