"""The chosen data set, and the base model and length that it is looked at with; every tab is about these."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.datasets import BaseCheck
from app.service.usual import usual_base
from app.web.parts.shell import QUIET, WORKING, Shell, inform, offered, refusal, told
from core.train.config import TrainConfig
from storage.errors import NotFound
from storage.tables import Base, Dataset

LENGTH = TrainConfig().max_length
_KEEP = "(base, length) => ({base, length})"


class ChosenData:
    """Holds `name`, a state that follows the list; lays out base, length and their check by `check_bar`."""

    base: gr.Dropdown
    length: gr.Number

    def __init__(self, shell: Shell) -> None:
        self._shell, self.workbench = shell, shell.workbench
        self.name = gr.State("")

    @property
    def inputs(self) -> list[Component]:
        """What a handler is given to look at the data set: name, base and length."""
        return [self.name, self.base, self.length]

    def check_bar(self) -> None:
        """One line: the base, the length, and the button that checks with them."""
        with gr.Row(elem_classes="check-bar"):
            self.base = gr.Dropdown([], label="Base model to check with", interactive=True, scale=2)
            self.length = gr.Number(
                LENGTH, label="Max length (tokens)", precision=0, minimum=8, scale=1, min_width=140
            )
            check = gr.Button("Check with this base", size="md", scale=0, min_width=0)
        kept = self._shell.kept["data"]
        asked: list[Component] = [self.base, self.length]
        self._shell.refresh(self._bases, [*asked, kept], asked)
        gr.on(
            [self.base.input, self.length.input], None, asked, kept, js=_KEEP, **QUIET
        )  # by hand only: what the page puts there by itself says nothing
        self._shell.also_after(self.base.change)
        self._shell.also_after(self.length.change)
        check.click(told(self._start_check), self.inputs, None, **WORKING)

    def _bases(self, base: str | None, length: float, kept: dict[str, Any] | None) -> tuple[Any, Any]:
        """The bases there are; when the page opens, what was chosen the last time."""
        names = [one.name for one in self.workbench.registry.all(Base)]
        if base:
            return offered(names, base if base in names else None, base), gr.skip()
        before = kept or {}
        first = before.get("base") if before.get("base") in names else usual_base(self.workbench)
        return offered(names, first, base), before.get("length") or length or LENGTH

    def _start_check(self, name: str, base: str | None, length: float) -> None:
        if not name or not base:
            raise refusal("Add a base model first: its tokenizer is what the rows are checked with.")
        self.workbench.datasets.check(name, base, int(length or LENGTH))
        inform("What it finds appears in each tab when it is done.", "Checking")

    def dataset(self, name: str) -> Dataset | None:
        """The data set of this name, or None where it went in the meantime."""
        try:
            return self.workbench.registry.find(Dataset, name) if name else None
        except NotFound:
            return None

    def model(self, base: str | None) -> Base | None:
        """The base of this name, if there is one."""
        return next((one for one in self.workbench.registry.all(Base) if one.name == base), None)

    def checked(self, row: Dataset, base: str | None, length: float) -> BaseCheck | None:
        """What the check with this base and length has found, if it was done."""
        model = self.model(base)
        return self.workbench.datasets.checked(row, model, int(length or LENGTH)) if model else None
