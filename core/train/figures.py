"""What steps have come to, read late: losses and norms stay on the device until somebody needs them.

On an accelerator they are read one micro-batch late, so that the device never waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import TrainingDiverged
from core.events import RunFailed, StepDone
from core.train.batches import Step
from core.train.run import TrainingRun
from core.train.share import Share


@dataclass(frozen=True)
class Pending:
    """A step whose figures are still on the device."""

    run: TrainingRun
    number: int
    step: Step
    rate: float
    slot: int


class Figures:
    """The sums of the steps under way, by slot, and the steps that are done but not told yet."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums = torch.zeros(0, 1)  # [slots, 1 + 2·metrics]: figures of the steps under way
        self._sent: Tensor | None = None  # [slots, 2 + 2·metrics]: the pending steps', then gradient norms
        self.pending: list[Pending] = []

    def reseat(self, before: Sequence[int | None], width: int) -> None:
        """There are other slots from now on, with `width` figures each: `before` says which slot each was,
        None where it is new.
        """
        sums = torch.zeros(len(before), width, device=self._device)
        for slot, old in enumerate(before):
            if old is not None:
                sums[slot] = self._sums[old]
        self._sums = sums

    def add(self, figures: Tensor) -> None:
        """Those of another micro-batch, [slots, 1 + 2·metrics]."""
        self._sums += figures

    def forget(self, slots: Tensor | None = None) -> None:
        """Begin the steps of these slots anew; by default of all."""
        if slots is None:
            self._sums.zero_()
        else:
            self._sums.index_fill_(0, slots, 0.0)

    def sum(self, share: Share, slots: Sequence[int]) -> None:
        """Make those of these slots, whose steps are complete, the sums over all processes."""
        share.sum_figures(self._sums, slots)

    def send(self, norms: Tensor) -> None:
        """Send the sums and the gradient norms [slots] on their way to the host, without waiting."""
        self._sent = torch.cat([self._sums, norms[:, None]], 1).to("cpu", non_blocking=True)
        if self._device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self, seconds: float, memory: int) -> list[tuple[TrainingRun, StepDone | RunFailed]]:
        """The events of the pending steps, whose figures have arrived by now or are waited for.

        seconds: what a micro-batch takes; memory: the peak so far, in bytes.
        """
        assert self._sent is not None
        if self._device.type == "cuda":
            self._arrived.synchronize()
        rows = self._sent.tolist()
        told = [(one.run, _told(one, rows[one.slot], seconds, memory)) for one in self.pending]
        self.pending, self._sent = [], None
        return told


def _told(one: Pending, row: Sequence[float], seconds: float, memory: int) -> StepDone | RunFailed:
    each = seconds * len(one.step.micro_batches)
    *figures, norm = row
    try:
        return one.run.step_done(one.number, one.step, one.rate, figures, norm, each, memory)
    except TrainingDiverged as error:
        return RunFailed(error)
