"""The checklist before a training, in the plan's pane: what needs a look stands there, the rest is folded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from core.train.checklist import BAD, GOOD, MIND, OPEN, Check

_WORDS = {GOOD: "as it should be", MIND: "mind this", BAD: "refused", OPEN: "not known yet"}
_MARKS = {GOOD: "✓", MIND: "!", BAD: "✗", OPEN: "·"}


def checklist_html(checks: Sequence[Check]) -> str:
    """What is to be minded first, the others behind how many they are."""
    fine = [one for one in checks if one.state == GOOD]
    rest = [one for one in checks if one.state != GOOD]
    rest.sort(key=lambda one: (BAD, MIND, OPEN).index(one.state))
    many = f"{len(fine)} of {len(checks)} points are as they should be"
    return (
        f"<section class='checklist' aria-label='Checklist'>{_list(rest)}"
        f"<details><summary>{many}</summary>{_list(fine)}</details></section>"
    )


def _list(checks: Sequence[Check]) -> str:
    return f"<ul>{''.join(map(_item, checks))}</ul>" if checks else ""


def _item(one: Check) -> str:
    mark = f"<i role='img' aria-label='{_WORDS[one.state]}'>{_MARKS[one.state]}</i>"
    return f"<li class='{one.state}'>{mark}<span><b>{escape(one.label)}</b> {escape(one.reason)}</span></li>"
