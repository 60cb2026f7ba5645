"""Report: every finding by row, and leaving such rows out or bringing them back."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.service.datasets import ERRORS, WARNINGS, BaseCheck
from app.web.parts.scripts import script
from app.web.parts.shell import FOLLOWING, WORKING, Shell, choose_from, refusal, told, values_of
from app.web.sections.data.chosen import ChosenData
from app.web.sections.data.data_markup import findings_html, kinds_html
from core.data.findings import ERROR, KINDS, WARNING, codes_of
from storage.tables import Dataset

EVERYTHING = "all findings"
_NARROW: dict[str, Any] = {"size": "md", "scale": 0, "min_width": 0}


def report_tab(shell: Shell, chosen: ChosenData) -> None:
    """Lay out the tab and bind its handlers."""
    datasets = shell.workbench.datasets
    kinds = gr.HTML()
    with gr.Row(elem_classes="check-bar"):
        finding = gr.Dropdown(
            [EVERYTHING], value=EVERYTHING, label="Show", interactive=True, elem_id="finding-filter"
        )
        errors = gr.Button("Leave out all rows with errors", variant="primary", **_NARROW)
        of_kind = gr.Button("Leave out the rows shown", **_NARROW)
        back = gr.Button("Bring all back", **_NARROW)
    by_row = gr.HTML(
        elem_classes="findings",
        js_on_load=script("findings.js"),
    )
    about = [*chosen.inputs, finding]

    def show(name: str, base: str | None, length: float, wanted: str) -> list[Any]:
        row = chosen.dataset(name)
        if row is None:
            return [gr.skip()] * 4
        opened, checked = datasets.open(row), chosen.checked(row, base, length)
        counts = opened.findings.counts() | (checked.findings.counts() if checked else {})
        each = [(f"{KINDS[code].title} ({count:,})", code) for code, count in counts.items()]
        choices = [(EVERYTHING, EVERYTHING), (ERRORS, ERRORS), (WARNINGS, WARNINGS), *each]
        now = wanted if wanted in values_of(choices) else EVERYTHING
        return [
            kinds_html(opened, checked),
            gr.Button(visible=row.faulty_rows > 0),
            choose_from(choices, wanted, EVERYTHING),
            findings_html(opened, checked, _codes(now), row.source_name),
        ]

    def show_list(name: str, base: str | None, length: float, wanted: str) -> str:
        row = chosen.dataset(name)
        if row is None:
            return ""
        opened, checked = datasets.open(row), chosen.checked(row, base, length)
        return findings_html(opened, checked, _codes(wanted), row.source_name)

    def leave_out(name: str, base: str | None, length: float, codes: list[str]) -> None:
        datasets.leave_out(name, codes, base=_check_of(chosen, name, base, length))

    def leave_out_errors(name: str, base: str | None, length: float) -> None:
        leave_out(name, base, length, codes_of(ERROR))

    def leave_out_shown(name: str, base: str | None, length: float, wanted: str) -> None:
        if wanted == EVERYTHING:
            raise refusal("Choose one kind of finding under Show first.")
        leave_out(name, base, length, _codes(wanted))

    def bring_back(name: str) -> None:
        datasets.bring_back(name)

    shell.refresh(show, about, [kinds, errors, finding, by_row])
    finding.input(show_list, about, by_row, **FOLLOWING)
    changing = WORKING | {"concurrency_id": "data-change"}
    shell.soon(errors.click(told(leave_out_errors), chosen.inputs, None, **changing))
    shell.soon(of_kind.click(told(leave_out_shown), about, None, **changing))
    shell.soon(back.click(told(bring_back), chosen.name, None, **changing))


def _check_of(chosen: ChosenData, name: str, base: str | None, length: float) -> BaseCheck | None:
    return chosen.checked(chosen.workbench.registry.find(Dataset, name), base, length)


def _codes(finding: str) -> list[str]:
    """The kinds of finding that a choice stands for; none for all."""
    if finding in (ERRORS, WARNINGS):
        return codes_of(ERROR if finding == ERRORS else WARNING)
    return [] if finding == EVERYTHING else [finding]
