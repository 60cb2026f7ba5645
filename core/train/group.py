"""Training K adapters at once on the resident base, as a generator of events.

Each batch holds one micro-batch of every run, so the base's weights are read once for all of them. Everything
else is each run's own: rows, loss, clipping, schedule, optimiser, evaluation, end. The engine calls next()
for each micro-batch and may decode tokens for a chat in between; nothing of a step stays switched on in the
base across a yield.

On an accelerator figures are read one micro-batch late, so that the device never waits for the host.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.base_model.compiling import compile_layers
from core.base_model.load import ResidentBase
from core.errors import CannotShare, TrainingDiverged, WorkbenchError
from core.events import EvalDone, MicroBatchDone, Notice, Prepared, RunFailed, StepDone, TrainingDone
from core.lora.adapter import AdapterWeights
from core.lora.bank import AdapterBank
from core.train.batches import MicroBatch, Shape, Step, collate
from core.train.changes import Change
from core.train.hardware import PeakMemory
from core.train.memory import Plan, Tier, first_tier, ran_out_of_memory, room_for
from core.train.run import RunRequest, TrainingRun
from core.train.run_state import RunState
from core.train.step import MicroBatchStep, embedding_needs_gradient

Event = Prepared | Notice | MicroBatchDone | StepDone | EvalDone | TrainingDone | RunFailed
_LOOK_BEFORE_COMPILING = 5  # micro-batches
_RATE_WINDOW = 20  # micro-batches over which a micro-batch's time is averaged
_COMPILE_SECONDS, _COMPILE_GAIN = (
    60.0,
    0.3,
)  # what compiling costs at first, and the share of the time it saves


@dataclass(frozen=True)
class _Pending:
    """A step whose figures are still on the device."""

    run: TrainingRun
    number: int
    step: Step
    rate: float
    slot: int


class TrainingGroup:
    """Runs that share a base, a block length and a micro-batch size. Iterate over run()."""

    def __init__(
        self, base: ResidentBase, requests: Sequence[RunRequest], *, most_runs: int | None = None
    ) -> None:
        """A request that cannot be prepared fails by itself, in run(). most_runs is how many train at one
        time.

        By default as many as the memory is likely to hold; the others wait for their turn.
        """
        self.base, self._most = base, most_runs
        self._waiting: deque[RunRequest] = deque(requests)
        self._slots: list[TrainingRun | None] = []  # who holds which slot; None where a run has ended
        self._stopping: set[Hashable] = set()
        self._pending: list[_Pending] = []
        self._figures: Tensor | None = None  # [2, slots]: loss sums and gradient norms of the pending steps
        self._sums = torch.zeros(0)  # [slots]: losses of the steps under way
        self._bank: AdapterBank | None = None
        self._step: MicroBatchStep | None = None
        self._plan: Plan | None = None
        self._busy: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._ticks = 0
        self._read_soon = False  # whether somebody wants the events of a step before the next one is done
        self.finished = False
        self.squeezed = False
        """Whether the memory did not hold the work as it was planned."""

    # From outside, between two events.

    def stop(self, key: Hashable) -> None:
        """End a run after the current micro-batch and keep what it has learnt; an unfinished step is thrown
        away.
        """
        self._stopping.add(key)

    def change(self, key: Hashable, **values: object) -> Change:
        """Change learning_rate, epochs or max_steps of a run from its next step on. Raises InvalidConfig."""
        return next(run for run in self.runs if run.key == key).change(**values)

    def add(self, request: RunRequest) -> None:
        """Have another run join when there is room."""
        self._waiting.append(request)

    def adapter(self, key: Hashable) -> AdapterWeights:
        """The factors of a run as they are now: from its Prepared on, until the group goes on after its
        TrainingDone.
        """
        slot, run = next(
            (slot, run) for slot, run in enumerate(self._slots) if run is not None and run.key == key
        )
        assert self._bank is not None
        return run.adapter(self._bank, slot)

    def state(self, key: Hashable) -> RunState | None:
        """Where a run stands after its last finished step; with adapter() all it takes to go on.

        None before the first step.
        """
        run = next(run for run in self.runs if run.key == key)
        return run.state(self.bank) if run.done else None

    def told(self, key: Hashable, step: int) -> bool:
        """Whether step number `step` is the last that a run has done, and its evaluation, if one is due, is
        over.

        Then no event is still to come about what state() holds. If not, the next step's figures are waited
        for.
        """
        run = next(run for run in self.runs if run.key == key)
        self._read_soon = run.done != step
        return run.done == step and run.settled

    @property
    def bank(self) -> AdapterBank:
        """The factors that are being trained."""
        assert self._bank is not None
        return self._bank

    @property
    def runs(self) -> list[TrainingRun]:
        """The runs under way, by slot."""
        return [run for run in self._slots if run is not None]

    # The work.

    def run(self) -> Iterator[tuple[Hashable, Event]]:
        """Train until every run has ended. Each event comes with the key of its run."""
        undo = embedding_needs_gradient(self.base)
        self._peak = PeakMemory(self.base.device)
        try:
            yield from self._admit()
            while self.runs:
                yield from self._tick()
                yield from self._admit()
        finally:
            undo()
            self.finished = True

    def _admit(self) -> Iterator[tuple[Hashable, Event]]:
        """Let waiting runs join, all at once, and build the bank anew if the members have changed."""
        joining: list[TrainingRun] = []
        while self._waiting and (self._most is None or len(self.runs) + len(joining) < self._most):
            request = self._waiting.popleft()
            try:
                run = TrainingRun(self.base, request)
                self._require_fit(run, [*self.runs, *joining])
            except WorkbenchError as error:
                yield request.key, RunFailed(error)
                continue
            joining.append(run)
            if self._most is None:
                self._most = room_for(
                    self.base, run.state_bytes, run.train.micro_batch_size * run.data.longest_block
                )
        if joining or self._has_shrunk():
            yield from self._read()
            self._rebuild(joining)
        for run in joining:
            yield run.key, run.prepared()
        yield from self._evaluate([run for run in joining if not run.settled])

    @staticmethod
    def _require_fit(run: TrainingRun, others: Sequence[TrainingRun]) -> None:
        """What the runs of one batch must have in common."""
        if others and (wanted := _commons(others[0])) != (found := _commons(run)):
            raise CannotShare(
                f"Runs that train together need the same adapter kind, block length, micro-batch size and "
                "packing; "
                f"this one has {found}, the others {wanted}. Train it by itself."
            )

    def _has_shrunk(self) -> bool:
        """Whether enough runs have ended for a smaller batch to pay; compiled and captured work is not redone
        for one.
        """
        ended = self._slots.count(None)
        fixed = self.base.device.type == "cuda"
        return ended > 0 and (ended * 2 >= len(self._slots) if fixed else True) and bool(self.runs)

    def _rebuild(self, joining: Sequence[TrainingRun]) -> None:
        old, old_slots = self._bank, self._slots
        staying = [(slot, run) for slot, run in enumerate(old_slots) if run is not None]
        members = [run for _, run in staying] + list(joining)
        ranks: dict[str, int] = {}
        for path in self.base.layers:
            if found := [run.ranks[path] for run in members if path in run.ranks]:
                ranks[path] = max(found)
        if old is not None:  # a moment that the optimiser holds must find its place
            ranks = {
                path: max(ranks.get(path, 0), old.ranks.get(path, 0))
                for path in self.base.layers
                if path in ranks or path in old.ranks
            }
        self._bank = AdapterBank(
            self.base.layers,
            list(ranks),
            slots=len(members),
            rank=ranks,
            kind=members[0].kind,
            dropout=[run.lora.dropout for run in members],
            trainable=True,
        )
        sums = torch.zeros(len(members), device=self.base.device)
        for slot, (old_slot, run) in enumerate(staying):
            assert old is not None
            run.move(old, old_slot, self._bank, slot)
            sums[slot] = self._sums[old_slot]
        for slot, run in enumerate(joining, start=len(staying)):
            run.start(self._bank, slot)
        self._slots, self._sums = list(members), sums
        if self._plan is None:
            compiled = self._wants_compile("on")
            self._plan = Plan(
                first_tier(self.base, self._tokens_a_batch(), compiled, self._checkpointing()), compiled
            )
            if compiled:
                compile_layers(self.base)
        self._use(self._plan)

    def _checkpointing(self) -> str:
        """On if one of the runs wants it, off if all refuse it."""
        asked = {run.train.gradient_checkpointing for run in self.runs}
        return "on" if "on" in asked else "off" if asked == {"off"} else "auto"

    def _tokens_a_batch(self) -> int:
        shape = self._shape()
        return shape.runs * shape.blocks * shape.block_length

    @property
    def _blocks_a_piece(self) -> int:
        pieces = self._plan.pieces if self._plan else 1
        return -(-self.runs[0].train.micro_batch_size // pieces)

    def _shape(self) -> Shape:
        data, fixed = [run.data for run in self.runs], self.base.device.type == "cuda"
        return Shape.of(data, runs=len(self._slots), blocks=self._blocks_a_piece, fixed=fixed)

    def _tick(self) -> Iterator[tuple[Hashable, Event]]:
        """One micro-batch of every run, and whatever it completes."""
        self._compile_if_it_pays()
        if self._step is not None and self._step.plan.compiled and not self._step.proven:
            yield from self._tell(
                "Compiling the model's layers: this step takes up to a minute, those after it less"
            )
        start = time.perf_counter()
        parts = [run.next_micro_batch() if run is not None else None for run in self._slots]
        yield from self._forward_backward(parts)
        late = self._read()
        self._update()
        self._busy.append(time.perf_counter() - start)
        self._ticks += 1
        yield self.runs[0].key if self.runs else None, MicroBatchDone()
        yield from late
        stepped = [pending.run for pending in self._pending]
        if (
            self.base.device.type != "cuda"
            or self._read_soon
            or any(run.ended or run.evaluates() for run in stepped)
        ):
            yield from self._read()
            stepped = [run for run in stepped if run in self.runs]
            yield from self._evaluate([run for run in stepped if run.evaluates()])
            for run in stepped:
                if run.ended:
                    yield from self._end(run)
        yield from self._stop_asked()

    def _stop_asked(self) -> Iterator[tuple[Hashable, Event]]:
        if not any(run.key in self._stopping for run in self.runs):
            return
        yield from self._read()
        for run in [run for run in self.runs if run.key in self._stopping]:
            run.stopping = True
            yield from self._end(run)

    def _forward_backward(self, parts: Sequence[MicroBatch | None]) -> Iterator[tuple[Hashable, Event]]:
        """Add the gradients of one micro-batch of each run.

        It may need more memory than there is, or fail to compile. Then the steps under way are done again
        from their beginning, in smaller pieces or without compiling, which gives the same gradients, and the
        runs are told.
        """
        try:
            self._add_gradients(parts, 0)
        except Exception as error:  # noqa: BLE001  (whatever nothing helps against is raised again)
            told = self._help(error)
        else:
            told = []
        while told:
            yield from self._tell(told[0])
            told = self._redo()
        step = self._current_step
        while step.notices:
            yield from self._tell(step.notices.pop())

    @property
    def _current_step(self) -> MicroBatchStep:
        assert self._step is not None
        return self._step

    def _add_gradients(self, parts: Sequence[MicroBatch | None], back: int) -> None:
        """Forward and backward for the micro-batches that were taken `back` micro-batches ago, piece by
        piece.
        """
        bank, step = self.bank, self._current_step
        if bank.dropout is not None:
            keys = [run.dropout_key(back) if run is not None else 0 for run in self._slots]
            bank.dropout.keys.copy_(torch.tensor(keys, dtype=torch.int32))
        for first, piece in self._pieces(parts):
            if bank.dropout is not None:
                bank.dropout.first_row.fill_(first)
            batch = collate(piece, self._shape())
            self._sums += step.train(batch.pinned() if self.base.device.type == "cuda" else batch)

    def _pieces(self, parts: Sequence[MicroBatch | None]) -> Iterator[tuple[int, list[MicroBatch | None]]]:
        """The micro-batches in the plan's pieces, each with the number of its first block."""
        each = self._blocks_a_piece
        for first in range(0, self.runs[0].train.micro_batch_size, each):
            piece = [part.piece(first, each) if part else None for part in parts]
            if any(piece):
                yield first, piece

    def _redo(self) -> list[str]:
        """Do the steps under way again up to here. Returns what to tell if that needed yet another plan."""
        assert self.bank.grad is not None
        self._let_go()  # here, where the error that held on to it is gone
        self.bank.grad.zero_()
        self._sums.zero_()
        try:
            for back in range(max(run.place for run in self.runs) - 1, -1, -1):
                self._add_gradients(
                    [run.earlier_micro_batch(back) if run else None for run in self._slots], back
                )
        except Exception as error:  # noqa: BLE001  (as above)
            return self._help(error)
        return []

    def _help(self, error: Exception) -> list[str]:
        """Choose a plan under which this would not have happened, and say so; raise it if there is none."""
        plan = self._current_step.plan
        if ran_out_of_memory(error):
            shape = self._shape()
            smaller = plan.smaller(
                self.runs[0].train.micro_batch_size,
                plan.pieces * self._tokens_a_batch(),
                bool(self._current_step.graphs),
            )
            if smaller is None:
                raise error
            tried = f"{shape.runs * shape.blocks} × {shape.block_length:,} tokens"
            why = f"The memory did not hold {tried}, so the step is done again: {smaller.sentence}"
            self.squeezed = True
        elif plan.compiled and not self._current_step.proven:
            smaller, why = (
                replace(plan, compiled=False),
                f"Compiling failed ({_first_line(error)}); going on without",
            )
        else:
            raise error
        self._use(smaller)
        return [why]

    def _use(self, plan: Plan) -> None:
        self._plan, self._step = plan, MicroBatchStep(self.base, self.bank, plan)

    def _let_go(self) -> None:
        """Give back what a step that failed has left behind: its graph of operations, and captured graphs of
        old plans.
        """
        gc.collect()  # recomputing leaves cycles
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tell(self, text: str) -> Iterator[tuple[Hashable, Event]]:
        for run in self.runs:
            yield run.key, Notice(text)

    def _wants_compile(self, how: str) -> bool:
        return any(run.train.compile == how for run in self.runs)

    def _compile_if_it_pays(self) -> None:
        """After a few micro-batches it is known how long the group will take; compiling has to earn its own
        time.
        """
        assert self._plan is not None
        if self._plan.compiled or self._ticks != _LOOK_BEFORE_COMPILING or not self._wants_compile("auto"):
            return
        left = max(run.total_steps * run.train.gradient_accumulation_steps for run in self.runs)
        if self.base.device.type != "cuda" or left * min(self._busy) * _COMPILE_GAIN < _COMPILE_SECONDS:
            return
        compile_layers(self.base)
        self._use(replace(self._plan, tier=max(self._plan.tier, Tier.CHEAP), compiled=True))

    def _update(self) -> None:
        """Step the optimiser of every run whose step is complete, and send its figures on their way."""
        bank = self.bank
        assert bank.grad is not None
        complete = [
            (slot, run) for slot, run in enumerate(self._slots) if run is not None and run.step_is_complete
        ]
        self._pending, self._figures = [], None
        if not complete:
            return
        norms = torch.linalg.vector_norm(bank.grad, dim=1)
        self._figures = torch.stack([self._sums, norms]).to("cpu", non_blocking=True)
        if self.base.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        for slot, run in complete:
            rate, step = run.update(norms[slot], bank.grad[slot])
            run.kind.after_step(bank, slot, run.done, run.total_steps)
            self._pending.append(_Pending(run, run.done, step, rate, slot))
        done = torch.tensor([slot for slot, _ in complete], device=self.base.device)
        bank.grad.index_fill_(0, done, 0.0)
        self._sums.index_fill_(0, done, 0.0)
        bank.refresh()

    def _read(self) -> list[tuple[Hashable, Event]]:
        """The events of the pending steps, whose figures have arrived by now or are waited for."""
        if self._figures is None:
            return []
        if self.base.device.type == "cuda":
            self._arrived.synchronize()
        sums, norms = self._figures.tolist()
        seconds, memory = self._seconds_a_tick(), self._peak.bytes
        events: list[tuple[Hashable, Event]] = []
        for one in self._pending:
            each = seconds * len(one.step.micro_batches)
            try:
                event: Event = one.run.step_done(
                    one.number, one.step, one.rate, sums[one.slot], norms[one.slot], each, memory
                )
            except TrainingDiverged as error:
                event = RunFailed(error)
                self._slots[one.slot] = None
            events.append((one.run.key, event))
        self._pending, self._figures = [], None
        return events

    def _seconds_a_tick(self) -> float:
        return sum(self._busy) / len(self._busy) if self._busy else 1e-9

    def _evaluate(self, runs: Sequence[TrainingRun]) -> Iterator[tuple[Hashable, Event]]:
        """Mean loss over the validation rows of `runs`, a micro-batch of all of them at a time."""
        due = [run for run in runs if run.data.validation_blocks]
        if not due:
            return
        left = {run: iter(run.data.validation()) for run in due}
        sums = torch.zeros(len(self._slots), device=self.base.device)
        while True:
            parts = [next(left[run], None) if run in left else None for run in self._slots]
            if not any(parts) or any(run.key in self._stopping for run in due):
                break
            found, told = self._evaluated(parts)
            sums += found
            yield from (one for text in told for one in self._tell(text))
            yield due[0].key, MicroBatchDone()
        if not any(parts):
            totals = sums.tolist()
            for run in due:
                yield run.key, run.evaluation_done(totals[self._slots.index(run)])

    def _evaluated(self, parts: Sequence[MicroBatch | None]) -> tuple[Tensor, list[str]]:
        """Each run's summed loss over one micro-batch, [K], and what to tell of how that was done."""
        told: list[str] = []
        while True:
            try:
                found = [
                    self._current_step.evaluate(collate(piece, self._shape()))
                    for _, piece in self._pieces(parts)
                ]
                return torch.stack(found).sum(0), told
            except Exception as error:  # noqa: BLE001  (whatever nothing helps against is raised again)
                told += self._help(error)
            self._let_go()

    def _end(self, run: TrainingRun) -> Iterator[tuple[Hashable, Event]]:
        yield run.key, run.training_done()
        self._slots[self._slots.index(run)] = None


def _commons(run: TrainingRun) -> str:
    packing = "packed" if run.data.packed else "not packed"
    shape = f"{run.data.rows.max_length} tokens, {run.train.micro_batch_size} rows, {packing}"
    return f"{run.kind.label}, {shape}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def alone(group: TrainingGroup) -> Iterator[Event]:
    """The events of a group of one; raises what made its run fail."""
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        yield event
