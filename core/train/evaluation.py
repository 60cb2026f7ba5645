"""The loss on the rows that are kept back: of runs while they train, and of finished adapters."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.errors import InvalidConfig, InvalidData
from core.events import EvalDone, Progress
from core.lora.adapter import AdapterWeights
from core.lora.mixed_bank import Bank
from core.lora.whole import batches_of, computing_bank
from core.options import Config
from core.reporting import Report
from core.train.batches import RunData, Shape
from core.train.config import TrainConfig
from core.train.executing import Execution, Parts
from core.train.group_objective import GroupObjective
from core.train.padded import batch_of
from core.train.run import TrainingRun
from core.train.seating import Seating
from core.train.share import ALL, Share
from core.train.step import evaluate_batch


class Evaluation:
    """One pass over the validation rows of some runs of a group, a micro-batch of all of them at a time."""

    def __init__(
        self, execution: Execution, seating: Seating, runs: Sequence[TrainingRun], share: Share = ALL
    ) -> None:
        self._execution, self._seating, self._share = execution, seating, share
        self.runs = [run for run in runs if run.data.validation_blocks]
        """Those that have such rows."""
        self._left = {run: iter(run.validation()) for run in self.runs}
        self._sums: Tensor | None = None  # [slots, 1 + 2·metrics]

    def leave_out(self, keys: Collection[Hashable]) -> None:
        """Go on without these."""
        self.runs = [run for run in self.runs if run.key not in keys]
        self._left = {run: self._left[run] for run in self.runs}

    def next_parts(self) -> Parts:
        """The next micro-batch of each slot's run; empty at the end."""
        parts = [next(self._left[run], None) if run in self._left else None for run in self._seating.slots]
        return parts if any(parts) else []

    def take(self, parts: Parts) -> list[str]:
        """Add what these come to. Returns what the runs should be told of how that was done."""
        found, told = self._execution.evaluate(parts)
        self._sums = found if self._sums is None else self._sums + found
        return told

    def results(self) -> Iterator[tuple[TrainingRun, EvalDone]]:
        """The event of each run, once there are no more parts."""
        if self._sums is not None:
            self._share.sum_figures(self._sums)
        totals = self._sums.tolist() if self._sums is not None else []
        for run in self.runs:
            yield run, run.evaluation_done(totals[self._seating.slots.index(run)])


def validation_losses(
    base: ResidentBase,
    data: RunData,
    adapters: Sequence[AdapterWeights],
    train: TrainConfig,
    options: Config,
    report: Report,
) -> list[float]:
    """Mean loss of each adapter over the validation rows, in nats, by the data's objective with its own
    `options`; all that are added to the base in one pass over it.

    Raises InvalidData if no row was kept back.
    """
    if data.objective.classifies:
        raise InvalidConfig("The validation loss of adapters that tell labels cannot be measured anew yet.")
    if not data.validation_blocks:
        raise InvalidData(
            "The data set keeps no rows back for validation, so no loss can be measured; change its split."
        )
    found = torch.zeros(len(adapters))
    for places in batches_of(adapters):
        bank = computing_bank(base.model, base.layers, [adapters[at] for at in places])
        found[places] = _sums(base, bank, data, len(places), train, options, report)
    return (found / data.validation_units).tolist()


def _sums(
    base: ResidentBase,
    bank: Bank,
    data: RunData,
    adapters: int,
    train: TrainConfig,
    options: Config,
    report: Report,
) -> Tensor:
    """Of each adapter of a bank, the sum of its losses over the validation rows, [adapters]."""
    fixed, parts = base.device.type == "cuda", data.validation()
    shape = Shape.of([data], runs=adapters, blocks=train.micro_batch_size, fixed=fixed)
    goal = GroupObjective(data.objective, [options] * adapters)
    sums = torch.zeros(adapters)
    for number, part in enumerate(parts):
        report(Progress("Measuring the validation loss", number / len(parts)))
        batch = batch_of([part] * adapters, shape, base.way)
        sums += evaluate_batch(base, bank, batch, goal)[:, 0].cpu()
    return sums
