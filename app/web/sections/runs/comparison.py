"""Runs beside each other as tables: their results, and the options in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from app.service.comparing import Compared, Comparison
from app.web.parts.markup import duration, number
from app.web.parts.routes import link
from app.web.sections.runs.run_markup import shown_value, state_words
from core.train.training_options import all_options

_LABELS = {"base_model": "Base model", "data": "Data set"}
_FIGURES = ("Steps", "Train loss", "Validation", "Best validation", "Time", "Energy")


def label_of(name: str) -> str:
    """An option's name as forms write it."""
    known = all_options()
    return _LABELS.get(name) or (known[name].label if name in known else name)


def plain(name: str, value: Any) -> str:
    """A value of it without its unit, as axes and cells have it."""
    known = all_options().get(name)
    words = shown_value(known, value)
    return words.removesuffix(f" {known.unit}") if known is not None and known.unit else words


def results_html(found: Comparison) -> str:
    """The table, the best run first, and why its order may say less than it seems to."""
    if not found.rows:
        return ""
    head = ["Run", "State", *_FIGURES[:4], *found.differing, *_FIGURES[4:]]
    names = "".join(
        f"<th class='{'differs' if name in found.differing else ''}'>{escape(label_of(name))}</th>"
        for name in head
    )
    best = (
        next((one for one in found.rows if math.isfinite(one.score)), None) if len(found.rows) > 1 else None
    )
    body = "".join(_row(one, found.differing, best=one is best) for one in found.rows)
    return f"{_table(names, body)}{_caveats(found)}"


def options_html(found: Comparison, *, every: bool = False) -> str:
    """One line an option and one column a run: what differs, or every option."""
    heads = "".join(
        f"<th title='{escape(one.run.name)}'>{link(shortened(one.run.name), 'runs', name=one.run.id)}</th>"
        for one in found.rows
    )
    lines = [_option_line(name, [one.options[name] for one in found.rows], True) for name in found.differing]
    if every:
        lines += [_option_line(name, [value] * len(found.rows), False) for name, value in found.same.items()]
    if not lines:
        return "<div class='empty'>They were started with the same options.</div>"
    return _table(f"<th>Option</th>{heads}", "".join(lines))


def shortened(text: str, most: int = 24) -> str:
    """A long name without its middle: its ends are where those of a sweep differ."""
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"


def _table(head: str, body: str) -> str:
    return (
        "<div class='wide' tabindex='0'><table class='rows compared'>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _option_line(name: str, values: Sequence[Any], differs: bool) -> str:
    known = all_options().get(name)
    kind = " class='differs'" if differs else ""
    cells = "".join(f"<td{kind}>{escape(shown_value(known, value))}</td>" for value in values)
    return f"<tr><th scope='row'>{escape(label_of(name))}</th>{cells}</tr>"


def _row(one: Compared, differing: Sequence[str], *, best: bool) -> str:
    options = [f"<td class='differs'>{escape(plain(name, one.options[name]))}</td>" for name in differing]
    energy = "–" if one.kilowatt_hours is None else f"{one.kilowatt_hours:.4f} kWh"
    losses = (number(one.train_loss), number(one.validation_loss), number(one.best_validation_loss))
    figures = [f"<td>{cell}</td>" for cell in (f"{one.steps:,}", *losses)]
    costs = f"<td>{duration(one.seconds)}</td><td>{energy}</td>"
    mark = " <b class='best'>best</b>" if best else ""
    word, kind = state_words(one.run.state)
    name = f"{link(one.run.name, 'runs', name=one.run.id)}{mark}"
    state = f"<span class='state {kind}'>{escape(word)}</span>"
    return f"<tr><td>{name}</td><td>{state}</td>{''.join(figures)}{''.join(options)}{costs}</tr>"


def _caveats(found: Comparison) -> str:
    said = "".join(f"<p class='fault'>{escape(one)}</p>" for one in found.caveats)
    return said or "<p class='hint'>By the best validation loss, the lowest first.</p>"
