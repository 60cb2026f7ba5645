"""How long work says where it is."""

from __future__ import annotations

from collections.abc import Callable

from core.events import Progress

Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A Report for callers that do not listen."""
