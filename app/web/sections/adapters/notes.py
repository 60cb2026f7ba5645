"""Name, tags and note of the chosen adapter, in a sheet."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.web.parts.panes import bar, close_sheet, sheet
from app.web.parts.shell import QUIET_QUEUED, WORKING, Shell, refusal, told
from storage.tables import Adapter


def notes_sheet(shell: Shell, chosen: gr.HTML, opened: gr.Button) -> None:
    """Lay it out; `opened` opens it and fills it. What is not changed in it is left as it is."""
    workbench = shell.workbench
    with sheet("edit-adapter", "Edit"):
        name = gr.Textbox(value="", label="Name")
        tags = gr.Textbox(value="", label="Tags", info="With a comma between them.")
        note = gr.Textbox(value="", label="Note", lines=4)
        with bar():
            save = gr.Button("Save", variant="primary", size="md", scale=0)
    filled = gr.State({})

    @told
    def fill(now: str) -> tuple[object, ...]:
        row = workbench.registry.find(Adapter, now)
        values = {"name": row.name, "tags": row.tags, "note": row.note}
        return {"of": now, **values}, *values.values()

    opened.click(fill, chosen, [filled, name, tags, note], **QUIET_QUEUED)

    @told
    def keep(now: str, before: dict[str, Any], new: str, new_tags: str, new_note: str) -> str:
        row = workbench.registry.find(Adapter, now)
        if before.get("of") != now:
            raise refusal(
                f"The form does not show {now} yet. Nothing was changed; look at it and save again."
            )
        given = {"name": new, "tags": new_tags, "note": new_note}
        changed = {key: value for key, value in given.items() if value != before[key]}
        return workbench.registry.adapters.change(row.id or 0, **changed).name if changed else now

    saved = save.click(keep, [chosen, filled, name, tags, note], chosen, **WORKING)
    close_sheet(saved, "edit-adapter")
    shell.soon(saved)
