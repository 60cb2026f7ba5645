"""A table of named rows, what is known of the chosen one, and a question before one is removed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.web.parts.markup import empty
from app.web.parts.shell import QUIET, QUIET_QUEUED, WORKING, Shell, refusal, told
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
        number: Callable[[str], int | None],
        actions: Callable[[gr.State], None] | None = None,
        filters: Sequence[Component] = (),
        **table: Any,
    ) -> None:
        """rows and describe are asked anew at each change; number tells a row from another that has its name
        later; actions adds buttons for the chosen row.

        rows is given the values of the filters, and asked anew when one of them changes.
        """
        self._shell, self._rows, self._describe, self._remove = shell, rows, describe, remove
        self._number = number
        self._filters = list(filters)
        self.chosen = gr.State("")
        shown = gr.State("")
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
        asked = gr.State(None)
        ask.click(told(self._ask), self.chosen, [asked, self._confirm], **QUIET)
        no.click(lambda: gr.Row(visible=False), None, self._confirm, **QUIET)
        # A question about another row, or one that was answered, is off the table.
        gone = [self.chosen, self._confirm]
        self.follow(yes.click(told(self._drop), [self.chosen, asked], gone, **WORKING))
        self.follow(self._table.select(_clicked, None, [self.chosen, self._confirm], **QUIET_QUEUED))
        given, outputs = [shown, *self._filters], [shown, self._table, self._nothing]
        shell.refresh(self._show, given, outputs)
        changes = [one.change for one in self._filters]  # type: ignore[attr-defined]
        if changes:
            gr.on(changes, self._show, given, outputs, trigger_mode="always_last", **QUIET)
        shell.refresh(self._show_detail, [self.chosen], [self._about, self._detail])

    def follow(self, event: Dependency) -> None:
        """After an event that may have changed rows or the choice, show both anew."""
        self._shell.soon(event)

    def also(self, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Call `handler` whenever the chosen row is shown anew, however that came about."""
        self._shell.refresh(handler, inputs, outputs)

    def _show(self, shown: str, *filters: Any) -> object:
        """The rows, unless they are shown already: a table that is filled anew loses its place."""
        rows = self._rows(*filters)
        now = hashlib.sha256(repr(rows).encode()).hexdigest()
        if now == shown:
            return gr.skip()
        return now, gr.Dataframe(value=rows, visible=bool(rows)), gr.HTML(visible=not rows)

    def _show_detail(self, name: str) -> tuple[object, ...]:
        try:
            html = self._describe(name) if name else ""
        except NotFound:  # removed meanwhile, here or elsewhere
            html = ""
        return gr.Column(visible=bool(html)), html

    def _ask(self, name: str) -> tuple[object, ...]:
        return self._number(name), gr.Row(visible=True)

    def _drop(self, name: str, asked: int) -> tuple[object, ...]:
        if self._number(name) != asked:
            raise refusal(
                f"{name} is another one by now than the one you were asked about; look at it first."
            )
        self._remove(name)
        return "", gr.Row(visible=False)


def _clicked(event: gr.SelectData) -> tuple[object, ...]:
    """The first column of the row that was clicked, also when the table is sorted."""
    return str(event.row_value[0]), gr.Row(visible=False)
