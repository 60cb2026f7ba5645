"""Lists and objects as Python prints them, which CSV files of pandas hold: quotes of either kind, None, True,
and NumPy's arrays, which have no commas between their items. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<number>-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
  | (?P<word>None|True|False|nan)\b
  | (?P<skipped>,\s*dtype=[^()\[\]{}]*?(?=\s*\)))
  | (?P<array>array\()
  | (?P<sign>[\[\](){},:])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f"}
# What closes each, and what JSON has in their place: an array's own parentheses mean nothing.
_BRACKETS = {"[": ("]", "[", "]"), "{": ("}", "{", "}"), "(": (")", "[", "]"), "array(": (")", "", "")}
_WORDS = {"None": "null", "True": "true", "False": "false", "nan": "NaN"}


def parsed_repr(text: str) -> Any:
    """What Python printed as `text`: lists, objects, texts, numbers. Nothing is executed.

    Two values without a comma between them are two items, as NumPy prints them.
    Raises ValueError for anything else.
    """
    return json.loads("".join(_as_json(text)))


def _as_json(text: str) -> Iterator[str]:
    at, after_value = 0, False
    open_brackets: list[str] = []
    end = len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"character {at + 1} is not as Python prints values")
        at, kind, token = found.end(), str(found.lastgroup), found.group(str(found.lastgroup))
        if kind == "skipped":
            continue
        opens = kind == "array" or token in ("[", "{", "(")
        if after_value and (opens or kind in ("text", "number", "word")):
            yield ","
        if opens:
            open_brackets.append(token)
            yield _BRACKETS[token][1]
            after_value = False
        elif kind == "sign" and token in "])}":
            if not open_brackets or _BRACKETS[open_brackets[-1]][0] != token:
                raise ValueError(f"the bracket at character {at} closes none")
            yield _BRACKETS[open_brackets.pop()][2]
            after_value = True
        else:
            yield _value(kind, token)
            after_value = kind != "sign"


def _value(kind: str, token: str) -> str:
    if kind == "text":
        return json.dumps(_ESCAPE.sub(_unescaped, token[1:-1]))
    return _WORDS.get(token, token)


def _unescaped(found: re.Match[str]) -> str:
    code = found.group(1)
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number <= 0x10FFFF else found.group()
    return _ESCAPED.get(code, found.group())
