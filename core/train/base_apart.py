"""One group trained by several processes on a base that is laid out over them (core/base_model/sharded.py).

Rows are divided and gradients summed as where only the data are apart (core/train/data_apart.py). But to
compute a layer all processes have to come together, so each makes as many passes as the others: one whose
rows have run out computes some that count nothing.

Between two things that all do together the first process may make passes of its own, to answer somebody. The
others hear of each beforehand and gather the layers with it. One that breaks off leaves them in the middle of
a pass, so nothing is computed together after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from core.base_model.load import ResidentBase
from core.errors import InvalidConfig, WorkerLost
from core.lora.kinds.lora import KIND as LORA
from core.train.data_apart import DataApart
from core.train.run import TrainingRun

_MEET, _PASS = 0, 1  # what the first process says: that all come together, or that it makes a pass alone


class BaseApart(DataApart):
    """As DataApart, in step with the others."""

    in_step = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._layers: Sequence[Any] = ()
        self._all_pass = False
        self._alone = False  # whether the first process is in a pass of its own

    def accompany(self, base: ResidentBase) -> None:
        """Have the other processes take part in the passes that the first one makes by itself. All call it
        once `base` is laid out.
        """
        self._layers = base.decoder_layers
        if self.number == 0:
            base.inner.register_forward_pre_hook(self._begin_alone, prepend=True)
            base.inner.register_forward_hook(self._end_alone)

    def require(self, run: TrainingRun) -> None:
        """Raise InvalidConfig for anything but LoRA: other kinds read W where no process holds it."""
        if run.kind is not LORA or run.head_shapes:
            raise InvalidConfig(
                f"{run.kind.label} is not trained on a base of which each process holds a part: it may "
                "read the base's weights beside a pass. Train LoRA on its linear layers, or on a base that "
                "one card holds."
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """As Share.together()."""
        self.meet()
        self._all_pass = True
        try:
            yield
        finally:
            self._all_pass = False

    def meet(self) -> None:
        """Take part in what the first process computes alone, until it comes to this, too.

        Raises WorkerLost where it broke off.
        """
        if self.number == 0:
            self._require_ended()
            self._say(_MEET)
            return
        while self._heard() == _PASS:
            for layer in self._layers:
                layer.unshard()
                layer.reshard()

    def _begin_alone(self, *_: object) -> None:
        if self._all_pass:
            return
        self._require_ended()
        self._say(_PASS)
        self._alone = True

    def _end_alone(self, *_: object) -> None:
        self._alone = False

    def _require_ended(self) -> None:
        if self._alone:
            raise WorkerLost(
                "An answer broke off in the middle of a pass, in which all cards that hold the base have to "
                "take part"
            )

    def _say(self, what: int) -> None:
        dist.broadcast(torch.tensor(what), 0, group=self.words)

    def _heard(self) -> int:
        found = torch.tensor(_MEET)
        dist.broadcast(found, 0, group=self.words)
        return int(found)
