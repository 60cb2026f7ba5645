"""The batch that all answers under way share: rows join and leave it between two tokens.

A pass adds one token to every running row, whoever asked for it. Those that have come are read first, a piece
a pass, so that the others go on meanwhile; then they join. A row that ends frees its place at once. Keys and
values take memory for the tokens that are there, in blocks, and never more than a bound: who has no room
waits in the order of coming, and where rows outgrow the room the last that came waits and is read again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.errors import InvalidInput, WorkbenchError
from core.generate import prompt_reading
from core.generate.one_row import Row
from core.generate.own_reading import OwnReading
from core.generate.prompt_reading import Reading
from core.generate.row_state import RowState
from core.generate.sampling import choose
from core.generate.state_pool import StatePool
from core.generate.state_size import MOST_ROWS, fitting_capacity, fitting_rows, state_bytes
from core.lora.mixed_bank import Bank
from core.sending import sent

# Times as many, over all rows that are read together: while a piece is read those that run wait.
_READ_TOGETHER = {"cuda": 8}
_READ_TOGETHER_ELSEWHERE = 2
_MAY_PASS = 16  # rows whose adapters are in slots may go before one that waits for a slot
_BY_LENGTH = frozenset({"dynamic", "longrope"})  # rotary embeddings that follow the longest row of a batch


def rows_are_apart(base: ResidentBase) -> bool:
    """Whether a row computes the same beside any others, so that strangers can share a batch."""
    if not base.way.quick:
        return True
    rope = getattr(base.model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    return not any(one.get("rope_type") in _BY_LENGTH for one in kinds)


class RunningBatch:
    """Rows that are decoded together. Not thread-safe."""

    def __init__(
        self,
        base: ResidentBase,
        bank: Callable[[], Bank | None],
        pool: StatePool | None = None,
        most_bytes: int | None = None,
        most_rows: int = MOST_ROWS,
    ) -> None:
        """bank gives the one that holds the rows' adapters, which placing a row may change for another with
        the same in its slots. most_bytes bounds keys and values, also while they move; a row that is alone
        has what it needs. None: no bound.
        """
        self.passes = 0
        """How often advance() was called."""
        self._base, self._bank, self._pool = base, bank, pool or StatePool(base)
        self._most_bytes, self._most_rows = most_bytes, most_rows
        self._ahead = base.device.type == "cuda" and base.way.quick
        self._numbers = itertools.count()
        self._waiting: deque[Row] = deque()
        self._reading: Reading | OwnReading | None = None
        self._running: list[Row] = []
        self._state: RowState | None = None
        self._logits: Tensor | None = None
        """Of the running rows' next tokens; None where the tokens chosen last are still to be read."""
        self._admitted: list[Row] = []

    @property
    def waiting(self) -> int:
        """Rows that have no room yet, or no slot."""
        return len(self._waiting)

    def join(self, rows: Sequence[Row]) -> None:
        """Decode these rows, too, as soon as there is room."""
        for row in rows:
            row.number = next(self._numbers)
        self._waiting.extend(rows)

    @property
    def slots_in_use(self) -> set[int]:
        """Slots of the bank that rows compute with."""
        return {row.slot for row in (*self._running, *self._admitted)}

    @property
    def held_bytes(self) -> int:
        """What keys and values take."""
        reading = self._reading.state.bytes if self._reading else 0
        return reading + (self._state.bytes if self._state else 0)

    def advance(self) -> None:
        """Read a piece of what waits, and add a token to each running row. Rows' askers are told.

        What goes wrong with a row is told to its asker alone; what is raised has ended all rows.
        """
        self.passes += 1
        try:
            self._make_room()
            logits = self._take_newcomers(self._next_logits())
            if logits is not None:
                self._add_tokens(logits)
        except BaseException as error:
            for row in [*self._running, *self._admitted, *self._waiting]:
                row.asker.fail(error)
            self.tidy()
            raise
        self.tidy()

    def tidy(self) -> None:
        """Let go of the rows that are over."""
        self._waiting = deque(row for row in self._waiting if not row.over)
        if all(row.over for row in self._admitted):
            self._end_reading()
        gone = [row for row in self._running if row.over]
        if gone:
            self._drop(gone)

    # Rows that come.

    def _take_newcomers(self, logits: Tensor | None) -> Tensor | None:
        """Read a piece of their prompts. The logits of all rows that run, with those who join now."""
        try:
            self._reading = reading = self._reading or self._begin_reading()
            if reading is None or not reading.read_piece():
                return logits
            return self._joined(reading, logits)
        except RuntimeError as error:  # such as too little memory, which is no fault of those who run
            for row in self._admitted:
                row.asker.fail(error)
            self._end_reading()
            return logits

    def _begin_reading(self) -> Reading | OwnReading | None:
        passed: list[Row] = []
        self._admitted = []
        for row in list(self._waiting):
            if not self._fits(row) or any(one.passed_by >= _MAY_PASS for one in passed):
                break
            slot = self._slot_for(row)
            if slot is None:
                passed.append(row)
                continue
            row.slot = slot
            self._admitted.append(row)
            for one in passed:
                one.passed_by += 1
        self._admitted = [row for row in self._admitted if not row.over]
        self._waiting = deque(row for row in self._waiting if not row.over and row not in self._admitted)
        if not self._admitted:
            return None
        if not self._base.way.quick:
            return OwnReading(self._base, self._bank(), self._admitted)
        return Reading(self._base, self._bank(), self._admitted, self._pool.reading)

    def _slot_for(self, row: Row) -> int | None:
        if row.over:  # another row of its request has failed
            return None
        try:
            return row.place()
        except (RuntimeError, WorkbenchError) as error:
            row.asker.fail(error)
            return None

    def _fits(self, row: Row) -> bool:
        """Whether this row can be read beside those admitted, and join those that run."""
        rows = [*self._admitted, row]
        if len(self._running) + len(rows) > self._most_rows:
            return False
        longest = max(row.length for row in rows)
        together = _READ_TOGETHER.get(self._base.device.type, _READ_TOGETHER_ELSEWHERE)
        piece = prompt_reading.PREFILL
        alike = any(row.reads_as(one) for one in self._admitted)  # then it is read with that one
        if self._admitted and not alike and len(rows) * min(longest, piece) > together * piece:
            return False
        reading = state_bytes(self._base, len(rows), longest)
        alone = not self._admitted and not self._running
        return alone or self._has_room([*self._running, *rows], reading)

    def _joined(self, reading: Reading | OwnReading, logits: Tensor | None) -> Tensor | None:
        """Take over those that have been read; where what runs has grown too large meanwhile they wait."""
        keep = [at for at, row in enumerate(reading.rows) if not row.over]
        rows = [reading.rows[at] for at in keep]
        if self._running and not self._has_room([*self._running, *rows], reading.state.bytes):
            self._put_back(rows)
            return logits
        count = len(self._running)
        if rows:
            state = self._move([*self._running, *rows])
            state.take_rows(reading.state, [reading.places[at] for at in keep], count)
            fresh = reading.logits()
            fresh = fresh if len(keep) == len(fresh) else fresh[sent(keep, fresh.device)]
            logits = fresh if logits is None else torch.cat([logits[:count], fresh])
            self._running += rows
            if self._ahead:
                state.leave(len(self._running))
        self._end_reading()
        return logits

    def _put_back(self, rows: Sequence[Row]) -> None:
        """Those that were being read wait again."""
        self._wait_again(rows)
        self._end_reading()

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._pool.reading.give_back(self._reading.state)
        self._reading, self._admitted = None, []

    def _wait_again(self, rows: Sequence[Row]) -> None:
        """Before all who came later."""
        self._waiting = deque(sorted([*rows, *self._waiting], key=lambda row: row.number))

    # Tokens.

    def _next_logits(self) -> Tensor | None:
        if not self._running:
            return None
        if self._logits is not None:
            return self._logits
        assert self._state is not None
        return self._state.step(len(self._running), _longest(self._running))

    def _add_tokens(self, logits: Tensor) -> None:
        """Choose each row's next token and tell it. On CUDA the step that reads it is launched before."""
        state, count = self._state, len(self._running)
        assert state is not None
        chosen, sound = self._choose(state, logits[:count])
        state.tokens[:count] = chosen
        likely = self._likeliest(logits, chosen)
        if self._ahead:
            arriving = torch.stack([chosen, sound.long()]).to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._logits = state.step()
            arrived.synchronize()
            tokens, fine = arriving.tolist()
        else:
            self._logits = None
            tokens, fine = chosen.tolist(), sound.tolist()
        for at, row in enumerate(self._running):
            if not row.over:
                _give(row, tokens[at], fine[at], likely.get(at))

    def _choose(self, state: RowState, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, and whether its logits were finite, both [rows] on the device."""
        rows = self._running
        samplers = [row.sampler for row in rows]
        chosen = choose(samplers, logits, lambda at: state.history[at, : rows[at].length])
        return chosen, logits.isfinite().all(-1)

    def _likeliest(self, logits: Tensor, chosen: Tensor) -> dict[int, Tensor]:
        """Of each row that asks for it, by its place: ids and log-probabilities [2, 1 + likeliest], the
        chosen token first, on their way to the CPU: the next step writes over the logits.
        """
        found = {}
        for place, row in enumerate(self._running):
            if row.likeliest is not None:
                scores = logits[place].float().log_softmax(-1)
                ids = torch.cat([chosen[place : place + 1], scores.topk(row.likeliest).indices])
                both = torch.stack([ids.double(), scores[ids].double()])
                found[place] = both.to("cpu", non_blocking=True)
        return found

    # Room.

    def _has_room(self, rows: Sequence[Row], reading: int) -> bool:
        """Whether a state for these rows may be made beside the one that is left, and what is being read."""
        if self._most_bytes is None:
            return True
        device = self._base.device
        capacity = fitting_capacity(_longest(rows) + 1, device)
        wanted = state_bytes(self._base, fitting_rows(len(rows), device), capacity)
        return reading + wanted + (self._state.bytes if self._state else 0) <= self._most_bytes

    def _make_room(self) -> None:
        """Have room for the next token of each running row, if need be for fewer rows."""
        if self._state is None or _longest(self._running) < self._state.capacity:
            return
        while not self._has_room(self._running, self._reading.state.bytes if self._reading else 0):
            if self._reading is not None:
                self._put_back(self._admitted)
            elif len(self._running) > 1:
                last = max(self._running, key=lambda row: row.number)
                self._wait_again([last])
                self._drop([last])
            else:
                break
        self._move(self._running)

    def _move(self, rows: Sequence[Row]) -> RowState:
        """Have the running rows in a state with room for `rows` and the bank that is there now;
        what was begun with another goes on with it until somebody joins.
        """
        state, device, bank = self._state, self._base.device, self._bank()
        tokens, places = _longest(rows) + 1, fitting_rows(len(rows), device)
        if state is None or state.bank is not bank or state.capacity < tokens:
            return self._move_to(bank, len(rows), tokens)
        fits = state.rows == places if self._ahead else state.rows >= places
        return state if fits else self._move_to(bank, len(rows), tokens)

    def _move_to(self, bank: Bank | None, rows: int, tokens: int) -> RowState:
        state, target = self._state, self._pool.borrow(bank, rows, tokens)
        if state is not None:
            target.take_rows(state, range(len(self._running)))
            self._pool.give_back(state)
        self._state = target
        return target

    def _drop(self, gone: Sequence[Row]) -> None:
        """Close the places of these rows up with the last ones, and give back what is not needed."""
        state, rows, order = self._state, self._running, list(range(len(self._running)))
        assert state is not None
        for at in sorted((rows.index(row) for row in gone), reverse=True):
            if at < len(rows) - 1:
                state.take_rows(state, [len(rows) - 1], at)
                rows[at], order[at] = rows[-1], order[-1]
            rows.pop()
            order.pop()
        if not rows:
            self._state = self._logits = None
            self._pool.give_back(state)
            return
        if self._logits is not None:  # the step under way has the old rows
            self._logits = self._logits[sent(order, self._logits.device)]
        self._shrink(state)
        if self._ahead and self._state is not None:
            self._state.leave(len(rows))

    def _shrink(self, state: RowState) -> None:
        """Take a smaller state where that halves it, or where each place costs time."""
        device = self._base.device
        places = fitting_rows(len(self._running), device)
        needed = state_bytes(self._base, places, fitting_capacity(_longest(self._running) + 1, device))
        if needed * 2 <= state.bytes or (self._ahead and places < state.rows):
            self._move_to(self._bank(), len(self._running), _longest(self._running) + 1)


def _give(row: Row, token: int, is_fine: bool, likely: Tensor | None) -> None:
    if not is_fine:
        why = "The model's output holds NaN or infinite numbers; the adapter or the base is damaged."
        row.asker.fail(InvalidInput(why))
        return
    try:
        event = row.take(token, None if likely is None else _pairs(likely))
    except InvalidInput as error:
        row.asker.fail(error)
    else:
        row.asker.tell(event)


def _pairs(likely: Tensor) -> list[tuple[int, float]]:
    """Ids with their log-probabilities, of [2, tokens]."""
    ids, values = likely.tolist()
    return [(int(one), value) for one, value in zip(ids, values, strict=True)]


def _longest(rows: Sequence[Row]) -> int:
    """Tokens of the longest row so far."""
    return max(row.length for row in rows)
