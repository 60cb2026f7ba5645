"""Messages, as chat templates take them: turns with role and content."""

from __future__ import annotations

from typing import Any

from core.data.formats import Seen
from core.data.formats._columns import PARENTS
from core.data.formats._turns import TurnsFormat
from core.data.turn_keys import ROLE_KEYS, TEXT_KEYS, first_key
from core.data.turns import is_turn


class Messages(TurnsFormat):
    """{"messages": [{"role": "user", "content": "…"}, …]}."""

    name, label, order = "messages", "messages", 0
    help = "a column of turns with role and content"
    said, expected = "chat **messages**", "messages"
    own_roles = (("turns", "Turns"),)
    keys = ("role", "content")

    def _speaks(self, turn: dict[str, Any]) -> bool:
        """Also with other keys than these, but for ShareGPT's own pair."""
        said = first_key(turn, ROLE_KEYS), first_key(turn, TEXT_KEYS)
        return None not in said and not {"from", "value"} <= turn.keys()

    def hints(self, seen: Seen) -> list[str]:
        said = (
            'Each row is a single turn; put the turns of a conversation into one row, as {"messages": […]}.'
        )
        return [said] if all(map(is_turn, seen.rows)) and seen.first(PARENTS) is None else []


KIND = Messages()
