"""Adapters: all of them on the left, the chosen one on the right; importing and combining in sheets."""

from __future__ import annotations

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import day, empty, number
from app.web.parts.panes import bar, left, opener, right, sheet, split
from app.web.parts.picker import Facet, Query, Row, Rows, picker
from app.web.parts.shell import WORKING, Shell, inform, refusal, told
from app.web.sections.adapters.adapter_detail import adapter_detail
from app.web.sections.adapters.combine_form import combine_form
from app.web.sections.adapters.import_form import adapter_import
from storage.adapters import ORDERS, AdapterQuery
from storage.tables import Adapter

TAB, TITLE = "adapters", "Adapters"
_NOTHING = "No adapter yet. Train one under Train, or import one with the button above."
_COMBINE = "Adapters of one base become a new one, computed on what they change (ΔW)."
_IMPORT = "A PEFT folder, a .zip or a .safetensors file: first looked at, then kept."


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    with split(TAB):
        with left():
            with bar():
                opener("import-adapter", "Import", variant="primary")
                combining = opener("combine-adapters", "Combine")
                opener("deleted-adapters", "Deleted")
            chosen = picker(
                shell,
                TAB,
                "Adapters",
                lambda query: find(workbench, query),
                _NOTHING,
                search="Search name, tag, note, base, data",
            )
        with right():
            adapter_detail(shell, chosen)
    with sheet("import-adapter", "Import an adapter", _IMPORT):
        adapter_import(shell)
    with sheet("combine-adapters", "Combine adapters", _COMBINE):
        combine_form(shell, combining)
    with sheet("deleted-adapters", "Deleted adapters", "For a day each can be brought back."):
        _deleted(shell)


def find(workbench: Workbench, query: Query) -> Rows:
    """One page of the list, and what narrows it down."""
    adapters = workbench.registry.adapters
    given = query.facets
    wanted = AdapterQuery(
        words=query.words,
        base=given.get("base", ""),
        dataset=given.get("dataset", ""),
        tag=given.get("tag", ""),
        starred=bool(given.get("starred")),
        order=given.get("order", "") or ORDERS[0],
    )
    rows, total = adapters.search(wanted, query.most, query.start)
    return Rows([_row(one) for one in rows], total, _facets(adapters.words()))


def _facets(words: dict[str, list[str]]) -> list[Facet]:
    def named(key: str, label: str) -> Facet:
        return Facet(key, label, [("", f"Any {label.lower()}"), *[(one, one) for one in words[key]]])

    orders = [("", ORDERS[0].capitalize()), *[(one, one.capitalize()) for one in ORDERS[1:]]]
    return [
        named("base", "Base"),
        named("dataset", "Data set"),
        named("tag", "Tag"),
        Facet("starred", "Starred", [("", "All"), ("yes", "★ only")]),
        Facet("order", "Order", orders),
    ]


def _row(one: Adapter) -> Row:
    return Row(
        one.name,
        one.name,
        f"{one.base_name} · {one.rank_in_words} · {one.source}",
        "" if one.validation_loss is None else number(one.validation_loss),
        "★" if one.starred else "",
    )


def _deleted(shell: Shell) -> None:
    workbench = shell.workbench
    nothing = gr.HTML(empty("Nothing was deleted lately."))
    which = gr.Radio([], label="Deleted", interactive=True, visible=False)
    with bar():
        back = gr.Button("Bring back", variant="primary", size="md", scale=0)

    def offer(now: int | None) -> tuple[object, ...]:
        rows = workbench.registry.adapters.deleted()
        choices = [(f"{row.name}, {day(row.deleted)}", row.id or 0) for row in rows]
        offered = gr.Radio(choices=choices, visible=bool(rows))
        if now is not None and all(row.id != now for row in rows):
            offered = gr.Radio(choices=choices, value=None, visible=bool(rows))
        # A choice that stays is not sent: another may have been made meanwhile.
        return gr.HTML(visible=not rows), offered

    shell.refresh(offer, [which], [nothing, which])

    @told
    def bring(number: int | None) -> None:
        if not number:
            raise refusal("Choose the adapter to bring back first.")
        row = workbench.registry.adapters.bring_back(number)
        inform(f"{row.name} is back.")

    shell.soon(back.click(bring, which, None, **WORKING))
