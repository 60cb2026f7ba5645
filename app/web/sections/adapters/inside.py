"""What is inside the chosen adapter: heat maps by layer, and of what it shares with another."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.chart import chart, drawn
from app.web.parts.choice import Asked, adapter_called, adapters_like, choice
from app.web.parts.job_result import last_result, starts_job
from app.web.parts.markup import day, empty
from app.web.parts.panes import bar
from app.web.parts.shell import FOLLOWING, Shell, told
from app.web.sections.adapters.anatomy_charts import MEASURES, anatomy_map, similarity_grid, similarity_map
from storage.tables import Job

_NOTHING = (
    "Look inside: how much it changes each layer, and how much of its rank it uses. Beside another adapter "
    "of its base, also how far the two change the same."
)


def inside_panel(shell: Shell, chosen: gr.HTML) -> None:
    """Lay it out and bind its handlers. What was found stays, and is there after a reload."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        measure = gr.Dropdown(
            list(MEASURES), value=next(iter(MEASURES)), label="Show", interactive=True, scale=1
        )
        other = choice(
            "compare-adapter",
            "Compare its directions with",
            lambda asked: _alike(workbench, asked),
            placeholder="nothing",
            optional=True,
        )
    with bar():
        look = gr.Button("Look inside", variant="primary", size="md", scale=0)
    sentence = gr.HTML()
    layers = chart("What it changes, by layer and module")
    shared = chart("Directions that both share, by layer and module")
    grid = chart("Directions that both share, by how many are counted")

    def start(name: str, beside: str) -> Job:
        return workbench.adapters.inspect(name, "" if beside == name else beside)

    starts_job(shell, look.click, start, [chosen, other])

    def show(name: str, how: str) -> tuple[object, ...]:
        said, job = _last_look(workbench, name)
        if job is None:
            return said or empty(_NOTHING), "", "", ""
        similarity = job.result.get("similarity") or {}
        return (
            f"{said}{_words(job)}",
            drawn(anatomy_map(job.result["modules"], how)),
            drawn(similarity_map(similarity) if similarity else None),
            drawn(similarity_grid(similarity) if similarity else None),
        )

    shell.refresh(show, [chosen, measure], [sentence, layers, shared, grid])

    @told
    def redraw(name: str, how: str) -> str:
        _, job = _last_look(workbench, name)
        return drawn(anatomy_map(job.result["modules"], how) if job else None)

    measure.input(redraw, [chosen, measure], layers, **FOLLOWING)


def _last_look(workbench: Workbench, name: str) -> tuple[str, Job | None]:
    row = adapter_called(workbench.registry, name)
    if row is None:
        return "", None
    return last_result(workbench.registry, "inspect_adapter", {"adapter.id": row.id}, row.created)


def _words(job: Job) -> str:
    found = job.result
    similarity: dict[str, Any] = found.get("similarity") or {}
    words = f"<p class='lead'>{escape(found['sentence'])} <span class='quiet'>{day(job.ended)}</span></p>"
    if not similarity:
        return words
    mean = sum(phi[-1][-1] for phi in similarity.values()) / len(similarity)
    shares = (
        f"Of its directions {mean:.0%} lie in those of {escape(found['other'])}; by chance hardly any would."
    )
    return f"{words}<p class='hint'>{shares}</p>"


def _alike(workbench: Workbench, asked: Asked) -> list[tuple[str, str]]:
    """Other adapters of the chosen one's base."""
    row = adapter_called(workbench.registry, asked.name)
    if row is None:
        return []
    found = adapters_like(workbench.registry, asked.words, row.base_fingerprint)
    return [one for one in found if one[0] != row.name]
