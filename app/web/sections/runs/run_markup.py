"""A run in plain words: its state, the options it was started with, what was changed, its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from app.service.runs import options_of
from app.service.workbench import Workbench
from app.web.parts.markup import day, moment, number, size, state_badge
from app.web.parts.routes import link
from core.lora.kinds import ADAPTER_KINDS
from core.options import Option
from core.train.objectives import OBJECTIVES
from core.train.training_options import all_options, by_subject
from storage.checkpoints import best_checkpoint
from storage.errors import NotFound
from storage.tables import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PAUSED,
    QUEUED,
    STATE,
    STOPPED,
    Adapter,
    Checkpoint,
    Note,
    Run,
)

_KINDS = {FINISHED: "good", FAILED: "bad", INTERRUPTED: "bad", STOPPED: "calm", PAUSED: "calm"}
_HEADS: Mapping[str, Any] = {"kind": ADAPTER_KINDS, "objective": OBJECTIVES}
_NO_VALUE = {
    "max_steps": "by epochs",
    "eval_steps": "about ten times a run",
    "save_steps": "by time alone",
    "save_minutes": "by steps alone",
    "max_grad_norm": "no clipping",
}


def state_words(state: str) -> tuple[str, str]:
    """A state in a plain word, and the kind of colour it has."""
    return ("waits" if state == QUEUED else state), _KINDS.get(state, "busy")


def shown_value(option: Option | None, value: Any) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if option is not None and option.name in _HEADS:
        head = _HEADS[option.name].all().get(value)
        return head.label if head is not None else str(value)
    if option is not None and option.several:
        words = dict(option.several)
        names = [one.strip() for one in str(value).split(",") if one.strip()]
        return "; ".join(words.get(one, one) for one in names)
    if option is not None and not value and option.name in _NO_VALUE:
        return _NO_VALUE[option.name]
    text = (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
    return f"{text} {option.unit}".strip() if option is not None else text


def options_html(workbench: Workbench, run: Run) -> str:
    """All that a run was started with; what differs from the defaults is marked, with the default beside
    it.
    """
    values, cards = options_of(run), [_about(workbench, run)]
    for subject, options in by_subject().items():
        rows = [(one, values[one.name]) for one in options if _says_something(one, values)]
        cards += [_options_card(subject, rows)] if rows else []
    return f"<div class='cards run-options'>{''.join(cards)}</div>"


def _says_something(option: Option, values: Mapping[str, Any]) -> bool:
    """Whether a run has a value for it: an empty one counts where the default is not."""
    return option.name in values and (values[option.name], option.default) != ("", "")


def _about(workbench: Workbench, run: Run) -> str:
    adapter = adapter_of(workbench, run)
    energy = "" if run.kilowatt_hours is None else f"{run.kilowatt_hours:.4f} kWh"
    rows = [
        ("Number", str(run.id)),
        ("Base model", link(run.base_name, "models", name=run.base_name)),
        (
            "Data set",
            f"{link(run.dataset_name, 'data', name=run.dataset_name)}, version {run.dataset_version}",
        ),
        ("Adapter", link(adapter.name, "adapters", name=adapter.name) if adapter else ""),
        ("Queued", day(run.created)),
        ("Started", day(run.started)),
        ("Ended", day(run.ended)),
        ("Energy", energy),
        ("Trains at once with others", "yes, with its sweep" if run.sweep else "yes" if run.together else ""),
    ]
    shown = "".join(f"<dt>{escape(label)}</dt><dd>{value}</dd>" for label, value in rows if value)
    return f"<div class='card'><h3>The run</h3><dl class='facts'>{shown}</dl></div>"


def adapter_of(workbench: Workbench, run: Run) -> Adapter | None:
    """The adapter that a run has left, if it is still here."""
    try:
        return workbench.registry.get(Adapter, run.adapter_id) if run.adapter_id is not None else None
    except NotFound:
        return None


def _options_card(title: str, rows: Iterable[tuple[Option, Any]]) -> str:
    return (
        f"<div class='card'><h3>{escape(title)}</h3><dl class='facts'>"
        f"{''.join(_option_row(option, value) for option, value in rows)}</dl></div>"
    )


def _option_row(option: Option, value: Any) -> str:
    changed = value != option.default
    has_default = changed and option.default != ""
    default = f" <small>default {escape(shown_value(option, option.default))}</small>" if has_default else ""
    kind = " class='differs'" if changed else ""
    return (
        f"<dt title='{escape(option.help)}'>{escape(option.label)}</dt>"
        f"<dd{kind}>{escape(shown_value(option, value))}{default}</dd>"
    )


def changes_html(run: Run) -> str:
    """What was changed while it was under way: when, from which step on, from what to what."""
    known, now = all_options(), options_of(run) | _first_values(run)
    lines = []
    for change in run.changes:
        step = change.get("step")
        when = f"from step {step + 1:,} on" if step is not None else "from its next step on"
        words = []
        for name, value in change["values"].items():
            option = known.get(name)
            label = option.label if option else name
            words.append(f"{label}: {shown_value(option, now.get(name))} → {shown_value(option, value)}")
            now[name] = value
        said = escape("; ".join(words))
        lines.append(f"<tr><td>{moment(change.get('at'))}</td><td>{when}</td><td>{said}</td></tr>")
    if not lines:
        return "<p class='hint'>Nothing was changed since it was started.</p>"
    head = "<thead><tr><th>When</th><th>Counts</th><th>What</th></tr></thead>"
    return f"<table class='rows'>{head}<tbody>{''.join(lines)}</tbody></table>"


def _first_values(run: Run) -> dict[str, Any]:
    """What the options that were changed were at first."""
    return dict(run.config.get("train", {}))


def states_html(notes: Sequence[Note]) -> str:
    """What became of a run, and when; the newest first."""
    lines = "".join(_state_line(note) for note in reversed(notes) if note.kind == STATE)
    return f"<ol class='states' aria-label='States of the run'>{lines}</ol>" if lines else ""


def _state_line(note: Note) -> str:
    state, _, reason = note.text.partition(": ")
    said = f" {escape(reason)}" if reason else ""
    return f"<li><time>{moment(note.at)}</time> {state_badge(state.lower())}{said}</li>"


def history_html(workbench: Workbench, run: Run) -> str:
    """Its changes and its states."""
    states = states_html(workbench.registry.measurements.notes(run.id or 0))
    return (
        f"<div class='card'><h3>Changes</h3>{changes_html(run)}</div>"
        f"<div class='card'><h3>States</h3>{states}</div>"
    )


def checkpoints_html(rows: Sequence[Checkpoint]) -> str:
    """The states that a run can go on from, the newest first."""
    if not rows:
        return (
            "<div class='empty'>No checkpoint yet. One is written every few minutes, after each evaluation "
            "that is the best so far, and by “Save now”.</div>"
        )
    best = best_checkpoint(rows)
    body = "".join(
        f"<tr><td>{row.step:,}{_mark(row, rows[0], best)}</td><td>{number(row.train_loss)}</td>"
        f"<td>{number(row.validation_loss)}</td><td>{size(row.size_bytes)} in {row.seconds:.1f} s</td>"
        f"<td>{moment(row.created)}</td></tr>"
        for row in rows
    )
    heads = "".join(f"<th>{one}</th>" for one in ("Step", "Train loss", "Validation loss", "Written", "When"))
    kept = "<p class='hint'>The last two and the best by validation loss are kept.</p>"
    return f"<table class='rows'><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{kept}"


def _mark(row: Checkpoint, newest: Checkpoint, best: Checkpoint | None) -> str:
    words = [word for word, one in (("newest", newest), ("best", best)) if one is row]
    return "".join(
        f" <span class='state {'good' if word == 'best' else 'calm'}'>{word}</span>" for word in words
    )


def checkpoint_choices(rows: Sequence[Checkpoint]) -> list[tuple[str, int]]:
    """The newest first, and which is the best."""
    best = best_checkpoint(rows)
    return [
        (
            f"step {row.step:,}"
            f"{f', validation {row.validation_loss:.4f}' if row.validation_loss is not None else ''}"
            f"{' · best' if row is best and len(rows) > 1 else ''}",
            row.id or 0,
        )
        for row in rows
    ]
