"""Where a run stands at the end of an optimiser step: all it takes to go on as if nothing had happened.

The order of the rows follows from the seed and the number of steps done, dropout from the seed and the number
of micro-batches, the learning rate from the number of steps: so these numbers, the factors and Adam's moments
are the whole state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import InvalidInput
from core.files.safetensors_file import write_float32

STATE_NAME = "state.safetensors"
Moments = Mapping[str, Mapping[str, Tensor]]
"""By module path and the name of the trained tensor, in its shape, in float32."""


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    steps: int
    """Optimiser steps done."""
    micro_batches: int
    """Micro-batches of these steps; the next one's number keys its dropout."""
    train_loss: float | None
    validation_loss: float | None
    evaluated_at: int
    """Steps done at the last evaluation; -1 before the first."""
    tokens: int = 0
    """Input tokens of these steps."""
    seconds: float = 0.0
    """Time spent on these steps; the one figure that the adapter does not depend on."""


@dataclass(frozen=True)
class RunState:
    """Adam's two moments (Kingma and Ba 2014) and the position; the factors lie beside it as an adapter."""

    position: Position
    mean: Moments
    square: Moments
    beside: Moments = field(default_factory=dict)
    """What the adapter does not hold of the run's numbers; of most kinds nothing."""

    @property
    def numbers(self) -> int:
        """Of all its tensors."""
        parts = (self.mean, self.square, self.beside)
        return sum(one.numel() for part in parts for layer in part.values() for one in layer.values())

    def save(self, folder: Path) -> None:
        """Write it into the existing folder."""
        tensors = {
            f"{moment}/{path}/{name}": tensor.numpy()
            for moment, moments in (("mean", self.mean), ("square", self.square), ("beside", self.beside))
            for path, layer in moments.items()
            for name, tensor in layer.items()
        }
        write_float32(folder / STATE_NAME, tensors, {"position": json.dumps(asdict(self.position))})

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """From where save() put it. Raises InvalidInput if it cannot be read."""
        try:
            with safe_open(folder / STATE_NAME, framework="pt") as file:
                position = Position(**json.loads(file.metadata()["position"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"The checkpoint {folder.name[:12]} cannot be read: {str(error)[:200]}"
            ) from None
        parts: dict[str, dict[str, dict[str, Tensor]]] = {"mean": {}, "square": {}, "beside": {}}
        for key, tensor in tensors.items():
            moment, path, name = key.split("/")
            parts[moment].setdefault(path, {})[name] = tensor
        return cls(position, parts["mean"], parts["square"], parts["beside"])
