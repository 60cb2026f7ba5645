"""States of rows under way: made as the base's way asks for, and used again with the graphs they captured."""

from __future__ import annotations

from core.base_model.load import ResidentBase
from core.generate.one_token import DecodingState
from core.generate.own_state import OwnState
from core.generate.reading_graphs import ReadingGraphs
from core.generate.row_state import RowState
from core.generate.state_size import fitting_capacity, fitting_rows
from core.lora.mixed_bank import Bank


def new_state(
    base: ResidentBase, bank: Bank | None, rows: int, capacity: int, *, compiled: bool = False
) -> RowState:
    """Room for `rows` rows of up to `capacity` tokens, as the base's way asks for."""
    if base.way.quick:
        return DecodingState(base, bank, rows, capacity, compiled=compiled)
    return OwnState(base, bank, rows, capacity)


class StatePool:
    """States that can be used again, so that a chat finds its graph captured."""

    def __init__(
        self,
        base: ResidentBase,
        *,
        compiled: bool = False,
        most: int = 4,
        most_bytes: int | None = None,
    ) -> None:
        """Keeps at most so many, and so many bytes of them."""
        self._base, self._compiled, self._most, self._most_bytes = base, compiled, most, most_bytes
        self._free: list[RowState] = []
        self.reading = ReadingGraphs(base)
        self._notice = ""

    @property
    def notice(self) -> str:
        """What whoever looks after the engine should know."""
        return self._notice or self.reading.notice

    def borrow(self, bank: Bank | None, rows: int, tokens: int) -> RowState:
        """A state for these rows; give it back when done."""
        device = self._base.device
        rows, capacity = fitting_rows(rows, device), fitting_capacity(tokens, device)
        self._free = [one for one in self._free if one.bank is bank or bank is None]
        for one in self._free:
            if (one.rows, one.capacity) == (rows, capacity) and one.bank is bank:
                self._free.remove(one)
                return one
        return new_state(self._base, bank, rows, capacity, compiled=self._compiled)

    def give_back(self, state: RowState) -> None:
        """Keep a state for the next who needs one like it; only graphs are worth keeping."""
        self._notice = state.notice or self._notice
        self._compiled = (
            self._compiled and not state.notice
        )  # what failed once is not tried for every batch size
        if self._base.may_capture and self._base.way.quick:
            self._free.append(state)
            del self._free[: -self._most]
            while self._most_bytes is not None and sum(one.bytes for one in self._free) > self._most_bytes:
                del self._free[0]
