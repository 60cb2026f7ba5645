"""Who is answered now and who waits: a bounded line, fair among clients.

One base is resident at a time, so a request that needs another waits for the end of those that use it,
instead of being refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Turn:
    """One request's place: what it needs, and whose it is."""

    base: str
    """The fingerprint of its base."""
    rows: int
    client: str
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    end: Callable[[Exception], None] | None = None
    """Called where the turn has begun and the line is closed."""


class LineFull(Exception):
    """So many wait already that no more are taken."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting:,} requests wait already; try again in {seconds} s.")
        self.seconds = seconds


class LineClosed(Exception):
    """The server is closing."""

    def __init__(self) -> None:
        super().__init__("The server is closing, and answers nobody any more.")


class WaitingLine:
    """Requests under way and those that wait. Used on one event loop only."""

    def __init__(self, most_rows: int = 32, most_waiting: int = 256) -> None:
        """most_rows: answers that are generated at once; a request alone may have more."""
        self._most_rows, self._most_waiting = most_rows, most_waiting
        self.running: list[Turn] = []
        self.waiting: list[Turn] = []
        self._next: Turn | None = None  # it needs another base, for which all others have to end first
        self._closed = False

    async def enter(self, turn: Turn) -> None:
        """Wait for this turn. Raises LineFull, LineClosed; who is cancelled meanwhile is out of the line."""
        if self._closed:
            raise LineClosed
        if len(self.waiting) >= self._most_waiting:
            raise LineFull(len(self.waiting), self._seconds())
        self.waiting.append(turn)
        self._go_on()
        try:
            await turn.begun.wait()
        except asyncio.CancelledError:
            self.leave(turn)
            raise
        if self._closed:
            raise LineClosed

    def leave(self, turn: Turn) -> None:
        """End a turn, begun or not; who waits for its room goes on."""
        for turns in (self.running, self.waiting):
            if turn in turns:
                turns.remove(turn)
        self._next = None if self._next is turn else self._next
        self._go_on()

    def close(self) -> None:
        """The server is closing: all turns are ended, and nobody is let in any more."""
        self._closed = True
        for turn in self.running:
            if turn.end is not None:
                turn.end(LineClosed())
        waiting, self.waiting = self.waiting, []
        for turn in waiting:
            turn.begun.set()

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
        same_base = turn.base == self.running[0].base
        return same_base and sum(one.rows for one in [*self.running, turn]) <= self._most_rows

    def _seconds(self) -> int:
        """When to come again: the longer the line, the later."""
        return 1 + len(self.waiting) // self._most_rows
