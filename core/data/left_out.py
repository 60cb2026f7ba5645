"""Columns of text that a reading of the rows would leave out: a prompt that is lost without a word is worse
than a question to the user. Needs no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from core.data.findings import RowFault
from core.data.formats import Example, Seen
from core.data.formats._columns import ANSWERS, QUESTIONS, SYSTEMS, TURNS
from core.data.mapping import Candidate, DataMapping
from core.data.reading import Row
from core.data.turn_keys import is_nothing

_LOOKED_AT = 50  # rows
_LEAST_IN_TEXT = 20  # characters of a prompt that stands in a plain text
_WORD = re.compile(r"[^\W\d_]{2,}")
_LEAST_WORDS = 3  # of running text; names, dates and addresses have fewer
_MORE = (
    "instructions",
    "system_message",
    "sys",
    "history",
    "knowledge",
    "background",
    "passage",
    "document",
    "article",
    "story",
    "evidence",
    "hint",
    "rationale",
    "explanation",
    "reasoning",
    "thinking",
    "thought",
    "thoughts",
    "chain_of_thought",
    "cot",
)
# Columns with these names belong to what is asked and answered, however short they are.
_CONTENT = frozenset((*QUESTIONS, *ANSWERS, *SYSTEMS, *TURNS, *_MORE, "text", "content", "body", "title"))
_OF_CONVERSATIONS = _CONTENT - {"text", "content", "body", "title"}
# Where rows came from and what they are about, in however many words.
_REMARKS = re.compile(
    r"(?:^|_)(?:id|ids|uuid|hash|url|uri|link|source|src|original|origin|dataset|subset|split|file|filename|path|"
    r"license|author|model|date|time|timestamp|created|updated|lang|language|type|category|categories|topic|topics|"
    r"tag|tags|keywords|meta|metadata|label|labels|intent|task|skill|skills|domain|subject|difficulty|level|"
    r"version|comment|comments|note|notes)(?:$|_)"
)


def text_left_out(seen: Seen, candidate: Candidate) -> tuple[str, ...]:
    """The columns with text that the candidate leaves out, but for text that stands in its rows anyhow."""
    used = candidate.mapping.used_columns()
    others = [column for column in seen.columns if column not in used]
    left = [column for column in others if _is_content(seen, column, candidate.mapping)]
    if not left:
        return ()
    said = _said(seen, candidate)
    return tuple(column for column in left if not _stands_there(column, said))


def left_out_hint(columns: Sequence[str]) -> str:
    """What a person is told of them."""
    named = ", ".join(map(repr, columns))
    begin = f"The columns {named} hold" if len(columns) > 1 else f"The column {named} holds"
    return f"{begin} text that would be left out: say whether that is right, or which is which."


def _is_content(seen: Seen, column: str, mapping: DataMapping) -> bool:
    """Whether a column holds something said, by its name or by what stands in it. Beside a plain text every
    running text counts, beside turns only what is called so.
    """
    name, turns = column.strip().lower(), "turns" in mapping.columns
    remark = turns or ("text" not in mapping.columns and _REMARKS.search(name))
    values = [row[column] for row in seen.rows[:_LOOKED_AT] if not is_nothing(row.get(column))]
    if name in (_OF_CONVERSATIONS if turns else _CONTENT):
        return any(not isinstance(value, (bool, int, float)) for value in values)
    if remark or 2 * len(values) < len(seen.rows[:_LOOKED_AT]):
        return False
    texts = [value for value in values if isinstance(value, str)]
    running = sum(len(_WORD.findall(text)) >= _LEAST_WORDS and "://" not in text[:9] for text in texts)
    return 2 * running > len(values) and 2 * len(set(texts)) > len(texts)


def _said(seen: Seen, candidate: Candidate) -> list[tuple[Row, Example]]:
    """Rows with what the candidate makes of them."""
    convert = candidate.mapping.data_format.converter(candidate.mapping)
    found = []
    for row in seen.rows[:_LOOKED_AT]:
        try:
            found.append((row, convert(1, row)))
        except RowFault:
            continue
    return found


def _stands_there(column: str, said: Sequence[tuple[Row, Example]]) -> bool:
    """Whether in most rows the column says nothing that is not in the row, or is the row as somebody rendered
    it.
    """
    given = [(str(row[column]).strip(), row_of) for row, row_of in said if not is_nothing(row.get(column))]
    least = _LEAST_IN_TEXT if column.strip().lower() not in ANSWERS else math.inf
    twice = [text for text, example in given if _within(text, example, least) or _rendered(text, example)]
    return bool(given) and 10 * len(twice) >= 9 * len(given)


def _within(text: str, example: Example, least: float) -> bool:
    """Whether a turn says it, or a plain text does and not by chance, as it has a short answer's words."""
    if example.text:
        return len(text) >= least and text in example.text
    return any(text in turn["content"] for turn in example.messages)


def _rendered(text: str, example: Example) -> bool:
    """Whether the text holds all turns, and little else."""
    said = [turn["content"].strip() for turn in example.messages]
    return bool(said) and all(one in text for one in said) and 4 * sum(map(len, said)) >= len(text)
