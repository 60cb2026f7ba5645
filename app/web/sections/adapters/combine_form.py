"""Adapters of one base into a new one: choose, weigh, see what would become of them, keep."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.web.parts.job_result import job_button
from app.web.parts.markup import facts, size
from app.web.parts.options_form import option_fields
from app.web.parts.shell import Shell, choose_many, refusal
from core.combine.config import CombineConfig
from storage.tables import Adapter, Job


def combine_form(shell: Shell) -> None:
    """Lay out the form and bind its handlers."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        chosen = gr.Dropdown([], label="Adapters to combine", multiselect=True, interactive=True, scale=3)
        weights = gr.Textbox(
            value="", label="Weights", info="One each, in that order: 0.7, 0.3. Empty: all the same.", scale=2
        )
    fields = option_fields(CombineConfig.options(), per_row=4)
    with gr.Row(equal_height=True, elem_classes="asked"):
        name = gr.Textbox(value="", label="Name of the new adapter", scale=3)
        preview = gr.Button("Preview", scale=0, min_width=110)
        keep = gr.Button("Combine and keep", variant="primary", scale=0, min_width=170)
    said, result = gr.HTML(), gr.HTML()

    def offer(now: list[str] | None) -> object:
        rows = workbench.registry.all(Adapter)
        names = [row.name for row in rows]
        return choose_many(names, now)

    shell.refresh(offer, [chosen], [chosen])
    names = list(fields)

    def start(parts: list[str] | None, given: str, *values: Any) -> Job:
        return workbench.adapters.combine(weighed(parts or [], given), dict(zip(names, values, strict=True)))

    def start_keeping(parts: list[str] | None, given: str, kept_as: str, *values: Any) -> Job:
        if not kept_as.strip():
            raise refusal("Give the new adapter a name first.")
        options = dict(zip(names, values, strict=True))
        return workbench.adapters.combine(weighed(parts or [], given), options, kept_as.strip())

    def render(found: dict[str, Any]) -> tuple[object, ...]:
        return (combined_html(found),)

    job_button(shell, preview, start, [chosen, weights, *fields.values()], render, said, [result])
    job_button(shell, keep, start_keeping, [chosen, weights, name, *fields.values()], render, said, [result])


def weighed(parts: list[str], given: str) -> dict[str, float]:
    """The weights by adapter; all the same, adding up to 1, if none are given."""
    texts = [one.strip() for one in given.replace(";", ",").split(",") if one.strip()]
    if not texts:
        return {name: 1.0 / len(parts) for name in parts}
    if len(texts) != len(parts):
        raise refusal(
            f"There are {len(parts)} adapters and {len(texts)} weights; give one weight each, with "
            "commas between them."
        )
    try:
        return {name: float(text) for name, text in zip(parts, texts, strict=True)}
    except ValueError:
        raise refusal(f"The weights {given[:60]!r} are not numbers; write for example 0.7, 0.3.") from None


def combined_html(found: dict[str, Any]) -> str:
    """How the parents go together and what the result keeps."""
    names = found["parents"]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{found['weights'][at]:g}</td><td>{found['norms'][at]:.3g}</td>"
        + "".join(f"<td>{value:.3f}</td>" for value in found["cosines"][at])
        + "</tr>"
        for at, name in enumerate(names)
    )
    warned = "".join(f"<p class='fault'>{escape(line)}</p>" for line in found["warnings"])
    head = f"<thead><tr><th>Parent</th><th>Weight</th><th>‖ΔW‖</th>{head}</tr></thead>"
    table = f"<table class='rows'>{head}<tbody>{lines}</tbody></table>"
    card = facts(
        [
            ("Energy lost by the rank", f"{found['energy_lost']:.3%} of ‖ΔW‖²"),
            ("Sign conflicts", f"{found['sign_conflicts']:.1%} of what they change pulls against the others"),
            ("Rank of the result", found["rank"]),
            ("Size", size(found["bytes"])),
            ("Kept as", found.get("name", "not kept")),
        ],
        "Combined",
    )
    hint = (
        "<p class='hint'>The columns to the right are cosines: 1 the same direction, 0 unrelated, "
        "−1 opposite.</p>"
    )
    return f"{card}<div class='wide'>{table}</div>{hint}{warned}"
