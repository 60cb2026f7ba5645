"""Who is answered now and who waits: a bounded line, fair among clients.

One base is resident at a time and eight adapters are ready beside it, so a request that needs another waits
until there is room for it, instead of being refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

ADAPTERS_AT_ONCE = 8
"""As the engine holds ready."""


@dataclass(eq=False)
class Turn:
    """One request's place: what it needs, and whose it is."""

    base: str
    """The fingerprint of its base."""
    adapter: str
    """The digest of its adapter; empty for the plain base."""
    rows: int
    client: str
    begun: asyncio.Event = field(default_factory=asyncio.Event)


class LineFull(Exception):
    """So many wait already that no more are taken."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting:,} requests wait already; try again in {seconds} s.")
        self.seconds = seconds


class WaitingLine:
    """Requests under way and those that wait. Used on one event loop only."""

    def __init__(self, most_rows: int = 32, most_waiting: int = 256) -> None:
        """most_rows: answers that are generated at once; a request alone may have more."""
        self._most_rows, self._most_waiting = most_rows, most_waiting
        self.running: list[Turn] = []
        self.waiting: list[Turn] = []
        self._next: Turn | None = None  # it needs another base, for which all others have to end first

    async def enter(self, turn: Turn) -> None:
        """Wait for this turn. Raises LineFull; who is cancelled meanwhile is out of the line."""
        if len(self.waiting) >= self._most_waiting:
            raise LineFull(len(self.waiting), self._seconds())
        self.waiting.append(turn)
        self._go_on()
        try:
            await turn.begun.wait()
        except asyncio.CancelledError:
            self.leave(turn)
            raise

    def leave(self, turn: Turn) -> None:
        """End a turn, begun or not; who waits for its room goes on."""
        for turns in (self.running, self.waiting):
            if turn in turns:
                turns.remove(turn)
        self._next = None if self._next is turn else self._next
        self._go_on()

    def _go_on(self) -> None:
        """Begin with those whose turn it is, for as long as the next one finds room."""
        while self.waiting:
            turn = self._next or min(self.waiting, key=self._turns_of)  # of equals the first that came
            if not self._has_room(turn):
                self._next = turn if turn.base != self.running[0].base else None
                return
            self._next = None
            self.waiting.remove(turn)
            self.running.append(turn)
            turn.begun.set()

    def _turns_of(self, turn: Turn) -> int:
        """How much of the engine its client has already."""
        return sum(one.rows for one in self.running if one.client == turn.client)

    def _has_room(self, turn: Turn) -> bool:
        if not self.running:
            return True
        adapters = {one.adapter for one in [*self.running, turn] if one.adapter}
        return (
            turn.base == self.running[0].base
            and _rows([*self.running, turn]) <= self._most_rows
            and len(adapters) <= ADAPTERS_AT_ONCE
        )

    def _seconds(self) -> int:
        """When to come again: the longer the line, the later."""
        return 1 + len(self.waiting) // self._most_rows


def _rows(turns: Sequence[Turn]) -> int:
    return sum(one.rows for one in turns)
