"""Small pieces of HTML. Everything that came from a person or a file is escaped here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

from storage.tables import FAILED, FINISHED, INTERRUPTED, NOT_PASSED, PASSED, PAUSED, STOPPED

_MOST_SHOWN = 1500  # characters of a turn


class Html(str):
    """Text that is HTML already, such as a link: what came from people or files in it is escaped."""


_KINDS = {FINISHED: "good", FAILED: "bad", INTERRUPTED: "bad", STOPPED: "calm", PAUSED: "calm"}


def state_badge(state: str) -> str:
    """A run's or job's state: a word, with a colour beside it."""
    return f"<span class='state {_KINDS.get(state, 'busy')}'>{escape(state)}</span>"


def check_badge(passed: bool) -> str:
    """The result of a check, in a word."""
    return f"<span class='state {'good' if passed else 'bad'}'>{PASSED if passed else NOT_PASSED}</span>"


def facts(rows: Sequence[tuple[str, Any]], title: str = "", level: int = 3) -> str:
    """A card of labelled facts under a heading of this level; empty ones are left out, and all but Html is
    escaped.
    """
    shown = "".join(
        f"<dt>{escape(label)}</dt><dd>{value if isinstance(value, Html) else escape(str(value))}</dd>"
        for label, value in rows
        if value not in (None, "")
    )
    head = f"<h{level}>{escape(title)}</h{level}>" if title else ""
    return f"<div class='card'>{head}<dl class='facts'>{shown}</dl></div>"


def title_line(name: str, badges: Sequence[tuple[str, str]] = (), mark: str = "") -> str:
    """The name of what is shown, with words in colours beside it."""
    words = "".join(f"<span class='state {kind}'>{escape(text)}</span>" for text, kind in badges)
    return f"<div class='title-line'><h2>{escape(f'{mark} {name}'.strip())}</h2>{words}</div>"


def empty(text: str, button: str = "", opens: str = "") -> str:
    """What stands where there is nothing yet, with a button that opens the sheet where something is made."""
    if not button:
        return f"<div class='empty'>{escape(text)}</div>"
    pressed = f"<button type='button' class='small' data-opens='{escape(opens)}'>{escape(button)}</button>"
    return f"<div class='empty'><p>{escape(text)}</p>{pressed}</div>"


def command_html(what: str, typed: str) -> str:
    """What to type in a terminal, with a button that copies it (copy.js)."""
    return (
        f"<div class='card command'><h3>{escape(what)}</h3>"
        f"<pre class='mono' tabindex='0'>{escape(typed)}</pre>"
        f"<button type='button' class='small' data-copy aria-label='Copy: {escape(what)}'>Copy</button></div>"
    )


def conversation(rows: Sequence[dict[str, Any]]) -> str:
    """The first rows of a data set, as turns."""
    cards = []
    for row in rows:
        if row.get("fault"):
            cards.append(
                f"<div class='card'>{_row_title(row)}<p class='fault'>{escape(row['fault'])}</p></div>"
            )
            continue
        turns = row["messages"] or [{"role": "text", "content": row["text"]}]
        inner = _tools(row.get("tools", ())) + "".join(map(_turn, turns))
        cards.append(f"<div class='card'>{_row_title(row)}{inner}</div>")
    return f"<div class='cards'>{''.join(cards)}</div>"


def _row_title(row: dict[str, Any]) -> str:
    """Its number, which counts by the file, and of several files which one."""
    of = f" of {escape(row['file'])}" if row.get("file") else ""
    return f"<h3>Row {row['row']}{of}</h3>"


def _turn(turn: dict[str, Any]) -> str:
    """A turn, with what it thought folded away and what it calls."""
    thought = escape(turn.get("reasoning", "")[:_MOST_SHOWN])
    folded = f"<details class='thinking'><summary>Thinking</summary>{thought}</details>" if thought else ""
    calls = "".join(f"<code>{escape(_called(one))}</code>" for one in turn.get("tool_calls", ()))
    role, said = escape(turn["role"]), escape(turn["content"][:_MOST_SHOWN])
    name = f" {escape(turn['name'])}" if turn.get("name") else ""
    return f"<div class='turn {role}'><b>{role}{name}</b>{folded}{said}{calls}</div>"


def _called(call: dict[str, Any]) -> str:
    return f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)[:_MOST_SHOWN]})"


def _tools(tools: Sequence[dict[str, Any]]) -> str:
    """The tools that a row may call, by their names."""
    names = ", ".join(escape(one["function"]["name"]) for one in tools)
    return f"<div class='turn tools'><b>tools</b>{names}</div>" if names else ""


def moment(at: float | None) -> str:
    """Local date and time to the second."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else ""


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def day(at: float | None) -> str:
    """Local date and time."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M") if at else ""


def size(count: int | float) -> str:
    """Bytes as people read them."""
    return (
        f"{count / 1e9:.2f} GB"
        if count >= 1e9
        else f"{count / 1e6:.1f} MB"
        if count >= 1e5
        else f"{count / 1e3:.1f} kB"
    )


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"
