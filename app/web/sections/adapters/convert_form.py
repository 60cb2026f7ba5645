"""The chosen adapter of another kind as a plain LoRA, in a sheet."""

from __future__ import annotations

import gradio as gr

from app.web.parts.choice import adapter_called
from app.web.parts.job_result import last_result, starts_job
from app.web.parts.markup import facts
from app.web.parts.panes import bar, sheet
from app.web.parts.shell import Shell, refusal
from storage.tables import Job

_HELP = "Writes it as a LoRA that computes the same, so that it loads anywhere. This one stays as it is."


def convert_sheet(shell: Shell, chosen: gr.HTML) -> None:
    """Lay it out and bind its handlers."""
    workbench = shell.workbench
    with sheet("convert-adapter", "Convert to LoRA", _HELP):
        now = gr.HTML()
        name = gr.Textbox(value="", label="Name of the LoRA")
        with bar():
            keep = gr.Button("Convert and keep", variant="primary", size="md", scale=0)
        said = gr.HTML()

    def start(adapter: str, kept_as: str) -> Job:
        if not kept_as.strip():
            raise refusal("Give the LoRA a name first.")
        return workbench.adapters.convert(adapter, kept_as.strip())

    def show(adapter: str) -> tuple[str, str]:
        row = adapter_called(workbench.registry, adapter)
        if row is None or not workbench.adapters.can_be_lora(row):
            return "", ""
        words, done = last_result(workbench.registry, "convert_adapter", {"adapter.id": row.id}, row.created)
        about = facts([("Adapter", row.name), ("Rank now", row.rank)])
        return about, words or (facts([("Kept as", done.result["name"])], row.name) if done else "")

    shell.refresh(show, [chosen], [now, said])
    starts_job(shell, keep.click, start, [chosen, name])
