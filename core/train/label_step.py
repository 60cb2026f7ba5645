"""One micro-batch of texts and their labels: forward, the head's loss and backward, for K adapters that may
have other labels each.

transformers' own forward pass computes (core/base_model/classifier.py). Each run's loss is a sum over its
rows, and weighs what a row counts in the run's step, so K adapters together learn what each learns alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base_model.compiling import eager_layers
from core.base_model.load import ResidentBase
from core.data.labelled_rows import LabelledRows
from core.data.labels import MULTI, REGRESSION, SINGLE, LabelSet
from core.lora.side_by_side import TrainedBank
from core.train.batches import MicroBatch, Shape, padded_length
from core.train.group_objective import GroupObjective, figures_width
from core.train.label_report import counts_width
from core.train.memory import ExecutionPlan, keeping
from core.train.offloading import HostStash


@dataclass(frozen=True)
class LabelBatch:
    """One micro-batch of K runs, run after run, as many rows of each."""

    ids: Tensor
    """[K·rows, length], padded on the right."""
    mask: Tensor
    """1 where there is a token, [K·rows, length]."""
    targets: Tensor
    """[K, rows, width]; see LabelSet.target(), narrower ones filled up with zeros."""
    there: Tensor
    """Whether there is a row, [K, rows] float32."""
    weights: Tensor
    """What a row of each run counts in its step, [K] float32."""
    centres: Tensor
    """About the middle of each run's values, if its targets are values, [K] float32; see counts()."""

    def to(self, device: torch.device) -> LabelBatch:
        """The same on another device, without waiting for the copy."""
        return replace(self, **{name: one.to(device, non_blocking=True) for name, one in self._tensors()})

    def pinned(self) -> LabelBatch:
        """The same in page-locked memory, from where copies need not be waited for."""
        return replace(self, **{name: one.pin_memory() for name, one in self._tensors()})

    def _tensors(self) -> list[tuple[str, Any]]:
        return [(one.name, getattr(self, one.name)) for one in fields(self)]


def collate_labels(parts: Sequence[MicroBatch | None], shape: Shape, pad_id: int) -> LabelBatch:
    """Lay the micro-batches of K runs into one batch; a run that has none at the moment (None) gets empty
    rows, which count nothing.
    """
    rows = shape.blocks if shape.fixed else max(len(part.blocks) for part in parts if part)
    length = padded_length(parts, shape)
    labelled = [part.rows if part is not None else None for part in parts]
    width = max(one.labels.width for one in labelled if isinstance(one, LabelledRows))
    ids = np.full((len(parts), rows, length), pad_id, np.int64)
    mask = np.zeros((len(parts), rows, length), np.int64)
    mask[:, :, 0] = 1  # so that an empty row attends to something
    targets = np.zeros((len(parts), rows, width), np.float32)
    there = np.zeros((len(parts), rows), np.float32)
    weights, centres = np.zeros(len(parts), np.float32), np.zeros(len(parts), np.float32)
    for run, part in enumerate(parts):
        if part is None:
            continue
        assert isinstance(part.rows, LabelledRows)
        weights[run], centres[run] = part.weight, part.rows.centre
        for place, (number,) in enumerate(part.blocks):
            tokens, _ = part.rows[number]
            ids[run, place, : len(tokens)], mask[run, place, : len(tokens)] = tokens, 1
            targets[run, place, : part.rows.labels.width] = part.rows.targets[number]
            there[run, place] = 1.0
    flat = len(parts) * rows, length
    return LabelBatch(
        torch.from_numpy(ids.reshape(flat)),
        torch.from_numpy(mask.reshape(flat)),
        *(torch.from_numpy(one) for one in (targets, there, weights, centres)),
    )


def row_losses(logits: Tensor, targets: Tensor, labels: LabelSet) -> Tensor:
    """Each row's loss [rows] from its scores [rows, labels], as transformers' models compute its mean."""
    if labels.problem_type == SINGLE:
        return F.cross_entropy(logits, targets[:, 0].long(), reduction="none")
    if labels.problem_type == MULTI:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return (logits - targets).square().mean(1)


def right_rows(logits: Tensor, targets: Tensor, labels: LabelSet) -> Tensor:
    """Whether each row's label, or all its labels, are told right, [rows] bool."""
    if labels.problem_type == SINGLE:
        return logits.argmax(1) == targets[:, 0].long()
    return ((logits > 0) == (targets > 0.5)).all(1)


def counts(
    logits: Tensor, targets: Tensor, there: Tensor, labels: LabelSet, centre: Tensor | float = 0.0
) -> Tensor:
    """What core/train/label_report.py makes its figures of, flat, over the rows that are there.

    Values are measured from `centre`: how far they spread is a difference of sums, and in float32 nothing is
    left of it where they are far from zero, such as years.
    """
    if labels.problem_type == SINGLE:
        cell = targets[:, 0].long() * len(labels) + logits.argmax(1)
        return logits.new_zeros(len(labels) ** 2).index_add(0, cell, there)
    if labels.problem_type == MULTI:
        told, own = (logits > 0).float(), targets
        kinds = (told * own, told * (1 - own), (1 - told) * own, (1 - told) * (1 - own))
        return torch.stack([(one * there[:, None]).sum(0) for one in kinds], 1).flatten()
    value, error = targets[:, 0] - centre, logits[:, 0] - targets[:, 0]
    sums = (torch.ones_like(value), value, value.square(), error.square(), error.abs())
    return torch.stack([(one * there).sum() for one in sums])


@dataclass
class LabelStep:
    """Forward and backward for one bank. Gradients add up in the bank until they are zeroed."""

    base: ResidentBase
    bank: TrainedBank
    plan: ExecutionPlan
    goal: GroupObjective
    labels: Sequence[LabelSet]
    """Of each slot."""
    proven: bool = False
    notices: list[str] = field(default_factory=list)
    graphs: dict[tuple[int, ...], object] = field(default_factory=dict)
    """None: each micro-batch is launched by itself."""
    stash: HostStash | None = None
    """As MicroBatchStep's."""

    @property
    def width(self) -> int:
        """Numbers in a run's figures when it is evaluated."""
        return figures_width(self.goal.objective) + max(map(counts_width, self.labels))

    def collate(self, parts: Sequence[MicroBatch | None], shape: Shape) -> LabelBatch:
        """The batch of these micro-batches."""
        return collate_labels(parts, shape, self.base.classifier.pad_id)

    def train(self, batch: LabelBatch) -> Tensor:
        """Add the gradients of this micro-batch; return each run's figures, [K, 1 + 2·metrics]."""
        batch = batch.to(self.base.device)
        self.bank.train()
        self.bank.begin_batch(batch.ids.shape[1])
        with keeping(self.base, self.plan, stash=self.stash), eager_layers(), self.bank.use():
            logits = self._logits(batch)
            sums = torch.stack([self._loss(batch, logits, run) for run in range(len(self.labels))])
            (sums * batch.weights).sum().backward()
        self.proven = True
        return self._figures(batch, logits.detach(), sums.detach())

    @torch.no_grad()
    def evaluate(self, batch: LabelBatch) -> Tensor:
        """Each run's figures, [K, 1 + 2·metrics + counts]: behind the others what the table by label is made
        of.
        """
        batch = batch.to(self.base.device)
        self.bank.eval()
        with eager_layers(), self.bank.use():
            logits = self._logits(batch)
        runs = range(len(self.labels))
        figures = self._figures(batch, logits, torch.stack([self._loss(batch, logits, run) for run in runs]))
        found = [counts(*self._own(batch, logits, run), self.labels[run], batch.centres[run]) for run in runs]
        width = max(map(counts_width, self.labels))
        return torch.cat([figures, torch.stack([F.pad(one, (0, width - len(one))) for one in found])], 1)

    def _logits(self, batch: LabelBatch) -> Tensor:
        """[K, rows, labels], filled up where a run has fewer."""
        places = [self.bank.place(slot) for slot in range(len(self.labels))]
        heads = [bank.head(slot) for bank, slot in places]
        logits = self.base.classifier.logits(batch.ids, batch.mask, heads)
        return logits.view(len(self.labels), -1, logits.shape[-1])

    def _own(self, batch: LabelBatch, logits: Tensor, run: int) -> tuple[Tensor, Tensor, Tensor]:
        """One run's scores [rows, labels], targets [rows, width] and which rows are there [rows]."""
        labels = self.labels[run]
        return logits[run, :, : len(labels)], batch.targets[run, :, : labels.width], batch.there[run]

    def _loss(self, batch: LabelBatch, logits: Tensor, run: int) -> Tensor:
        own, targets, there = self._own(batch, logits, run)
        return (row_losses(own, targets, self.labels[run]) * there).sum()

    @torch.no_grad()
    def _figures(self, batch: LabelBatch, logits: Tensor, sums: Tensor) -> Tensor:
        """The loss's sum, then each metric's sum, then each metric's count: of the accuracy alone, since the
        others are no means over rows.
        """
        found = torch.zeros(len(self.labels), 1 + 2 * len(self.goal.objective.metrics), device=sums.device)
        found[:, 0] = sums
        for run, labels in enumerate(self.labels):
            own, targets, there = self._own(batch, logits, run)
            if labels.problem_type != REGRESSION:
                found[run, 1] = 100.0 * (right_rows(own, targets, labels) * there).sum()
                found[run, 1 + len(self.goal.objective.metrics)] = there.sum()
        return found
