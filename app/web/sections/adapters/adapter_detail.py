"""The chosen adapter: its name, what can be done with it, and its tabs."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.workbench import Workbench
from app.shared.bases import closest_base
from app.web.parts.choice import adapter_called
from app.web.parts.job_result import last_result, starts_job
from app.web.parts.label_view import label_values, label_view
from app.web.parts.markup import day, title_line
from app.web.parts.panes import ask_first, bar, opener, require_same
from app.web.parts.routes import link, there
from app.web.parts.shell import WORKING, Shell, refusal, told
from app.web.sections.adapters.adapter_facts import config_html, lineage_html, overview_html
from app.web.sections.adapters.convert_form import convert_sheet
from app.web.sections.adapters.inside import inside_panel
from app.web.sections.adapters.notes import notes_sheet
from app.web.sections.adapters.resize_form import resize_sheet
from app.web.sections.adapters.speed_tab import speed_tab
from storage.errors import NotFound
from storage.tables import Adapter, LabelTable, Run

_NOTHING = (
    "<div class='empty'><p>An adapter that you train, import or combine is shown here, with what can be done "
    f"with it.</p><p>{link('Train one', 'train')} · <button type='button' class='small' "
    "data-opens='import-adapter'>Import one</button></p></div>"
)
_DELETE = "Delete this adapter? For a day it can be brought back, by Deleted above the list."


def adapter_detail(shell: Shell, chosen: gr.HTML) -> None:
    """Lay it out and bind its handlers."""
    workbench = shell.workbench
    title = gr.HTML()
    with bar() as actions:
        chat = gr.Button("Chat with it", variant="primary", size="md", scale=0)
        export = gr.Button("Export", size="md", scale=0)
        train = gr.Button("Train more like it", size="md", scale=0)
        star = gr.Button("☆ Star", size="md", scale=0)
        opened = opener("edit-adapter", "Edit")
        opener("resize-adapter", "Resize")
        converted = opener("convert-adapter", "Convert to LoRA", visible=False)
        verify = gr.Button("Verify", size="md", scale=0)
        deleted = ask_first(
            "delete-adapter",
            "Delete …",
            _DELETE,
            lambda name: workbench.registry.find(Adapter, name).id,
            lambda asked, name: _delete(workbench, asked, name),
            [chosen],
            [chosen],
        )
    said = gr.HTML()
    with gr.Column(visible=False) as about, gr.Tabs():
        with gr.Tab("Overview"):
            overview = gr.HTML()
        with gr.Tab("Labels", visible=False) as labels:
            by_label = label_view()
        with gr.Tab("Lineage"):
            family = gr.HTML()
            with bar():
                on_top = gr.Button("Train on top of it", size="md", scale=0)
        with gr.Tab("Inside"):
            inside_panel(shell, chosen)
        with gr.Tab("Speed"):
            speed_tab(shell, chosen)
        with gr.Tab("Configuration"):
            config = gr.HTML()
    notes_sheet(shell, chosen, opened)
    resize_sheet(shell, chosen)
    convert_sheet(shell, chosen)

    def show(name: str) -> tuple[object, ...]:
        row = adapter_called(workbench.registry, name)
        if row is None:
            hidden = gr.Column(visible=False), "", "", "", *[gr.skip()] * 6
            return "", gr.Row(visible=False), *[gr.skip()] * 2, _NOTHING, *hidden
        return (
            title_line(row.name, _badges(workbench, row), "★" if row.starred else ""),
            gr.Row(visible=True),
            gr.Button(visible=_run_of(workbench, row) is not None),
            gr.Button("★ Starred" if row.starred else "☆ Star"),
            verified_html(workbench, row),
            gr.Column(visible=True),
            overview_html(workbench, row),
            lineage_html(workbench, row),
            config_html(row),
            gr.Button(workbench.classifiers.try_words(row)),
            gr.Button(visible=workbench.adapters.can_be_lora(row)),
            gr.Tab(visible=(tells := workbench.classifiers.labels(row) is not None)),
            *label_values(_table_of(workbench, row) if tells else None),
        )

    facts = [title, actions, train, star, said, about, overview, family, config]
    shell.refresh(show, [chosen], [*facts, chat, converted, labels, *by_label])
    chat.click(told(lambda name: _lead(workbench, name, "playground")), chosen, shell.go, **WORKING)
    export.click(told(lambda name: _lead(workbench, name, "export")), chosen, shell.go, **WORKING)
    on_top.click(
        told(lambda name: there("train", on=required(workbench, name).name)), chosen, shell.go, **WORKING
    )
    train.click(told(lambda name: _train_again(workbench, name)), chosen, shell.go, **WORKING)
    shell.soon(star.click(told(lambda name: _toggle_star(workbench, name)), chosen, None, **WORKING))
    starts_job(
        shell, verify.click, lambda name: workbench.adapters.verify(required(workbench, name).name), [chosen]
    )
    shell.soon(deleted)


def _lead(workbench: Workbench, name: str, section: str) -> str:
    return there(section, adapter=required(workbench, name).name)


def _table_of(workbench: Workbench, row: Adapter) -> LabelTable | None:
    """What its run's evaluation has found at the step that it is of, or at the last one."""
    if row.run_id is None:
        return None
    measured = workbench.registry.measurements
    return measured.last_label_table(row.run_id, row.steps) or measured.last_label_table(row.run_id)


def _train_again(workbench: Workbench, name: str) -> str:
    run = _run_of(workbench, required(workbench, name))
    if run is None:
        raise refusal("The run that made it is gone; choose its data under Train.")
    return there("train", **{"from": run.id})


def _toggle_star(workbench: Workbench, name: str) -> None:
    row = required(workbench, name)
    workbench.registry.adapters.change(row.id or 0, starred=not row.starred)


def _delete(workbench: Workbench, asked: int, name: str) -> str:
    row = required(workbench, name)
    require_same(name, asked, row.id)
    workbench.registry.adapters.delete(asked)
    return ""


def _run_of(workbench: Workbench, row: Adapter) -> Run | None:
    try:
        return workbench.registry.get(Run, row.run_id) if row.run_id else None
    except NotFound:
        return None


def _badges(workbench: Workbench, row: Adapter) -> list[tuple[str, str]]:
    missing = [] if closest_base(workbench.registry, row) else [("its base is not here", "bad")]
    return [(row.source, "calm"), *missing]


def verified_html(workbench: Workbench, row: Adapter) -> str:
    """What the newest check of an adapter has found, or that it is under way."""
    said, done = last_result(workbench.registry, "verify_adapter", {"adapter.id": row.id}, row.created)
    if said or done is None:
        return said
    problems = "".join(f"<p class='fault'>{escape(why)}</p>" for why in done.result["problems"].values())
    sound = f"Verified {day(done.ended)}: digest, layers, shapes, numbers and base are right."
    return problems or f"<p class='hint'>{sound}</p>"


def required(workbench: Workbench, name: str) -> Adapter:
    """The adapter of this name. Raises a refusal if none is chosen, and NotFound."""
    if not name:
        raise refusal("Choose an adapter in the list first.")
    return workbench.registry.find(Adapter, name)
