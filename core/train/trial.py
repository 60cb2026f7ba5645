"""A few steps of runs that would train at once, in place of their own, and a clock beside them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from core.events import Prepared, StepDone
from core.lora.adapter import AdapterWeights
from core.train.batches import MicroBatch, RunData, Shape, padded_length
from core.train.group import TrainingGroup
from core.train.hardware import wait_for
from core.train.pace import Timed, TrialTimes
from core.train.run import RunRequest
from core.train.run_state import RunState

_LOOKED_AT = 100  # steps, among which the usual micro-batch is looked for

Save = Callable[[AdapterWeights, RunState], object]
"""Writes a checkpoint somewhere, for the time it takes."""


@dataclass(frozen=True)
class _Phase:
    """Micro-batches of one size: first some to warm up, then some whose time counts."""

    warm_up: int
    timed: int

    @property
    def all(self) -> int:
        return self.warm_up + self.timed


# On an accelerator: three micro-batches before a CUDA graph may be captured, and the capture. A CPU needs the
# first one only, for the memory and the threads.
_PHASES = {"cuda": (_Phase(4, 3), _Phase(4, 3)), "cpu": (_Phase(1, 1), _Phase(0, 1))}


class Trial:
    """What the runs are to do, and how long it took them."""

    def __init__(self, device: torch.device, data: dict[Hashable, RunData]) -> None:
        self._device, self._data = device, data
        self._longest = {key: one.longest() for key, one in data.items()}
        self._usual = {key: _usual(one) for key, one in data.items()}
        self._phases = _PHASES.get(device.type, _PHASES["cpu"])
        self._begun = time.perf_counter()
        self._at: list[float] = []  # when so many micro-batches were done, as far as it was looked at
        self._starting, self._saving = 0.0, 0.0
        self._evaluated: list[float] = []

    def request(self, request: RunRequest) -> RunRequest:
        """The same run for a few steps of one micro-batch each: of its longest blocks, then of usual ones;
        packed as the whole run would be.
        """
        train, data = request.options.train, self._data[request.key]
        short = replace(
            train,
            max_steps=self._steps,
            eval_steps=self._steps,
            gradient_accumulation_steps=1,
            packing="on" if data.packed else "off",
            compile="off" if train.compile == "auto" else train.compile,
        )
        kinds = zip(self._phases, (self._longest[request.key], self._usual[request.key]), strict=True)
        steps = [step for phase, part in kinds for step in [data.step_of(part)] * phase.all]
        options = replace(request.options, train=short)
        return replace(request, trial=steps, resume=None, changes=(), options=options)

    @property
    def _steps(self) -> int:
        return sum(phase.all for phase in self._phases)

    # The clock. The device is waited for where a time counts; elsewhere it works while the host prepares.

    def note(self, event: object) -> None:
        """Look at the clock where an event says that something begins."""
        if isinstance(event, Prepared) and not self._at:
            self._starting = self._now() - self._begun
        if isinstance(event, StepDone) and event.step == self._steps:
            self._evaluated = [self._now()]

    def micro_batch_done(self, runs: Sequence[Hashable]) -> None:
        """One more of these runs: of training, or of the evaluation behind it."""
        if self._evaluated:
            self._evaluated.append(self._now())
            return
        self._data = {key: self._data[key] for key in runs}  # others wait for their turn
        looks = self._ticks + 1 in self._marks
        self._at.append(self._now() if looks else time.perf_counter())

    @property
    def _ticks(self) -> int:
        return len(self._at)

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1; evaluating and saving are taken for one micro-batch more."""
        return min(self._ticks, self._steps) / (self._steps + 1)

    @cached_property
    def _marks(self) -> set[int]:
        first, second = self._phases
        return {1, 2, first.warm_up, first.all, first.all + second.warm_up, self._steps}

    def time_saving(self, group: TrainingGroup, key: Hashable, save: Save) -> None:
        """How long a checkpoint of this run takes; those of all runs are added up."""
        state = group.state(key)
        assert state is not None
        begun = self._now()
        save(group.adapter(key), state)
        self._saving += self._now() - begun

    def _now(self) -> float:
        wait_for(self._device)
        return time.perf_counter()

    # What it has shown.

    @property
    def data(self) -> list[RunData]:
        """Those of the runs that were tried at once."""
        return list(self._data.values())

    def times(self) -> TrialTimes:
        """All of it, once every run has done its steps."""
        first, second = self._phases
        longest, usual = (self._size(parts) for parts in (self._longest, self._usual))
        return TrialTimes(
            starting=self._starting,
            warming=max(0.0, self._warming(alike=longest == usual)),
            warm_after=first.warm_up,
            longest=Timed(longest, self._pace(first.warm_up, first.all)),
            usual=Timed(usual, self._pace(first.all + second.warm_up, self._steps)),
            evaluated=self._evaluation(),
            saving=self._saving,
        )

    def _since(self, done: int, until: int) -> float:
        """Seconds from when so many micro-batches were done until so many were."""
        return self._at[until - 1] - self._at[done - 1]

    def _pace(self, done: int, until: int) -> float:
        return self._since(done, until) / (until - done)

    def _warming(self, *, alike: bool) -> float:
        """What the first micro-batches of a shape take more than later ones, once the device is warm."""
        first, second = self._phases
        if self._device.type != "cuda":
            return 0.0
        if not alike:
            took = self._since(first.all, first.all + second.warm_up)
            return took - second.warm_up * self._pace(first.all + second.warm_up, self._steps)
        took = self._since(1, first.warm_up) + self._since(1, 2)  # the second for the first, which was cold
        return took - first.warm_up * self._pace(first.warm_up, first.all)

    def _evaluation(self) -> Timed | None:
        """The last micro-batch that was evaluated; those before warmed it up."""
        taken = [after - before for before, after in itertools.pairwise(self._evaluated)]
        if not taken:
            return None
        place = len(taken) - 1
        parts = [one.trial_validation()[place : place + 1] for one in self._data.values()]
        return Timed(padded_tokens([one[0] if one else None for one in parts], self._shape), taken[-1])

    def _size(self, parts: dict[Hashable, MicroBatch]) -> int:
        return padded_tokens([parts[key] for key in self._data], self._shape)

    @property
    def _shape(self) -> Shape:
        return shape_of(self.data, self._device)


def shape_of(data: Sequence[RunData], device: torch.device) -> Shape:
    """What the batches of runs on these data have in common, before memory makes pieces of them."""
    return Shape.of(data, runs=len(data), blocks=data[0].micro_batch_size, fixed=device.type == "cuda")


def padded_tokens(parts: Sequence[MicroBatch | None], shape: Shape) -> int:
    """Tokens of the batch that these micro-batches make, the padding counted."""
    blocks = shape.blocks if shape.fixed else max(len(part.blocks) for part in parts if part)
    return len(parts) * blocks * padded_length(parts, shape)


def _usual(data: RunData) -> MicroBatch:
    """A whole micro-batch of about the mean size."""
    parts = [part for step in itertools.islice(data.steps(), _LOOKED_AT) for part in step.micro_batches]
    mean = sum(part.longest for part in parts) / len(parts)
    return min(parts, key=lambda part: (-len(part.blocks), abs(part.longest - mean)))
