"""One group trained by several processes on a base that is laid out over them (core/base_model/sharded.py).

Rows are divided and gradients summed as where only the data are apart (core/train/data_apart.py). But to
compute a layer all processes have to come together, so each makes as many passes as the others: one whose
rows have run out computes some that count nothing.

Where the memory of one does not hold a pass, that one gathers the layers that are left of it for the others,
and of the passes behind it. Then all say whether it was held, and how many layers they have gathered: they
do the steps again together under the next plan, or end, where these numbers differ.

Between two things that all do together the first process may make passes of its own, to answer somebody. The
others hear of each beforehand and gather the layers with it. One that breaks off leaves them in the middle of
a pass, so nothing is computed together after it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from core.base_model.load import ResidentBase
from core.base_model.sharded import GatheredLayers
from core.errors import InvalidConfig, WorkerLost
from core.lora.kinds.lora import KIND as LORA
from core.train.data_apart import DataApart
from core.train.memory import ran_out_of_memory
from core.train.run import TrainingRun
from core.train.share import NotHeld

_MEET, _PASS = 0, 1  # what the first process says: that all come together, or that it makes a pass alone


class BaseApart(DataApart):
    """As DataApart, in step with the others."""

    in_step = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._layers: GatheredLayers | None = None
        self._short = ""  # what the memory here did not hold, since all last agreed
        self._all_pass = False
        self._alone = False  # whether the first process is in a pass of its own

    def accompany(self, base: ResidentBase) -> None:
        """Have the other processes take part in the passes that the first one makes by itself, and all in
        those that the memory of one does not hold. All call it once `base` is laid out.
        """
        self._layers = GatheredLayers(base.inner, base.decoder_layers)
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
            assert self._layers is not None
            self._layers.gather_all()

    def passed(self, compute: Callable[[], Tensor], *, backward: bool) -> Tensor | None:
        """As Share.passed()."""
        layers = self._layers
        if layers is None or not layers.can_give_up:
            return compute()
        begun_at = layers.count
        if not self._short:
            try:
                return compute()
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                self._short = str(error) or type(error).__name__
            self._let_go()  # here, where the error that held on to the pass is gone
        layers.give_up(begun_at, backward=backward)
        return None

    def agree_it_fits(self) -> None:
        """As Share.agree_it_fits(). Raises WorkerLost where the processes are not in step any more."""
        if self._layers is None or not self._layers.can_give_up:
            return
        self.meet()
        count = self._layers.count
        found = torch.tensor([int(not self._short), count, -count])
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.words)
        fits, least, most = int(found[0]), int(found[1]), -int(found[2])
        if fits and least == most:
            return
        told, self._short = self._all_tell(self._short), ""
        said = next(
            (f"process {at} of {self.count}: {_short(one)}" for at, one in enumerate(told) if one), ""
        )
        if least != most:
            raise WorkerLost(f"The cards are not in step any more{' (' + said + ')' if said else ''}")
        raise NotHeld(said)

    def _let_go(self) -> None:
        gc.collect()  # recomputing leaves cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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


def _short(why: str) -> str:
    """What was wanted, without the allocator's figures behind it."""
    return ". ".join(why.split(". ")[:2]).rstrip(".")
