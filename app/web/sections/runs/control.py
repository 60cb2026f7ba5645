"""What can be asked of the run that is shown: buttons for what its state allows, and their side sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.service.runs import has_prompts, options_of
from app.service.workbench import Workbench
from app.web.parts.panes import ask_first, bar, close_sheet, opener, sheet
from app.web.parts.routes import there
from app.web.parts.shell import QUIET_QUEUED, WORKING, Shell, inform, refusal, told
from app.web.sections.runs.baselines_sheet import baselines_opener, baselines_sheet
from app.web.sections.runs.chosen_runs import one_of, same_run
from app.web.sections.runs.run_markup import adapter_of, shown_value
from core.train.changes import CHANGEABLE
from core.train.training_options import all_options
from storage.tables import (
    ACTIVE_STATES,
    FINISHED,
    IDLE_STATES,
    QUEUED,
    RESUMABLE_STATES,
    RUNNING,
    UNDER_WAY,
    Run,
)

_REMOVE = "Remove this run with its curve, log and checkpoints? Its adapter stays. This cannot be undone."
_WHEN = {
    FINISHED: "It goes on from its last checkpoint to the new end, which counts from its beginning. Its "
    "adapter stays; the longer run leaves another.",
    QUEUED: "Counts from its first step.",
}
_ON_THE_WAY = "Counts from its next step on; log and chart tell from which."
_LATER = "Counts when it goes on: press Resume afterwards."


@dataclass(frozen=True)
class Control:
    """The buttons, and what the sheet about changes says."""

    outputs: list[Any]
    answer: Callable[[Run], list[object]]
    """What becomes of each output for a run."""


def run_control(shell: Shell, chosen: gr.HTML) -> Control:
    """Lay out the buttons and sheets, and bind them."""
    with bar():
        named = _buttons()
        change = opener("change-run", "Change …")
        removed = ask_first(
            "remove-run",
            "Remove …",
            _REMOVE,
            lambda keys: same_run(shell.workbench, keys),
            lambda asked, keys: _remove(shell.workbench, asked, keys),
            [chosen],
            [chosen],
        )
        baselines_opener()
    shell.soon(removed)
    baselines_sheet(shell, chosen)
    _bind(shell, named, chosen)
    with sheet("change-run", "Change this run"):
        said, fields = _change_form(shell, chosen)

    def answer(run: Run) -> list[object]:
        buttons = _button_states(shell.workbench, run)
        words = "Extend …" if run.state == FINISHED else "Change …"
        return [
            *[buttons[name] for name in named],
            gr.Button(words),
            f"<p class='lead'>{_when(run)}</p>",
            *_fields_now(run),
        ]

    return Control([*named.values(), change, said, *fields], answer)


def _buttons() -> dict[str, gr.Button]:
    """By what they are for; the first that can be pressed is the one that most people want."""
    words = {
        "chat": "Chat with it",
        "resume": "Resume",
        "pause": "Pause",
        "stop": "Stop and keep",
        "save": "Save now",
        "sample": "Sample now",
        "first": "First",
        "earlier": "Earlier",
        "later": "Later",
        "duplicate": "Duplicate with changes",
        "sweep": "Compare its sweep",
    }
    primary = ("chat", "resume")
    return {
        name: gr.Button(
            text, size="md", scale=0, visible=False, variant="primary" if name in primary else "secondary"
        )
        for name, text in words.items()
    }


def _button_states(workbench: Workbench, run: Run) -> dict[str, gr.Button]:
    """Each is there in those states only in which it does something; what was asked already says so."""
    stopping, pausing = run.stop_requested and run.active, run.pause_requested and run.active
    free, running = run.active and not stopping and not pausing, run.state == RUNNING
    order = [one.id for one in workbench.registry.queue.waiting()] if run.state == QUEUED else []
    place, last = (order.index(run.id), len(order) - 1) if run.id in order else (0, 0)
    saving, sampling = run.save_requested and free, run.sample_requested and free
    return {
        "chat": _shown(False)
        if (adapter := adapter_of(workbench, run)) is None
        else gr.Button(workbench.classifiers.try_words(adapter), visible=True),
        "resume": _shown(run.state in RESUMABLE_STATES),
        "pause": _asked("Pause", "Pausing …", shown=run.active and not stopping, asked=pausing),
        "stop": _asked(
            "Stop and keep",
            "Stopping …",
            shown=run.active or run.state in IDLE_STATES,
            asked=stopping,
            free=free or run.state in IDLE_STATES,
        ),
        "save": _asked("Save now", "Saving …", shown=running and free, asked=saving),
        "sample": _asked(
            "Sample now", "Sampling …", shown=running and free and has_prompts(run), asked=sampling
        ),
        "first": _shown(place > 1),
        "earlier": _shown(place > 0),
        "later": _shown(place < last),
        "duplicate": _shown(True),
        "sweep": _shown(bool(run.sweep)),
    }


def _shown(shown: bool) -> gr.Button:
    return gr.Button(visible=shown)


def _asked(text: str, under_way: str, *, shown: bool, asked: bool, free: bool = True) -> gr.Button:
    return gr.Button(under_way if asked else text, visible=shown, interactive=free and not asked)


def _bind(shell: Shell, named: dict[str, gr.Button], chosen: gr.HTML) -> None:
    workbench = shell.workbench
    runs = workbench.runs
    acts: dict[str, Callable[[int], object]] = {
        "pause": runs.pause,
        "resume": runs.resume,
        "save": runs.save,
        "sample": runs.sample,
        "stop": lambda run_id: _stop(workbench, run_id),
        "first": lambda run_id: _move(workbench, run_id, lambda place: 0),
        "earlier": lambda run_id: _move(workbench, run_id, lambda place: place - 1),
        "later": lambda run_id: _move(workbench, run_id, lambda place: place + 1),
    }
    for name, act in acts.items():
        shell.soon(named[name].click(_acting(act), chosen, None, concurrency_id="control", **WORKING))
    named["duplicate"].click(
        told(lambda keys: there("train", **{"from": one_of(keys)})), chosen, shell.go, **WORKING
    )
    named["chat"].click(told(lambda keys: _talk(workbench, one_of(keys))), chosen, shell.go, **WORKING)
    shell.soon(named["sweep"].click(told(lambda keys: _sweep(workbench, keys)), chosen, chosen, **WORKING))


def _acting(act: Callable[[int], object]) -> Callable[[str], None]:
    def handler(keys: str) -> None:
        act(one_of(keys))

    return told(handler)


def _stop(workbench: Workbench, run_id: int) -> None:
    run = workbench.registry.get(Run, run_id)
    if run.state not in (*ACTIVE_STATES, *IDLE_STATES):
        raise refusal(f"Run {run_id} ({run.name}) is {run.state}, so there is nothing to stop.")
    workbench.runs.stop(run_id)


def _move(workbench: Workbench, run_id: int, target: Callable[[int], int]) -> None:
    order = [run.id for run in workbench.registry.queue.waiting()]
    workbench.runs.move(run_id, target(order.index(run_id)) if run_id in order else 0)


def _talk(workbench: Workbench, run_id: int) -> str:
    run = workbench.registry.get(Run, run_id)
    adapter = adapter_of(workbench, run)
    if adapter is None:
        raise refusal(f"{run.name} has no adapter; keep one of its checkpoints first.")
    return there("playground", adapter=adapter.name)


def _sweep(workbench: Workbench, keys: str) -> str:
    run = workbench.registry.get(Run, one_of(keys))
    return ",".join(str(one.id) for one in workbench.registry.runs.of_sweep(run.sweep))


def _remove(workbench: Workbench, asked: tuple[int, float], keys: str) -> str:
    if same_run(workbench, keys) != asked:
        raise refusal("Another run is shown by now than the one you were asked about; look at it first.")
    workbench.runs.remove(asked[0])
    return ""


# The sheet about changes.


def _change_form(shell: Shell, chosen: gr.HTML) -> tuple[gr.HTML, list[gr.Textbox]]:
    """The sheet's sentence and its fields."""
    workbench, known = shell.workbench, all_options()
    said = gr.HTML()
    fields = [
        gr.Textbox(value="", label=f"New {known[name].label.lower()}", info=known[name].help)
        for name in CHANGEABLE
    ]
    apply = gr.Button("Apply", variant="primary", size="md")

    @told
    def change(keys: str, *values: str) -> list[str]:
        given = {name: value for name, value in zip(CHANGEABLE, values, strict=True) if value.strip()}
        if not given:
            raise refusal("Give at least one new value first.")
        run = workbench.registry.get(Run, one_of(keys))
        if run.state == FINISHED:
            workbench.runs.extend(run.id or 0, given)
            inform(f"{run.name} goes on from its last checkpoint.", "Extended")
        else:
            workbench.runs.change(run.id or 0, given)
            inform(f"{run.name} changes. {_when(run)}", "Changed")
        return [""] * len(fields)

    done = apply.click(change, [chosen, *fields], list(fields), concurrency_id="control", **QUIET_QUEUED)
    shell.soon(done)
    close_sheet(done, "change-run")
    return said, fields


def _when(run: Run) -> str:
    return _WHEN.get(run.state, _ON_THE_WAY if run.state in UNDER_WAY else _LATER)


def _fields_now(run: Run) -> Sequence[gr.Textbox]:
    """The fields, which say in grey what holds now."""
    values, known = options_of(run), all_options()
    return [
        gr.Textbox(placeholder=f"now {shown_value(known[name], values.get(name))}") for name in CHANGEABLE
    ]
