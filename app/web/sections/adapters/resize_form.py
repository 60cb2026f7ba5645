"""A lower rank for the chosen adapter, in a sheet: first what it would lose, then kept."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.web.parts.choice import adapter_called
from app.web.parts.job_result import result_of_choice, starts_job
from app.web.parts.markup import facts, size
from app.web.parts.panes import bar, sheet
from app.web.parts.shell import Shell, refusal
from storage.tables import Job

_HELP = (
    "Cut to the directions that matter most (SVD of ΔW). Try says what that would lose, and keeps nothing."
)


def resize_sheet(shell: Shell, chosen: gr.HTML) -> None:
    """Lay it out and bind its handlers."""
    workbench = shell.workbench
    with sheet("resize-adapter", "Resize", _HELP):
        now = gr.HTML()
        rank = gr.Number(4, label="New rank", precision=0, minimum=1, interactive=True)
        evaluate = gr.Checkbox(
            True,
            label="Measure the validation loss",
            info="Before and after, on the rows that it was not trained on.",
        )
        name = gr.Textbox(value="", label="Name of the resized one", info="Needed to keep it.")
        with bar():
            attempt = gr.Button("Try", size="md", scale=0)
            keep = gr.Button("Resize and keep", variant="primary", size="md", scale=0)
        said, result = gr.HTML(), gr.HTML()
    of = gr.State("")  # whose rank is shown

    def start(adapter: str, wanted: float, measured: bool) -> Job:
        return workbench.adapters.resize(adapter, int(wanted or 0), evaluate=measured)

    def start_keeping(adapter: str, wanted: float, measured: bool, kept_as: str) -> Job:
        if not kept_as.strip():
            raise refusal("Give the resized adapter a name first.")
        return workbench.adapters.resize(adapter, int(wanted or 0), kept_as.strip(), evaluate=measured)

    def show(adapter: str, before: str, wanted: float | None) -> tuple[object, ...]:
        row = adapter_called(workbench.registry, adapter)
        if row is None:
            return "", gr.skip(), "", "", ""
        half = wanted if before == adapter else max(1, row.rank // 2)
        words, done = result_of_choice(
            workbench.registry,
            "resize_adapter",
            lambda job: job.arguments["rank"] == half,
            {"adapter.id": row.id},
            row.created,
        )
        about = facts([("Adapter", row.name), ("Rank now", row.rank), ("Size now", size(row.size_bytes))])
        return (
            about,
            gr.skip() if before == adapter else half,
            words,
            resized_html(done.result) if done else "",
            adapter,
        )

    shell.refresh(show, [chosen, of, rank], [now, rank, said, result, of])
    shell.also_after(rank.input)
    starts_job(shell, attempt.click, start, [chosen, rank, evaluate])
    starts_job(shell, keep.click, start_keeping, [chosen, rank, evaluate, name])


def resized_html(found: dict[str, Any]) -> str:
    """What resizing loses."""
    losses = found.get("losses")
    change = f"{losses[0]:.4f} → {losses[1]:.4f} ({losses[1] - losses[0]:+.4f})" if losses else "not measured"
    return facts(
        [
            ("Energy lost", f"{found['energy_lost']:.3%} of ‖ΔW‖²"),
            ("Validation loss", change),
            ("Size", size(found["bytes"])),
            ("Kept as", found.get("name", "not kept")),
        ],
        f"{found['adapter']} at rank {found['rank']}",
    )
