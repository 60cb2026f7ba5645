"""Training K adapters at once on the resident base, as a generator of events.

Each batch holds one micro-batch of every run, so the base's weights are read once for all of them. Everything
else is each run's own: rows, loss, clipping, schedule, optimiser, evaluation, end. The engine calls next()
for each micro-batch and may decode tokens for a chat in between; nothing of a step stays switched on in the
base across a yield.

    seating.py     who sits where, and who may join     figures.py      what steps have come to, read late
    executing.py   how micro-batches are computed       evaluation.py   the pass over the validation rows
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from core.base_model.load import ResidentBase
from core.errors import CannotShare, WorkbenchError
from core.events import (
    EvalDone,
    MicroBatchDone,
    Notice,
    Prepared,
    RanksDone,
    RunFailed,
    StepDone,
    TrainingDone,
)
from core.lora.adapter import AdapterWeights
from core.lora.side_by_side import TrainedBank
from core.sending import sent
from core.train.changes import Change
from core.train.evaluation import Evaluation
from core.train.executing import Execution
from core.train.figures import Figures, Pending
from core.train.group_objective import figures_width
from core.train.hardware import PeakMemory
from core.train.memory import require_room, room_for
from core.train.run import RunRequest, TrainingRun
from core.train.run_optimiser import clipping
from core.train.run_state import RunState
from core.train.seating import Seating, require_fit
from core.train.share import ALL, Share
from core.train.shared_facts import shared_facts
from core.train.step import embedding_needs_gradient

Event = Prepared | Notice | MicroBatchDone | StepDone | RanksDone | EvalDone | TrainingDone | RunFailed
Events = Iterator[tuple[Hashable, Event]]
"""Each with the key of its run."""

_LOOK_BEFORE_COMPILING = 5  # micro-batches, after which it is known how long the group will take
_OTHER_MASKS = (
    "Rows of each length have a pass of their own on this base, and dropout numbers rows by the pass: with "
    "several cards it drops other numbers than on one, as many of them"
)
_RATE_WINDOW = 20  # micro-batches over which a micro-batch's time is averaged


class TrainingGroup:
    """Runs that share a base, a block length, a micro-batch size and an objective. Iterate over run()."""

    def __init__(
        self,
        base: ResidentBase,
        requests: Sequence[RunRequest],
        *,
        most_runs: int | None = None,
        share: Share = ALL,
    ) -> None:
        """A request that cannot be prepared fails by itself, in run(). most_runs is how many train at one
        time.

        By default as many as the memory is likely to hold; the others wait for their turn. share: where
        several processes train the group, this one's; all of them iterate over their group's run(), and only
        what the first one is asked from outside counts.
        """
        self.base, self._most, self._share = base, most_runs, share
        self._wishes: list[tuple[str, Any]] = []  # what was asked from outside and others do not know yet
        self._waiting: deque[RunRequest] = deque(requests)
        self._seating, self._figures = Seating(base), Figures(base.device)
        self._execution = Execution(base, self._seating, self._figures, share)
        self._stopping: set[Hashable] = set()
        self._busy: deque[float] = deque(maxlen=_RATE_WINDOW)  # seconds of the last micro-batches
        self._ticks = 0
        self._ranks: list[tuple[Hashable, RanksDone]] = []  # not told yet
        self._read_soon = False  # whether somebody wants the events of a step before the next one is done
        self.finished = False

    # From outside, between two events.

    def stop(self, key: Hashable) -> None:
        """End a run after the current micro-batch and keep what it has learnt; an unfinished step is thrown
        away.
        """
        self._wish("stop", key)

    def change(self, key: Hashable, **values: object) -> Change:
        """Change learning_rate, epochs or max_steps of a run from its next step on. Raises InvalidConfig."""
        run = self._seating.run(key)
        if self._share.count == 1:
            return run.change(**values)
        self._wishes.append(("change", (key, values)))
        return run.announce(**values)

    def add(self, request: RunRequest) -> None:
        """Have another run join when there is room. Raises CannotShare where several processes train."""
        if self._share.count > 1:
            raise CannotShare("No run joins others that several processes train; it waits for their end.")
        self._wish("add", request)

    def _wish(self, what: str, of: Any) -> None:
        """At once, or where several processes train, when all of them know it."""
        self._wishes.append((what, of))
        if self._share.count == 1:
            self._agree()

    def _agree(self) -> None:
        """Do what was asked for from outside: all processes at the same point of the work."""
        wishes, self._wishes = self._wishes, []
        for what, of in self._share.asked(wishes):
            if what == "stop":
                self._stopping.add(of)
            elif what == "add":
                self._waiting.append(of)
            elif of[0] in {run.key for run in self.runs}:  # it may have ended in between
                self._seating.run(of[0]).change(**of[1])

    def adapter(self, key: Hashable) -> AdapterWeights:
        """The factors of a run as they are now: from its Prepared on, until the group goes on after its
        TrainingDone.
        """
        return self._seating.adapter(key)

    def state(self, key: Hashable) -> RunState | None:
        """Where a run stands after its last finished step; with adapter() all it takes to go on.

        None before the first step.
        """
        return self._seating.state(key)

    def told(self, key: Hashable, step: int) -> bool:
        """Whether step number `step` is the last that a run has done, and its evaluation, if one is due, is
        over.

        Then no event is still to come about what state() holds. If not, the next step's figures are waited
        for.
        """
        run = self._seating.run(key)
        self._read_soon = run.done != step
        return run.done == step and run.settled

    @property
    def bank(self) -> TrainedBank:
        """The factors that are being trained."""
        return self._seating.bank

    @property
    def runs(self) -> list[TrainingRun]:
        """The runs under way, by slot."""
        return self._seating.runs

    @property
    def squeezed(self) -> bool:
        """Whether the memory did not hold the work as it was planned."""
        return self._execution.squeezed

    @property
    def plan(self) -> str:
        """How micro-batches are computed now, in words."""
        return self._execution.step.plan.sentence

    @property
    def graphs(self) -> int:
        """CUDA graphs that are captured now."""
        return self._execution.graphs

    # The work.

    def run(self) -> Events:
        """Train until every run has ended. Each event comes with the key of its run."""
        undo = embedding_needs_gradient(self.base)
        self._peak = PeakMemory(self.base.device)
        try:
            yield from self._admit()
            while self.runs:
                self._agree()
                yield from self._end_early()
                if self.runs:
                    yield from self._tick()
                yield from self._admit()
        finally:
            undo()
            self._execution.close()
            self.finished = True

    def _admit(self) -> Events:
        """Let waiting runs join, all at once, and build the bank anew if the members have changed."""
        joining: list[TrainingRun] = []
        while self._waiting and (self._most is None or len(self.runs) + len(joining) < self._most):
            request = self._waiting.popleft()
            run = self._admitted(request, joining)
            if isinstance(run, WorkbenchError):
                yield request.key, RunFailed(run)
                continue
            joining.append(run)
            if self._most is None:
                tokens = run.train.micro_batch_size * run.data.longest_block
                room = room_for(self.base, run.state_bytes, tokens // self._share.count)
                self._most = 1 if run.needs_a_turn else self._share.least(room)
        if joining or self._seating.has_shrunk:
            yield from self._read()
            self._reseat(joining)
        way = self.base.way
        for run in joining:
            place = self.bank.place(self._seating.slots.index(run))
            yield run.key, run.prepared(*place, tries=not self._share.in_step)
            if self._share.count > 1 and run.lora.dropout and not (way.quick or way.together):
                yield run.key, Notice(_OTHER_MASKS)
        yield from self._evaluate([run for run in joining if not run.settled])

    def _admitted(self, request: RunRequest, joining: Sequence[TrainingRun]) -> TrainingRun | WorkbenchError:
        """The run that joins the group, or why it cannot."""
        run: TrainingRun | None = None
        error: WorkbenchError | None = None
        try:
            run = TrainingRun(self.base, request)
            require_fit(run, [*self.runs, *joining])
            self._share.require(run)
            if run.kind.whole:
                require_room(self.base, run.state_bytes, run.parameters)
        except WorkbenchError as refused:
            error = refused
        facts = shared_facts(self.base, request) if self._share.count > 1 else {}
        refusal = self._share.refusal(error, facts)
        if refusal is not None or run is None:
            return refusal or WorkbenchError("The run could not be prepared.")
        return run

    def _reseat(self, joining: Sequence[TrainingRun]) -> None:
        before = self._seating.seat(joining)
        self._share.spread(self.bank)
        goal = self._seating.goal
        self._figures.reseat(before, figures_width(goal.objective))
        self._execution.begin(goal)

    def _tick(self) -> Events:
        """One micro-batch of every run, and whatever it completes."""
        if self._ticks == _LOOK_BEFORE_COMPILING:
            # the first waits for none before it, and may have more to set up
            self._execution.compile_if_it_pays(statistics.median(self._busy))
        if self._execution.will_compile:
            yield from self._tell(
                "Compiling the model's layers: this step takes up to a minute, those after it less"
            )
        start = time.perf_counter()
        parts = [run.next_micro_batch() if run is not None else None for run in self._seating.slots]
        for text in self._execution.train(parts):
            yield from self._tell(text)
        late = self._read()
        self._update()
        self._busy.append(time.perf_counter() - start)
        self._ticks += 1
        yield self.runs[0].key if self.runs else None, MicroBatchDone()
        yield from late
        yield from self._ranks
        self._ranks.clear()
        yield from self._after_steps([pending.run for pending in self._figures.pending])
        yield from self._stop_asked()

    def _after_steps(self, stepped: Sequence[TrainingRun]) -> Events:
        """What follows from steps that are done: their events, where they are not told late, evaluations and
        ends.
        """
        due = any(run.ended or run.evaluates() for run in stepped)
        if self.base.device.type == "cuda" and not (self._share.either(self._read_soon) or due):
            return
        yield from self._read()
        stepped = [run for run in stepped if run in self.runs]
        yield from self._evaluate([run for run in stepped if run.evaluates()])
        for run in stepped:
            if run.ended:
                yield from self._end(run)

    def _end_early(self) -> Events:
        """End the runs that have done all their steps before another: their plan was shortened, or they go on
        from their last checkpoint.
        """
        if not any(run.ended and not run.place for run in self.runs):
            return
        yield from self._read()
        ended = [run for run in self.runs if run.ended and not run.place]
        yield from self._evaluate([run for run in ended if not run.settled])
        for run in ended:
            yield from self._end(run)

    def _stop_asked(self) -> Events:
        if not any(run.key in self._stopping for run in self.runs):
            return
        yield from self._read()
        for run in [run for run in self.runs if run.key in self._stopping]:
            run.stopping = True
            yield from self._end(run)

    def _update(self) -> None:
        """Step the optimiser of every run whose step is complete, and send its figures on their way."""
        complete = [
            (slot, run)
            for slot, run in enumerate(self._seating.slots)
            if run is not None and run.step_is_complete
        ]
        if not complete:
            return
        bank, done = self.bank, [slot for slot, _ in complete]
        self._share.sum_gradients(bank, done)
        self._figures.sum(self._share, done)
        for slot, run in complete:
            run.before_step(*bank.place(slot))
        norms = bank.gradient_norms()
        self._figures.send(norms)
        limits = [run.train.max_grad_norm if run else 0.0 for run in self._seating.slots]
        divisors, missing = clipping(norms, limits)
        for slot, run in complete:
            own, place = bank.place(slot)
            rate, step = run.update(divisors[slot], missing[slot])
            run.kind.after_step(own, place, run.done, run.planned_then, run.kind_options)
            ranks = run.kind.ranks(own, place, run.done, run.planned_then)
            if ranks is not None:
                self._ranks.append((run.key, RanksDone(run.done, ranks)))
            self._figures.pending.append(Pending(run, run.done, step, rate, slot))
        bank.forget_gradients(done)
        self._figures.forget(sent(done, self.base.device))
        bank.refresh()

    def _read(self) -> list[tuple[Hashable, Event]]:
        """The events of the pending steps."""
        if not self._figures.pending:
            return []
        told = self._figures.read(self._seconds_a_tick(), self._peak.bytes)
        for run, event in told:
            if isinstance(event, RunFailed):
                self._seating.leave(run)
        return [(run.key, event) for run, event in told]

    def _seconds_a_tick(self) -> float:
        return sum(self._busy) / len(self._busy) if self._busy else 1e-9

    def _evaluate(self, runs: Sequence[TrainingRun]) -> Events:
        """The pass over the validation rows of `runs`; one that is to stop in between is left out."""
        evaluation = Evaluation(self._execution, self._seating, runs, self._share)
        while parts := evaluation.next_parts():
            for text in evaluation.take(parts):
                yield from self._tell(text)
            yield evaluation.runs[0].key, MicroBatchDone()
            self._agree()
            evaluation.leave_out(self._stopping)
        for run, event in evaluation.results():
            yield run.key, event

    def _end(self, run: TrainingRun) -> Events:
        yield run.key, run.training_done()
        self._seating.leave(run)
        self._stopping.discard(run.key)

    def _tell(self, text: str) -> Events:
        for run in self.runs:
            yield run.key, Notice(text)


def alone(group: TrainingGroup) -> Iterator[Event]:
    """The events of a group of one; raises what made its run fail."""
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        yield event
