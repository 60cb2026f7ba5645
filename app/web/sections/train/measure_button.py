"""What the run in the form would take, measured when asked: how far it is, a way to end it, the result."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from app.shared.errors import MeasuringEnded
from app.web.parts.markup import duration, facts, size
from app.web.parts.shell import QUIET, QUIET_QUEUED, Shell, told
from app.web.sections.train.form import TrainForm, require_chosen
from app.web.sections.train.form_values import FormValues
from app.web.sections.train.planning import memory_bar, offers_html

_CHANGED = "<p class='plan-hint'>The form was changed since; this is of before.</p>"


def bind_measuring(
    shell: Shell, form: TrainForm, measure: gr.Button, end: gr.Button, measured: gr.HTML
) -> None:
    """Measure when asked, tell how far it is, and offer what would make the run fit."""
    training = shell.workbench.training
    under_way = gr.State("")
    """Under which name it is measured, which the other button ends."""
    asked_for = gr.State([])

    @told
    def find_out(base: str | None, dataset: str | None, options: str) -> Iterator[tuple[object, ...]]:
        require_chosen(base, dataset)
        wanted = FormValues.read(options).wanted()
        name, asked = secrets.token_hex(8), [base, dataset, options]
        yield *_buttons(busy=True), progress_html("Waiting for the engine"), name, asked
        try:
            for found, offered in training.measuring(str(base), str(dataset), wanted, name):
                shown = (
                    progress_html(**found) if "text" in found else measured_html(found) + offers_html(offered)
                )
                yield gr.skip(), gr.skip(), shown, gr.skip(), gr.skip()
        except MeasuringEnded:
            yield (
                gr.skip(),
                gr.skip(),
                "<p class='plan-hint'>The measuring was ended.</p>",
                gr.skip(),
                gr.skip(),
            )

    def done(
        base: str | None, dataset: str | None, options: str, asked: list[object], shown: str
    ) -> tuple[object, ...]:
        stale = bool(shown) and "data-result" in shown and [base, dataset, options] != asked
        kept = _CHANGED + shown if stale else "" if "data-progress" in shown else gr.skip()
        return *_buttons(busy=False), kept, ""

    @told
    def end_it(name: str) -> None:
        if name:
            training.end_measuring(name)

    event = measure.click(
        find_out,
        form.training,
        [measure, end, measured, under_way, asked_for],
        concurrency_id="measure",
        **QUIET_QUEUED,
    )
    event.then(done, [*form.training, asked_for, measured], [measure, end, measured, under_way], **QUIET)
    end.click(end_it, under_way, None, **QUIET)


def _buttons(*, busy: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(visible=not busy), gr.Button(visible=busy)


def progress_html(text: str, share: float | None = None) -> str:
    """How far it is."""
    known = "" if share is not None else "unknown"
    return (
        f"<div class='measuring' data-progress role='status'><span>{escape(text)} …</span>"
        f"<span class='bar {known}'><i style='width:{100 * (share or 0):.0f}%'></i></span></div>"
    )


def measured_html(found: dict[str, Any]) -> str:
    """What a short trial has shown."""
    several = f" ({found['together']} runs at once)" if found["together"] > 1 else ""
    where = f" on the first of {found['cards']} cards" if found["cards"] > 1 else ""
    notices = "".join(f"<p class='plan-hint'>{escape(one)}</p>" for one in found["notices"])
    card = facts(
        [
            ("Peak memory", f"{size(found['peak_bytes'])} of {size(found['total_bytes'])}{where}{several}"),
            *([("Time", _time_text(found)), ("Time a step", _pace_text(found))] if found["fits"] else []),
            ("Disk", f"at most {size(found['disk_bytes'])} for checkpoints"),
        ],
        f"Measured: {found['verdict']}",
    )
    return f"<div data-result>{card}{memory_bar(found['peak_bytes'], found['total_bytes'])}{notices}</div>"


def _time_text(found: dict[str, Any]) -> str:
    parts = [
        f"{duration(found[key])} for {name}"
        for key, name in (("evaluating_seconds", "evaluations"), ("saving_seconds", "checkpoints"))
        if found[key] >= 1
    ]
    return f"about {duration(found['seconds'])}{', of it ' + ' and '.join(parts) if parts else ''}"


def _pace_text(found: dict[str, Any]) -> str:
    return f"{found['seconds_a_step']:.2f} s on average over {found['steps']:,} steps"
