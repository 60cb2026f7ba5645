"""A terminal or a pipe that cannot show every character: what it cannot is written in others."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any

_PLAIN = {"…": "...", "–": "-", "—": "-", "→": "->", "×": "x", "·": ".", "≥": ">=", "≤": "<=", "✓": "+"}
_PLAIN |= {"✗": "x", "“": '"', "”": '"', "‘": "'", "’": "'"}


def speak_any_encoding() -> None:
    """From here on nothing that is printed fails for its characters, or since there is nowhere to print to:
    a program without a terminal has no streams on Windows.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    codecs.register_error("plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def to_json(content: Any) -> str:
    """One line of JSON, in characters that standard output can show."""
    return json.dumps(content, ensure_ascii=not _shows_all(sys.stdout), default=str)


def _shows_all(stream: Any) -> bool:
    return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Handles an error of encoding: typographic signs by plain ones, anything else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    numbered = (one.encode("ascii", "backslashreplace").decode() for one in wrong)
    return "".join(_PLAIN.get(one, number) for one, number in zip(wrong, numbered, strict=True)), error.end
