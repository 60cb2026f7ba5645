"""Columns of text that a reading of the rows would leave out: a prompt that is lost without a word is worse
than a question to the user. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.data.findings import RowFault
from core.data.formats import Example, Seen
from core.data.formats._columns import ANSWERS, QUESTIONS, SYSTEMS, TURNS
from core.data.mapping import Candidate
from core.data.reading import Row
from core.data.turn_keys import is_nothing

_LOOKED_AT = 50  # rows
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
    turns = "turns" in candidate.mapping.columns
    spelled = {column: column.strip().lower() for column in seen.columns if column not in used}
    left = [column for column, name in spelled.items() if _is_content(seen, column, name, turns=turns)]
    if not left:
        return ()
    said = _said(seen, candidate)
    return tuple(column for column in left if not _stands_there(column, said))


def left_out_hint(columns: Sequence[str]) -> str:
    """What a person is told of them."""
    named = ", ".join(map(repr, columns))
    begin = f"The columns {named} hold" if len(columns) > 1 else f"The column {named} holds"
    return f"{begin} text that would be left out: say whether that is right, or which is which."


def _is_content(seen: Seen, column: str, name: str, *, turns: bool) -> bool:
    """Whether a column holds something said, by its name or by what stands in it."""
    values = [row[column] for row in seen.rows[:_LOOKED_AT] if not is_nothing(row.get(column))]
    if name in (_OF_CONVERSATIONS if turns else _CONTENT):
        return any(not isinstance(value, (bool, int, float)) for value in values)
    if turns or _REMARKS.search(name) or 2 * len(values) < len(seen.rows[:_LOOKED_AT]):
        return False
    texts = [value for value in values if isinstance(value, str)]
    running = sum(len(_WORD.findall(text)) >= _LEAST_WORDS and "://" not in text[:9] for text in texts)
    return 2 * running > len(values) and 2 * len(set(texts)) > len(texts)


def _said(seen: Seen, candidate: Candidate) -> list[tuple[Row, list[str]]]:
    """Rows with what the candidate makes of them."""
    convert = candidate.mapping.data_format.converter(candidate.mapping)
    found = []
    for row in seen.rows[:_LOOKED_AT]:
        try:
            found.append((row, _texts(convert(1, row))))
        except RowFault:
            continue
    return found


def _texts(example: Example) -> list[str]:
    return [example.text] if example.text else [turn["content"] for turn in example.messages]


def _stands_there(column: str, said: Sequence[tuple[Row, list[str]]]) -> bool:
    """Whether in most rows the column says nothing that is not in the row, or is the row as somebody rendered
    it.
    """
    given = [(str(row[column]).strip(), texts) for row, texts in said if not is_nothing(row.get(column))]
    twice = [
        text
        for text, texts in given
        if any(text in one for one in texts) or all(one.strip() in text for one in texts)
    ]
    return bool(given) and 10 * len(twice) >= 9 * len(given)
