"""ShareGPT: turns with from and value."""

from __future__ import annotations

from core.data.formats._turns import TurnsFormat


class ShareGpt(TurnsFormat):
    """{"conversations": [{"from": "human", "value": "…"}, …]}."""

    name, label, order = "sharegpt", "sharegpt", 10
    help = "a column of turns with from and value"
    said, expected = "**ShareGPT**", "conversations"
    keys = ("from", "value")


KIND = ShareGpt()
