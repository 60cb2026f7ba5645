"""Adapters of one base into a new one: choose, weigh, see what would become of them, keep."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from app.web.parts.choice import adapters_beside, choice, weighed
from app.web.parts.job_result import result_of_choice, starts_job
from app.web.parts.markup import Html, facts, size
from app.web.parts.options_form import option_field
from app.web.parts.panes import bar
from app.web.parts.routes import link
from app.web.parts.shell import QUIET, Shell, refusal
from core.combine.config import CombineConfig
from core.combine.methods import COMBINE_METHODS
from core.errors import InvalidConfig
from storage.tables import Job


def combine_form(shell: Shell, opened: gr.Button) -> None:
    """Lay out the form and bind its handlers. `opened` opens it."""
    workbench = shell.workbench
    parts = choice(
        "combine-adapters",
        "Adapters to combine, each with its weight",
        lambda asked: adapters_beside(workbench.registry, asked),
        placeholder="Add an adapter",
        help="Of one base. A weight of 1 takes all of what an adapter changes, a negative one takes it away.",
        several=True,
        opens_with=("combine-adapters", "adapters"),
    )
    fields = _option_fields()
    evaluate = gr.Checkbox(
        False,
        label="Measure the validation losses",
        info="Of each on the rows that its run kept back, alone and combined.",
    )
    name = gr.Textbox(value="", label="Name of the new adapter", info="Needed to keep it.")
    with bar():
        attempt = gr.Button("Try", size="md", scale=0)
        keep = gr.Button("Combine and keep", variant="primary", size="md", scale=0)
    said, result = gr.HTML(), gr.HTML()
    names = list(fields)

    def start(chosen: str, measured: bool, *values: Any) -> Job:
        options = dict(zip(names, values, strict=True))
        return workbench.adapters.combine(weighed(chosen), options, evaluate=measured)

    def start_keeping(chosen: str, kept_as: str, measured: bool, *values: Any) -> Job:
        if not kept_as.strip():
            raise refusal("Give the new adapter a name first.")
        options = dict(zip(names, values, strict=True))
        return workbench.adapters.combine(weighed(chosen), options, kept_as.strip(), evaluate=measured)

    def show(chosen: str, *values: Any) -> tuple[object, ...]:
        options = dict(zip(names, values, strict=True))
        words, done = result_of_choice(
            workbench.registry, "combine_adapters", lambda job: is_of(job, weighed(chosen), options)
        )
        return words, combined_html(done.result, done.arguments["config"]) if done else ""

    shell.refresh(show, [parts, *fields.values()], [said, result])
    # What the browser has kept is in the field by the time that it is opened.
    for event in (opened.click, parts.submit, *[field.input for field in fields.values()]):  # type: ignore[attr-defined]
        shell.also_after(event)
    starts_job(shell, attempt.click, start, [parts, evaluate, *fields.values()])
    starts_job(shell, keep.click, start_keeping, [parts, name, evaluate, *fields.values()])


def is_of(job: Job, weights: Mapping[str, float], options: Mapping[str, object]) -> bool:
    """Whether a job has combined just these adapters in this way, whatever it has measured beside."""
    given = {one["name"]: one["weight"] for one in job.arguments["parts"]}
    try:
        return given == weights and job.arguments["config"] == CombineConfig.parse(options).to_dict()
    except InvalidConfig:  # half typed
        return False


def _option_fields() -> dict[str, Component]:
    """The method with a line about each, and those options that matter to it."""
    method, *others = CombineConfig.options()
    kinds = COMBINE_METHODS.all().values()
    chosen = gr.Dropdown(
        [(f"{kind.label}: {kind.help}", kind.name) for kind in kinds],
        value=method.default,
        label=method.label,
        interactive=True,
    )
    with gr.Row(equal_height=True):
        fields = {one.name: option_field(one) for one in others}

    def fitting(name: str) -> list[Component]:
        uses = COMBINE_METHODS.get(name).uses
        return [type(field)(visible=key in uses) for key, field in fields.items()]

    for key, field in fields.items():
        field.visible = key in COMBINE_METHODS.get(method.default).uses
    chosen.change(fitting, chosen, list(fields.values()), **QUIET)
    return {method.name: chosen, **fields}


def combined_html(found: dict[str, Any], config: dict[str, Any]) -> str:
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
    name = found.get("name")
    card = facts(
        [
            ("Method", config["method"]),
            ("Energy lost by the rank", f"{found['energy_lost']:.3%} of ‖ΔW‖²"),
            ("Sign conflicts", f"{found['sign_conflicts']:.1%} of what they change pulls against the others"),
            *_losses(found),
            ("Rank of the result", found["rank"]),
            ("Size", size(found["bytes"])),
            ("Kept as", Html(link(name, "adapters", name=name)) if name else "not kept: this was a try"),
        ],
        "Combined" if name else "What would become of them",
    )
    hint = (
        "<p class='hint'>The columns to the right are cosines: 1 the same direction, 0 unrelated, "
        "−1 opposite.</p>"
    )
    return f"{card}<div class='wide' tabindex='0'>{table}</div>{hint}{warned}"


def _losses(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What each adapter's own task loses, where that was measured."""
    return [
        (
            f"Validation loss of {name}",
            f"{pair[0]:.4f} alone → {pair[1]:.4f} combined" if pair else "not known: its data are not here",
        )
        for name, pair in zip(found["parents"], found.get("losses", ()), strict=False)
    ]
