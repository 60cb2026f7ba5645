"""Two answers word by word: what one says otherwise than the other."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from html import escape

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def differences_html(text: str, other: str) -> str:
    """The text, with the words marked that the other does not have, and the other's instead struck out."""
    new, old = _WORDS.findall(text), _WORDS.findall(other)
    parts = []
    for change, left, right, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        here, there = escape("".join(new[start:end])), escape("".join(old[left:right]))
        if change == "equal":
            parts.append(here)
            continue
        parts.append((f"<del>{there}</del>" if there else "") + (f"<ins>{here}</ins>" if here else ""))
    return f"<p class='as-written'>{''.join(parts)}</p>"
