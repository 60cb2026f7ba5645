"""One group trained by several processes, each with the base and all adapters, and its part of every batch.

Each micro-batch's blocks are divided; gradients are summed once a step, so clipping and optimiser are those
of one process, and every process steps the same numbers. What a token counts in the loss is the step's own
figure (core/train/batches.py), and what dropout drops follows from the run, its micro-batch and the row there
(core/lora/dropout.py): neither depends on how the rows are divided. So the result is that of one process, up
to the order in which gradients are summed up.

The processes talk through torch.distributed: start them with torchrun, or with init_process_group() by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import InvalidConfig, InvalidData, WorkbenchError, WrongBase
from core.lora.bank import AdapterBank
from core.lora.side_by_side import TrainedBank
from core.sending import sent
from core.train.share import Share

PATIENCE = timedelta(minutes=30)
"""How long one process waits for another: compiling, a large base's load and a rendered sample all count."""
_DIFFERS = {"base": WrongBase, "data": InvalidData}  # the rest are options
_DIGEST = re.compile(r"[0-9a-f]{64}")


def backend(device: torch.device) -> str:
    """torch.distributed's backends for tensors on `device`, and on the CPU for what is said beside them."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


class DataApart(Share):
    """This process's part of each micro-batch. What the processes say to each other is numbers and JSON."""

    def __init__(self, device: torch.device, where: str = "") -> None:
        """Of the default process group, which has been initialised with backend(). Tensors travel from
        `device`, the rest over a group of its own on the CPU, which never waits for the device. where: the
        machine, in words for people, if there are several.
        """
        self.number, self.count, self._device = dist.get_rank(), dist.get_world_size(), device
        self._where = where
        self.words = dist.new_group(backend="gloo", timeout=PATIENCE)

    def meet(self) -> None:
        """Called by all before each thing that they do together."""

    def leave(self) -> None:
        """Let go of the others, as far as they are there, and of what listens for them."""
        del self.words
        dist.destroy_process_group()

    def blocks(self, count: int) -> range:
        """As Share.blocks(): those that follow each other, the last process may have fewer or none."""
        each = -(-count // self.count)
        return range(min(self.number * each, count), min((self.number + 1) * each, count))

    @torch.no_grad()
    def sum_gradients(self, bank: TrainedBank, slots: Sequence[int]) -> None:
        """As Share.sum_gradients(): one flat sum for each bank, of the slots alone that have finished a
        step.
        """
        self.meet()
        for own, places in _places(bank, slots):
            assert own.grad is not None
            if len(places) == own.slots:
                dist.all_reduce(own.grad)
                continue
            rows = sent(places, own.grad.device)
            found = own.grad.index_select(0, rows)
            dist.all_reduce(found)
            own.grad.index_copy_(0, rows, found)

    @torch.no_grad()
    def sum_figures(self, figures: Tensor, slots: Sequence[int] | None = None) -> None:
        """As Share.sum_figures()."""
        self.meet()
        if slots is None:
            dist.all_reduce(figures)
            return
        rows = sent(slots, figures.device)
        found = figures.index_select(0, rows)
        dist.all_reduce(found)
        figures.index_copy_(0, rows, found)

    @torch.no_grad()
    def spread(self, bank: TrainedBank) -> None:
        """As Share.spread(): where other hardware or another torch draws or computes other first numbers."""
        self.meet()
        for own in _banks(bank):
            dist.broadcast(own.flat, 0)
            if own.scale.numel():
                dist.broadcast(own.scale, 0)
        bank.refresh()

    def least(self, number: int) -> int:
        """As Share.least()."""
        self.meet()
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.words)
        return int(found)

    def asked(self, wishes: list[Any]) -> list[Any]:
        """As Share.asked(), of what JSON has; what the others were asked counts nothing."""
        self.meet()
        said = self.tell(json.dumps(wishes) if wishes else "")
        taken: list[Any] = json.loads(said) if said else []
        return taken

    def tell(self, said: str) -> str:
        """What the first process says."""
        words = said.encode() if self.number == 0 else b""
        length = torch.tensor(len(words))
        dist.broadcast(length, 0, group=self.words)
        found = _as_tensor(words, int(length))
        if length:
            self.send(found)
        return found.numpy().tobytes().decode()

    def send(self, numbers: Tensor) -> None:
        """Put the first process's numbers into this tensor of every other, which is as large."""
        dist.broadcast(numbers, 0, group=self.words)

    def _all_tell(self, said: str) -> list[str]:
        """What each process says, by its number."""
        words = said.encode()
        lengths = [torch.tensor(0) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor(len(words)), group=self.words)
        most = max(int(one) for one in lengths)
        found = [torch.empty(most, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(found, _as_tensor(words, most), group=self.words)
        return [
            one[: int(length)].numpy().tobytes().decode() for one, length in zip(found, lengths, strict=True)
        ]

    def either(self, wish: bool) -> bool:
        """As Share.either()."""
        self.meet()
        found = torch.tensor(int(wish))
        dist.broadcast(found, 0, group=self.words)
        return bool(found)

    def refusal(self, error: WorkbenchError | None, facts: dict[str, str]) -> WorkbenchError | None:
        """As Share.refusal()."""
        self.meet()
        mine = {"refused": str(error) if error else "", "facts": facts, "where": self._where}
        told: list[dict[str, Any]] = [json.loads(one) for one in self._all_tell(json.dumps(mine))]
        if error is not None:
            return error
        for number, one in enumerate(told):
            if one["refused"]:
                return WorkbenchError(f"{self._named(number, one)} cannot train it: {one['refused']}")
        return next(self._differences(told), None)

    def _named(self, number: int, told: dict[str, Any]) -> str:
        return f"Process {number} of {self.count}{' on ' + told['where'] if told['where'] else ''}"

    def _differences(self, told: Sequence[dict[str, Any]]) -> Iterator[WorkbenchError]:
        for what, first in told[0]["facts"].items():
            for number, one in enumerate(told):
                own = one["facts"].get(what, "none")
                if own != first:
                    yield _DIFFERS.get(what, InvalidConfig)(
                        f"{self._named(number, one)} does not have the first one's {what}: its is "
                        f"{_shown(own)}, the first one's {_shown(first)}. Give all of them the same."
                    )


def _as_tensor(words: bytes, length: int) -> Tensor:
    """These bytes, and zeros up to the length."""
    found = torch.zeros(length, dtype=torch.uint8)
    if words:
        found[: len(words)] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    return found


def _shown(fact: str) -> str:
    """Of a digest its beginning, anything else as it is."""
    return fact[:12] if _DIGEST.fullmatch(fact) else fact


def _places(bank: TrainedBank, slots: Sequence[int]) -> Iterator[tuple[AdapterBank, list[int]]]:
    """Each bank that holds some of these slots, with their numbers in it."""
    found: dict[int, tuple[AdapterBank, list[int]]] = {}
    for slot in slots:
        own, place = bank.place(slot)
        found.setdefault(id(own), (own, []))[1].append(place)
    yield from found.values()


def _banks(bank: TrainedBank) -> Iterator[AdapterBank]:
    return (own for own, _ in _places(bank, range(bank.slots)))
