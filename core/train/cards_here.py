"""The cards of a machine, as its engine tells of them, and what each of several has. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import InvalidConfig


@dataclass(frozen=True)
class CardsHere:
    """Those of one machine; where it has none, processes share the host's memory."""

    names: Sequence[str]
    totals: Sequence[int]
    """Bytes that each has in all."""
    host: int
    """Bytes of the host's memory in all."""

    def of_each(self, count: int) -> list[float]:
        """Bytes that each of the first `count` cards has in all."""
        return [float(one) for one in self.totals[:count]] or [self.host / count]

    def room_of_each(self, count: int, room: int) -> int:
        """Bytes that a run could have of each of `count` cards; room: of the engine's own, or of the host."""
        return min(room, *self.totals[1:count], room) if self.totals else room // count


def require_count(names: Sequence[str], wanted: int) -> None:
    """Raise InvalidConfig where a machine has not as many cards, of these names, as are wanted of it."""
    if not names:
        _require_cores(wanted)
    elif len(names) < wanted:
        raise InvalidConfig(
            f"devices = {wanted} asks for {wanted} cards, and this machine has {len(names)}: "
            f"{', '.join(names)}. Choose devices = {len(names)} or fewer."
        )


def _require_cores(wanted: int) -> None:
    cores = os.cpu_count() or 1
    if wanted > cores:
        raise InvalidConfig(
            f"devices = {wanted} asks for {wanted} processes, since there is no card here, and the processor "
            f"has {cores} cores. Choose devices = {cores} or fewer."
        )
