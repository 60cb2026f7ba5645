"""What can be done with a chosen adapter: note, look inside, verify, resize."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.catalogue import Catalogue
from app.web.parts.job_result import job_button
from app.web.parts.markup import facts, size
from app.web.parts.shell import QUIET, QUIET_QUEUED, WORKING, Shell, choose_from, refusal, told
from app.web.sections.adapters.anatomy_charts import MEASURES, anatomy_map, similarity_grid, similarity_map
from storage.errors import NotFound
from storage.tables import Adapter, Job


def chosen_adapter(workbench: Workbench, name: str) -> Adapter:
    """The adapter that was clicked. Raises a refusal if there is none."""
    if not name:
        raise refusal("Choose an adapter in the table first.")
    return workbench.registry.find(Adapter, name)


def notes_form(shell: Shell, catalogue: Catalogue) -> None:
    """Name, star, tags and note of the chosen adapter. What is not changed in the form is left as it is."""
    workbench, chosen = shell.workbench, catalogue.chosen
    with gr.Row(equal_height=True, elem_classes="asked"):
        name = gr.Textbox(value="", label="New name", placeholder="as it is", scale=2)
        tags = gr.Textbox(value="", label="Tags", placeholder="with a comma between them", scale=2)
        note = gr.Textbox(value="", label="Note", scale=3)
        star = gr.Checkbox(False, label="Star", scale=0, min_width=90)
        save = gr.Button("Save", scale=0, min_width=90)
    filled = gr.State(_noted("", None))

    def show(now: str) -> tuple[object, ...]:
        try:
            row = workbench.registry.find(Adapter, now) if now else None
        except NotFound:
            row = None
        values = _noted(now, row)
        return values, "", values["tags"], values["note"], values["starred"]

    chosen.change(show, chosen, [filled, name, tags, note, star], **QUIET_QUEUED)

    def keep(
        now: str, before: dict[str, Any], new: str, new_tags: str, new_note: str, starred: bool
    ) -> tuple[object, ...]:
        row = chosen_adapter(workbench, now)
        if before["of"] != now:
            raise refusal(
                f"The form does not show {now} yet. Nothing was changed; look at it and save again."
            )
        given: dict[str, Any] = {"tags": new_tags, "note": new_note, "starred": starred}
        changed = {key: value for key, value in given.items() if value != before[key]}
        if new.strip():
            changed["name"] = new
        kept = workbench.registry.adapters.change(row.id or 0, **changed)
        return kept.name, before | given | {"of": kept.name}, ""

    saved = save.click(
        told(keep), [chosen, filled, name, tags, note, star], [chosen, filled, name], **WORKING
    )
    catalogue.follow(saved)


def _noted(name: str, row: Adapter | None) -> dict[str, Any]:
    """What the form shows of an adapter."""
    return {
        "of": name,
        "tags": row.tags if row else "",
        "note": row.note if row else "",
        "starred": bool(row and row.starred),
    }


def inside_panel(shell: Shell, chosen: gr.State) -> None:
    """Heat maps of the chosen adapter, and of what it shares with another."""
    workbench = shell.workbench
    with gr.Row(equal_height=True, elem_classes="asked"):
        measure = gr.Dropdown(
            list(MEASURES), value=next(iter(MEASURES)), label="Show", interactive=True, scale=2
        )
        other = gr.Dropdown([], label="Compare its directions with", interactive=True, scale=2)
        look = gr.Button("Look inside", scale=0, min_width=130)
        verify = gr.Button("Verify", scale=0, min_width=100)
    said, sentence = gr.HTML(), gr.HTML()
    found = gr.State({})
    chart = gr.Plot(visible=False, show_label=False)
    with gr.Row():
        shared = gr.Plot(visible=False, show_label=False)
        grid = gr.Plot(visible=False, show_label=False)

    def start(name: str, beside: str | None) -> Job:
        return workbench.adapters.inspect(chosen_adapter(workbench, name).name, beside or "")

    def render(result: dict[str, Any]) -> tuple[object, ...]:
        similarity = result.get("similarity") or {}
        words = f"<p class='lead'><b>{escape(result['adapter'])}</b>: {escape(result['sentence'])}</p>"
        if similarity:
            mean = sum(phi[-1][-1] for phi in similarity.values()) / len(similarity)
            other_name = escape(result["other"])
            words += (
                f"<p class='hint'>Of its directions {mean:.0%} lie in those of {other_name}; by "
                "chance hardly any would.</p>"
            )
        return (
            words,
            result["modules"],
            gr.Plot(value=anatomy_map(result["modules"], next(iter(MEASURES))), visible=True),
            gr.Plot(value=similarity_map(similarity) if similarity else None, visible=bool(similarity)),
            gr.Plot(value=similarity_grid(similarity) if similarity else None, visible=bool(similarity)),
            next(iter(MEASURES)),
        )

    job_button(
        shell, look, start, [chosen, other], render, said, [sentence, found, chart, shared, grid, measure]
    )

    def verified(result: dict[str, Any]) -> tuple[object, ...]:
        problems = [
            f"<p class='fault'><b>{escape(name)}</b>: {escape(why)}</p>"
            for name, why in result["problems"].items()
        ]
        sound = (
            f"<p class='lead'>{escape(', '.join(result['checked']))}: digest, layers, shapes, "
            "numbers and base are right.</p>"
        )
        return ("".join(problems) or sound,)

    job_button(
        shell,
        verify,
        lambda name: workbench.adapters.verify(chosen_adapter(workbench, name).name),
        [chosen],
        verified,
        said,
        [sentence],
    )

    def redraw(modules: Sequence[dict[str, Any]], how: str) -> object:
        return gr.Plot(value=anatomy_map(modules, how), visible=True) if modules else gr.skip()

    measure.input(redraw, [found, measure], chart, **QUIET)

    def offer(name: str, now: str | None) -> object:
        try:
            row = workbench.registry.find(Adapter, name) if name else None
        except NotFound:
            row = None
        alike = [
            one.name
            for one in workbench.registry.all(Adapter)
            if row and one.base_fingerprint == row.base_fingerprint
        ]
        names = [one for one in alike if one != name]
        return choose_from(names, now, None)

    shell.refresh(offer, [chosen, other], [other])
    chosen.change(offer, [chosen, other], [other], **QUIET_QUEUED)


def resize_panel(shell: Shell, chosen: gr.State) -> None:
    """A lower rank for the chosen adapter: first what it would lose, then kept."""
    workbench = shell.workbench
    with gr.Row(equal_height=True, elem_classes="asked"):
        rank = gr.Number(4, label="New rank", precision=0, minimum=1, interactive=True, scale=1)
        evaluate = gr.Checkbox(True, label="Measure the validation loss", scale=1, min_width=220)
        name = gr.Textbox(value="", label="Name of the resized one", scale=2)
        attempt = gr.Button("Try", scale=0, min_width=90)
        keep = gr.Button("Resize and keep", scale=0, min_width=150)
    said, result = gr.HTML(), gr.HTML()

    def start(now: str, wanted: float, measured: bool) -> Job:
        return workbench.adapters.resize(
            chosen_adapter(workbench, now).name, int(wanted or 0), evaluate=measured
        )

    def start_keeping(now: str, wanted: float, measured: bool, kept_as: str) -> Job:
        if not kept_as.strip():
            raise refusal("Give the resized adapter a name first.")
        return workbench.adapters.resize(
            chosen_adapter(workbench, now).name, int(wanted or 0), kept_as.strip(), evaluate=measured
        )

    def render(found: dict[str, Any]) -> tuple[object, ...]:
        return (resized_html(found),)

    job_button(shell, attempt, start, [chosen, rank, evaluate], render, said, [result])
    job_button(shell, keep, start_keeping, [chosen, rank, evaluate, name], render, said, [result])


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
