"""Two answers word by word: what one says otherwise than the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from app.web.parts.common_words import common_words

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def differences_html(text: str, other: str) -> str:
    """The text, with the words marked that the other does not have, and the other's instead struck out."""
    new, old = _WORDS.findall(text), _WORDS.findall(other)
    parts, left, start = [], 0, 0
    for right, end, length in _same(old, new):
        parts.append(_changed(old[left:right], new[start:end]))
        left, start = right + length, end + length
        parts.append(escape("".join(new[end:start])))
    return f"<p class='as-written'>{''.join(parts)}</p>"


def _same(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """What both say: where it begins in each, and how many words it has. The end of both comes last, with 0.

    A space between words that differ is no reason to tell them one by one.
    """
    runs: list[tuple[int, int, int]] = []
    for left, right in common_words(old, new):
        if runs and (left, right) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((left, right, 1))
    yield from (run for run in runs if not (run[2] == 1 and old[run[0]].isspace()))
    yield len(old), len(new), 0


def _changed(old: Sequence[str], new: Sequence[str]) -> str:
    there, here = escape("".join(old)), escape("".join(new))
    return (f"<del>{there}</del>" if there else "") + (f"<ins>{here}</ins>" if here else "")
