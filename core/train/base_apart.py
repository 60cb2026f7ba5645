"""One group trained by several processes on a base that is laid out over them (core/base_model/sharded.py).

Rows are divided and gradients summed as where only the data are apart (core/train/data_apart.py). But to
compute a layer all processes have to come together, so each makes as many passes as the others: one whose
rows have run out computes some that count nothing.
"""

from __future__ import annotations

from core.errors import InvalidConfig
from core.lora.kinds.lora import KIND as LORA
from core.train.data_apart import DataApart
from core.train.run import TrainingRun


class BaseApart(DataApart):
    """As DataApart, in step with the others."""

    in_step = True

    def require(self, run: TrainingRun) -> None:
        """Raise InvalidConfig for anything but LoRA: other kinds read W where no process holds it."""
        if run.kind is not LORA or run.head_shapes:
            raise InvalidConfig(
                f"{run.kind.label} is not trained on a base of which each process holds a part: it may "
                "read the base's weights beside a pass. Train LoRA on its linear layers, or on a base that "
                "one card holds."
            )
