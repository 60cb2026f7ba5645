"""Messages, as chat templates take them: turns with role and content."""

from __future__ import annotations

from core.data.formats._turns import TurnsFormat


class Messages(TurnsFormat):
    """{"messages": [{"role": "user", "content": "…"}, …]}."""

    name, label, order = "messages", "messages", 0
    help = "a column of turns with role and content"
    said, expected = "chat **messages**", "messages"
    own_roles = (("turns", "Turns"),)
    keys = ("role", "content")


KIND = Messages()
