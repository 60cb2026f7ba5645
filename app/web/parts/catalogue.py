"""A table of named rows, what is known of the chosen one, and a question before one is removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.web.parts.markup import empty
from app.web.parts.shell import QUIET, QUIET_QUEUED, WORKING, Shell, told
from storage.errors import NotFound

Cells = list[list[str]]


@dataclass(frozen=True)
class Words:
    """What a catalogue says. The first column is the row's name."""

    label: str
    columns: tuple[str, ...]
    nothing: str
    """What stands in its place while it is empty."""
    remove: str
    """The verb: Remove, or Delete."""
    question: str
    """Asked before a row is removed."""


class Catalogue:
    """Lays itself out where it is made. `chosen` holds the name of the row that was clicked."""

    def __init__(
        self,
        shell: Shell,
        words: Words,
        *,
        rows: Callable[..., Cells],
        describe: Callable[[str], str],
        remove: Callable[[str], None],
        actions: Callable[[gr.State], None] | None = None,
        filters: Sequence[Component] = (),
        **table: Any,
    ) -> None:
        """rows and describe are asked anew at each change; actions adds buttons for the chosen row.

        rows is given the values of the filters, and asked anew when one of them changes.
        """
        self._shell, self._rows, self._describe, self._remove = shell, rows, describe, remove
        self._filters = list(filters)
        self._openings: list[Dependency] = []
        self._extras: list[tuple[Callable[..., Any], list[Any], list[Any]]] = []
        self.chosen = gr.State("")
        self._table = gr.Dataframe(
            headers=list(words.columns), interactive=False, label=words.label, show_label=False, **table
        )
        self._nothing = gr.HTML(empty(words.nothing))
        with gr.Column(visible=False) as self._about:
            self._detail = gr.HTML()
            with gr.Row():
                if actions is not None:
                    actions(self.chosen)
                ask = gr.Button(f"{words.remove} …", variant="stop", scale=0, min_width=120)
            with gr.Row(visible=False, elem_classes="danger-zone") as self._confirm:
                gr.Markdown(words.question)
                yes = gr.Button(f"{words.remove} it", variant="stop", scale=0, min_width=120)
                no = gr.Button("Keep it", scale=0, min_width=120)
        ask.click(lambda: gr.Row(visible=True), None, self._confirm, **QUIET)
        no.click(lambda: gr.Row(visible=False), None, self._confirm, **QUIET)
        self.follow(yes.click(told(self._drop), self.chosen, self.chosen, **WORKING))
        clicked = self._table.select(_name_clicked, None, self.chosen, **QUIET_QUEUED)
        self._openings.append(clicked.then(self._open, self.chosen, self._opened, **QUIET))
        shell.refresh(self._show, self._filters, [self._table, self._nothing])
        changes = [one.change for one in self._filters]  # type: ignore[attr-defined]
        if changes:
            gr.on(
                changes,
                self._show,
                self._filters,
                [self._table, self._nothing],
                trigger_mode="always_last",
                **QUIET,
            )
        shell.refresh(self._show_detail, [self.chosen], [self._about, self._detail])

    def follow(self, event: Dependency) -> None:
        """After an event that may have changed rows or the choice, show both anew."""
        opened = event.success(self._show, self._filters, [self._table, self._nothing], **QUIET).then(
            self._open, self.chosen, self._opened, **QUIET
        )
        self._openings.append(opened)
        for handler, inputs, outputs in self._extras:
            opened.then(handler, inputs, outputs, **QUIET)

    def also(self, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Call `handler` whenever the chosen row is shown anew, however that came about."""
        self._extras.append((handler, inputs, outputs))
        for opened in self._openings:
            opened.then(handler, inputs, outputs, **QUIET)
        self._shell.refresh(handler, inputs, outputs)

    @property
    def _opened(self) -> list[gr.blocks.Block]:
        return [self._about, self._detail, self._confirm]

    def _show(self, *filters: Any) -> tuple[object, ...]:
        rows = self._rows(*filters)
        return gr.Dataframe(value=rows, visible=bool(rows)), gr.HTML(visible=not rows)

    def _show_detail(self, name: str) -> tuple[object, ...]:
        try:
            html = self._describe(name) if name else ""
        except NotFound:  # removed meanwhile, here or elsewhere
            html = ""
        return gr.Column(visible=bool(html)), html

    def _open(self, name: str) -> tuple[object, ...]:
        return *self._show_detail(name), gr.Row(
            visible=False
        )  # a question about another row is off the table

    def _drop(self, name: str) -> str:
        self._remove(name)
        return ""


def _name_clicked(event: gr.SelectData) -> str:
    """The first column of the row that was clicked, also when the table is sorted."""
    return str(event.row_value[0])
