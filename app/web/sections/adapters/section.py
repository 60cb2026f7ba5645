"""Adapters: everything trained, imported or combined, what each belongs to, and what can be done with it."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import gradio as gr

from app.service.lineage import lineage
from app.service.workbench import Workbench
from app.web.parts.catalogue import Catalogue, Words
from app.web.parts.markup import day, facts, number, size
from app.web.parts.shell import QUIET, WORKING, Shell, choose_from, inform, refusal, told
from app.web.sections.adapters.combine_form import combine_form
from app.web.sections.adapters.import_form import adapter_import
from app.web.sections.adapters.lineage_graph import lineage_svg
from app.web.sections.adapters.tools import inside_panel, notes_form, resize_panel
from storage.adapters import ORDERS, AdapterQuery
from storage.tables import Adapter

TAB, TITLE = "adapters", "Adapters"
_WORDS = Words(
    label="Adapters",
    columns=(
        "Name",
        "★",
        "Base model",
        "Data set",
        "Rank",
        "Train loss",
        "Validation loss",
        "Source",
        "Tags",
        "Date",
    ),
    nothing="No adapter that matches. Train one under Train, or import one below.",
    remove="Delete",
    question="Delete this adapter? For a day it can be brought back, at the end of this page.",
)
_ALL, _PAGE = "all", 50


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    filters = _filters(shell)

    def chat_button(chosen: gr.State) -> None:
        chat = gr.Button("Chat with it", variant="primary", scale=0, min_width=140)
        chat.click(
            lambda name: (gr.Tabs(selected="playground"), name),
            chosen,
            [shell.tabs, shell.to_chat],
            **WORKING,
        )

    def remove(name: str) -> None:
        workbench.registry.adapters.delete(workbench.registry.find(Adapter, name).id or 0)

    catalogue = Catalogue(
        shell,
        _WORDS,
        rows=lambda *values: _rows(workbench, *values),
        number=lambda name: workbench.registry.find(Adapter, name).id,
        remove=remove,
        actions=chat_button,
        filters=filters,
        describe=lambda name: detail_html(workbench, workbench.registry.find(Adapter, name)),
        max_chars=60,
    )
    with gr.Accordion("Name, star, tags and note of the chosen adapter", open=False):
        notes_form(shell, catalogue)
    with gr.Accordion("Look inside the chosen adapter", open=False):
        inside_panel(shell, catalogue.chosen)
    with gr.Accordion("Resize the chosen adapter", open=False):
        resize_panel(shell, catalogue.chosen)
    with gr.Accordion("Combine adapters", open=False):
        combine_form(shell)
    with gr.Accordion("Import an adapter", open=False):
        adapter_import(shell)
    with gr.Accordion("Deleted adapters", open=False):
        _deleted(shell)


def _filters(shell: Shell) -> list[Any]:
    """What narrows the table down; the page's number last."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        words = gr.Textbox(value="", label="Search", placeholder="name, tag, note, base, data", scale=3)
        base = gr.Dropdown([_ALL], value=_ALL, label="Base model", interactive=True, scale=2)
        data = gr.Dropdown([_ALL], value=_ALL, label="Data set", interactive=True, scale=2)
        tag = gr.Dropdown([_ALL], value=_ALL, label="Tag", interactive=True, scale=1)
        order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", interactive=True, scale=1)
        starred = gr.Checkbox(False, label="Starred", scale=0, min_width=100)
        page = gr.Dropdown([("1", 0)], value=0, label="Page", interactive=True, scale=0, min_width=130)

    def offer(*values: object) -> tuple[object, ...]:
        words_now, base_now, data_now, tag_now, order_now, starred_now, page_now = values
        there = workbench.registry.adapters.words()
        _, total = workbench.registry.adapters.search(
            _query(words_now, base_now, data_now, tag_now, order_now, starred_now), 1
        )
        pages = max(1, -(-total // _PAGE))
        kept = [
            choose_from([_ALL, *there[key]], now, _ALL)
            for key, now in (("base", base_now), ("dataset", data_now), ("tag", tag_now))
        ]
        choices = [(f"{at + 1} of {pages}", at) for at in range(pages)]
        return *kept, choose_from(choices, page_now, 0)

    fields: list[Any] = [words, base, data, tag, order, starred, page]
    shell.refresh(offer, fields, [base, data, tag, page])
    gr.on(
        [one.change for one in fields[:-1]],
        offer,
        fields,
        [base, data, tag, page],
        trigger_mode="always_last",
        **QUIET,
    )
    return fields


def _query(
    words: object, base: object, data: object, tag: object, order: object, starred: object
) -> AdapterQuery:
    def named(value: object) -> str:
        return "" if value in (_ALL, None) else str(value)

    return AdapterQuery(
        words=str(words or ""),
        base=named(base),
        dataset=named(data),
        tag=named(tag),
        starred=bool(starred),
        order=str(order),
    )


def _rows(workbench: Workbench, *values: object) -> list[list[str]]:
    *filters, page = values
    rows, _ = workbench.registry.adapters.search(_query(*filters), _PAGE, _PAGE * int(str(page or 0)))
    return [
        [
            row.name,
            "★" if row.starred else "",
            row.base_name,
            row.dataset_name or "–",
            str(row.rank),
            number(row.train_loss),
            number(row.validation_loss),
            row.source,
            row.tags,
            day(row.created),
        ]
        for row in rows
    ]


def detail_html(workbench: Workbench, row: Adapter) -> str:
    """Everything known of one adapter, and its lineage."""
    train = row.config.get("train", {})
    about = facts(
        [
            ("Base model", row.base_name),
            ("Fingerprint of the base", row.base_fingerprint),
            ("Source", f"run {row.run_id}" if row.run_id else row.source),
            ("Data set", row.dataset_name),
            ("Rank, alpha", f"{row.rank}, {row.alpha:g}"),
            ("Target modules", row.target_modules),
            ("Parameters", f"{row.parameters:,}"),
            ("Steps", row.steps),
            ("Loss", f"train {number(row.train_loss)}, validation {number(row.validation_loss)}"),
            ("Learning rate", f"{train['learning_rate']:g}, {train['lr_scheduler']}" if train else ""),
            ("Made by", _made_by(row)),
            ("Note", row.note),
            ("Digest", row.digest),
            ("Size", size(row.size_bytes)),
            ("Created", day(row.created)),
        ],
        row.name,
    )
    drawn = f"<div class='card'><h3>Lineage</h3>{lineage_svg(lineage(workbench.registry, row))}</div>"
    written = escape(json.dumps(row.config, indent=2, ensure_ascii=False))
    config = (
        f"<details class='card'><summary>Configuration</summary><pre class='mono'>{written}</pre></details>"
        if row.config
        else ""
    )
    return f"{about}{drawn}{_samples(workbench, row)}{config if row.config else ''}"


def _samples(workbench: Workbench, row: Adapter) -> str:
    """What its run answered to the sample prompts when it was last asked."""
    said = workbench.registry.measurements.samples(row.run_id) if row.run_id else []
    last = [one for one in said if one.step == said[-1].step]
    turns = "".join(
        f"<div class='turn user'><b>prompt</b>{escape(one.prompt)}</div>"
        f"<div class='turn assistant'><b>at step {one.step}</b>{escape(one.text[:1500])}</div>"
        for one in last
    )
    return f"<div class='card'><h3>Samples</h3>{turns}</div>" if last else ""


def _made_by(row: Adapter) -> str:
    """How a combined or resized adapter came about."""
    how = row.config.get(row.source)
    if row.source not in ("combined", "resized") or not isinstance(how, dict):
        return ""
    what = (
        "cut to a lower rank"
        if row.source == "resized"
        else f"{how.get('method')} of {len(row.parents)} adapters"
    )
    return f"{what}, {how.get('energy_lost', 0):.3%} of ‖ΔW‖² lost"


def _deleted(shell: Shell) -> None:
    workbench = shell.workbench
    with gr.Row(equal_height=True, elem_classes="asked"):
        which = gr.Dropdown([], label="Deleted", interactive=True, scale=3)
        back = gr.Button("Bring back", scale=0, min_width=130)

    def offer(now: int | None) -> object:
        choices = [
            (f"{row.name}, {day(row.deleted)}", row.id or 0) for row in workbench.registry.adapters.deleted()
        ]
        return choose_from(choices, now)

    shell.refresh(offer, [which], [which])

    @told
    def bring(number: int | None) -> None:
        if not number:
            raise refusal("No deleted adapter is chosen.")
        row = workbench.registry.adapters.bring_back(number)
        inform(f"{row.name} is back.")

    shell.soon(back.click(bring, which, None, **WORKING))
