"""Messages, as chat templates take them: turns with role and content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.data.formats import Seen
from core.data.formats._columns import PARENTS, TURNS
from core.data.formats._turns import TurnsFormat
from core.data.reading import kind_of
from core.data.turn_keys import ROLE_KEYS, TEXT_KEYS, first_key
from core.data.turns import as_turns, is_turn


class Messages(TurnsFormat):
    """{"messages": [{"role": "user", "content": "…"}, …]}."""

    name, label, order = "messages", "messages", 0
    help = "a column of turns with role and content"
    said, expected = "chat **messages**", "messages"
    keys = ("role", "content")

    def _speaks(self, turn: dict[str, Any]) -> bool:
        """Also with other keys than these, but for ShareGPT's own pair."""
        said = first_key(turn, ROLE_KEYS), first_key(turn, TEXT_KEYS)
        return None not in said and not {"from", "value"} <= turn.keys()

    def hints(self, seen: Seen) -> list[str]:
        said = (
            'Each row is a single turn; put the turns of a conversation into one row, as {"messages": […]}.'
        )
        alone = all(map(is_turn, seen.rows)) and seen.first(PARENTS) is None
        return [*([said] if alone else []), *_no_turns(seen)]


KIND = Messages()


def _no_turns(seen: Seen) -> Iterator[str]:
    """What stands in a column that is called as if it held turns."""
    for column in (seen.names[name] for name in TURNS if name in seen.names):
        value = next((row[column] for row in seen.rows if row.get(column) is not None), None)
        turns = as_turns(value)
        if turns and first_key(turns[0], ROLE_KEYS) and first_key(turns[0], TEXT_KEYS):
            continue
        found = f"turns with {', '.join(map(repr, turns[0]))}" if turns else kind_of(value)
        if isinstance(value, (list, dict)) or str(value).lstrip()[:1] == "[":
            found = "an empty list" if value == [] else found
            yield f"The column {column!r} holds {found}; expected turns, each with role and content."
