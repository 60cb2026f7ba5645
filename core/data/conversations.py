"""Conversations in memory as rows to train on, for those who write a script rather than import a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from core.data.dataset_file import StoredRow
from core.data.findings import RowFault
from core.data.formats import DATA_FORMATS, Example
from core.data.mapping import DataMapping
from core.data.rendering import Renderer
from core.data.tokens import TokenRows, tokenised_in_memory
from core.errors import InvalidData


def conversation_rows(
    conversations: Sequence[Sequence[dict[str, Any]]],
    renderer: Renderer,
    max_length: int,
    *,
    validation_rows: int = 0,
) -> TokenRows:
    """Lists of turns, each {"role": …, "content": …}, rendered for one base; what a file of such rows may
    hold, a list may. Loss falls on the assistant's answers.

    max_length in tokens; the first `validation_rows` are judged on and not trained on. Raises InvalidData
    with the number of the conversation, counted from 1, that cannot be used.
    """
    return rendered_rows(_examples(conversations), renderer, max_length, validation_rows=validation_rows)


def rendered_rows(
    examples: Sequence[Example], renderer: Renderer, max_length: int, *, validation_rows: int = 0
) -> TokenRows:
    """As conversation_rows(), of conversations or texts that have been checked already."""
    file = tokenised_in_memory((StoredRow(one.row, 0, one) for one in examples), renderer)
    return TokenRows(file, max_length, validation=np.arange(len(examples)) < validation_rows)


def _examples(conversations: Iterable[Sequence[dict[str, Any]]]) -> list[Example]:
    """By the rules for rows of a file in the format messages."""
    convert = DATA_FORMATS.get("messages").converter(DataMapping("messages", {"turns": "messages"}))
    found = []
    for number, turns in enumerate(conversations, 1):
        try:
            found.append(convert(number, {"messages": turns}))
        except RowFault as fault:
            raise InvalidData(f"Conversation {number}: {fault.detail}") from None
    if not found:
        raise InvalidData("There are no conversations to train on; give at least one.")
    return found
