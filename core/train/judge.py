"""The validation loss of finished adapters, on the rows that a run kept back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.base_model.load import ResidentBase
from core.errors import InvalidData
from core.events import Progress
from core.lora.adapter import AdapterWeights
from core.lora.bank import loaded_bank
from core.reporting import Report
from core.train.batches import RunData, Shape, collate
from core.train.config import TrainConfig
from core.train.step import evaluate_batch


def validation_losses(
    base: ResidentBase, data: RunData, adapters: Sequence[AdapterWeights], train: TrainConfig, report: Report
) -> list[float]:
    """Mean loss of each adapter over the validation rows, in nats a token; all adapters in one pass over the
    base.

    Raises InvalidData if no row was kept back.
    """
    parts = data.validation()
    if not parts:
        raise InvalidData(
            "The data set keeps no rows back for validation, so no loss can be measured; change its split."
        )
    bank = loaded_bank(base.layers, adapters)
    fixed = base.device.type == "cuda"
    shape = Shape.of([data], runs=len(adapters), blocks=train.micro_batch_size, fixed=fixed)
    sums = torch.zeros(len(adapters))
    for number, part in enumerate(parts):
        report(Progress("Measuring the validation loss", number / len(parts)))
        sums += evaluate_batch(base, bank, collate([part] * len(adapters), shape)).cpu()
    return (sums / sum(part.supervised for part in parts)).tolist()
