"""Which rows go into which step, and how they become tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.config import TrainConfig
from core.data.render import IGNORE, Rendered
from core.train.plan import validation_count

Step = list[list[Rendered]]
"""One optimiser step: micro-batches of rows."""


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows kept back."""

    train: list[Rendered]
    validation: list[Rendered]


def split_rows(rows: Sequence[Rendered], share: float, seed: int) -> Split:
    """Keep back `share` of the rows, chosen by `seed`."""
    count = validation_count(len(rows), share)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    held_back = set(order[:count])
    return Split(
        [row for index, row in enumerate(rows) if index not in held_back],
        [row for index, row in enumerate(rows) if index in held_back],
    )


def plan_steps(rows: Sequence[Rendered], config: TrainConfig) -> Iterator[Step]:
    """Endless steps: each epoch in a new order drawn from seed and epoch.

    Within a step, rows of similar length share a micro-batch; the loss is a mean over the step's tokens, so their
    order changes nothing but the padding.
    """
    size = config.micro_batch_size
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), size * config.gradient_accumulation_steps):
            chosen = [rows[index] for index in order[start : start + size * config.gradient_accumulation_steps]]
            chosen.sort(key=lambda row: len(row.ids))
            yield [chosen[at : at + size] for at in range(0, len(chosen), size)]
        epoch += 1


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length: ids, labels and mask, each [rows, length]."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def collate(rows: Sequence[Rendered], pad_id: int, device: torch.device) -> Batch:
    """Pad `rows` to the longest of them."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
        mask[index, : len(row.ids)] = 1
    return Batch(ids.to(device), labels.to(device), mask.to(device))
