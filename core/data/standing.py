"""Whether all that a row says stands in the text that a chat template makes of it.

White space does not count, since many templates trim it; nor does the place of a system turn, which many move
into the first question.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Sequence

from core.data.formats import Message

_SHORT = 16  # characters: a shorter text may stand in the template's own words by chance
_SHOWN = 60


def left_out(full: str, messages: Sequence[Message], absent: Collection[int] = ()) -> int | None:
    """The first turn whose content does not stand in the text `full`; None if all do.

    Turns stand one behind another, in their order. absent: turns that the template leaves out whatever they
    hold, as was seen with others in their place.
    """
    text, cursor = _squeezed(full), 0
    for at, message in enumerate(messages):
        content = message["content"]
        if not content.strip():
            continue
        moves = message["role"] == "system"
        found = _find(text, content, 0 if moves else cursor)
        if found < 0 or (at in absent and len(content.strip()) <= _SHORT):
            return at
        cursor = cursor if moves else found
    return None


def excerpt(full: str, content: str) -> str:
    """The first line of `content` that does not stand in `full`, shortened, in quotation marks."""
    text = _squeezed(full)
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    missing = next((line for line in lines if _find(text, line, 0) < 0), content.strip())
    return repr(missing if len(missing) <= _SHOWN else missing[: _SHOWN - 1] + "…")


def _find(text: str, content: str, start: int) -> int:
    """Where the content ends in the text, as it is or as templates escape it; -1 if it is not there."""
    for written in (content, json.dumps(content, ensure_ascii=False)[1:-1], html.escape(content)):
        sought = _squeezed(written)
        if (at := text.find(sought, start)) >= 0:
            return at + len(sought)
    return -1


def _squeezed(text: str) -> str:
    return "".join(text.split())
