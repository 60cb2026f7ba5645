"""The sheet on what LoRA costs: the literature's claims beside what was measured on this machine."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.costs import BYTES, COUNT, SECONDS, SOURCE, Claim, Costs
from app.web.parts.latency_view import latency_html
from app.web.parts.markup import empty, number, size
from app.web.parts.panes import bar, opener, sheet
from app.web.parts.routes import link
from app.web.parts.shell import WORKING, Shell, choose_from, inform, refusal, told

_KEY = "lora-costs"
_MOST = 200  # of the newest runs are offered
_HELP = (
    "What is said of LoRA, held against a run of yours, full fine-tuning on the same data, and the time of "
    "answers with the adapter beside the base and merged into it."
)
_NONE = f"No run has given an adapter yet. {link('Train one', 'train')} first."


def costs_opener() -> gr.Button:
    """The button that opens the sheet."""
    return opener(_KEY, "What LoRA costs …")


def costs_sheet(shell: Shell) -> None:
    """Lay out the sheet and bind it."""
    workbench = shell.workbench
    with sheet(_KEY, "What LoRA costs", _HELP):
        run = gr.Dropdown([], label="Run", interactive=True)
        with bar():
            begin = gr.Button("Train and measure what is missing", variant="primary", size="md", scale=0)
        claims, times = gr.HTML(), gr.HTML()

    @told
    def start(number: int | None) -> None:
        if number is None:
            raise refusal("No run has given an adapter yet; train one first.")
        missing = workbench.costs.begin(number)
        under_way = [missing.full.name] if missing.full else []
        under_way += [missing.latency.title] if missing.latency else []
        said = f"Under way: {'; '.join(under_way)}." if under_way else "All of it is there already."
        inform(f"{said} {missing.left_out}".strip(), "What LoRA costs")

    def show(number: int | None) -> tuple[object, ...]:
        offered = [(f"{one.id}: {one.name}", one.id or 0) for one in workbench.costs.runs(_MOST)]
        numbers = [one for _, one in offered]
        chosen = number if number in numbers else next(iter(numbers), None)
        tables = ("", empty(_NONE)) if chosen is None else _tables(workbench.costs.of(chosen))
        return choose_from(offered, number), *tables

    shell.soon(begin.click(start, run, None, concurrency_id="control", **WORKING))
    shell.also_after(run.input)
    shell.refresh(show, [run], [run, claims, times])


def _tables(costs: Costs) -> tuple[str, str]:
    full = link(costs.full.name, "runs", name=costs.full.id or 0) if costs.full else "Full fine-tuning"
    state = "" if costs.full is None else f" <span class='quiet'>{escape(costs.full.state)}</span>"
    own = link(costs.run.name, "runs", name=costs.run.id or 0)
    columns = ("", own, full + state, "LoRA's share", "Literature")
    head = "".join(f"<th scope='col'>{one}</th>" for one in columns)
    body = "".join(map(_line, costs.claims))
    return (
        f"<div class='wide' tabindex='0'><table class='rows'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
        f"<p class='hint'>The literature's figures are those of GPT-3 175B in {SOURCE}.</p>",
        f"<h3>Speed of an answer</h3>{latency_html(costs.latency)}",
    )


def _line(claim: Claim) -> str:
    figures = _value(claim.lora, claim.unit), _value(claim.full, claim.unit), _share(claim.ratio)
    cells = "".join(f"<td class='number'>{one}</td>" for one in figures)
    return f"<tr><th scope='row'>{escape(claim.name)}</th>{cells}<td>{escape(claim.said)}</td></tr>"


def _share(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.2%}" if ratio < 0.1 else f"{ratio:.2f}"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == COUNT:
        return f"{value:,.0f}"
    return size(value) if unit == BYTES else f"{number(value, 3)}{' s' if unit == SECONDS else ''}"
