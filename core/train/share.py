"""Which part of a group's work a process does, and what it comes to with the others' parts.

A process by itself does all of it, and has nobody to agree with. core/train/data_apart.py is the share of
one of several. What is asked for here is asked by all processes of a group at the same point of their work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from core.errors import WorkbenchError
from core.lora.side_by_side import TrainedBank

if TYPE_CHECKING:
    from core.train.run import TrainingRun


class NotHeld(MemoryError):
    """The memory of one of several processes did not hold a pass, which all know at the same point."""


class Share:
    """All of the work."""

    number = 0
    """This process's, from 0."""
    count = 1
    """Processes that train the group."""

    in_step = False
    """Whether each pass needs all processes, since the base lies in parts on them."""

    def together(self) -> AbstractContextManager[None]:
        """Within the block all processes make the same passes through the base."""
        return nullcontext()

    def passed(self, compute: Callable[[], Tensor], *, backward: bool) -> Tensor | None:
        """What compute() gives, which is one pass through the base, with backward or without; None where
        memory did not hold it and the others need this process in the pass all the same.
        """
        return compute()

    def agree_it_fits(self) -> None:
        """After passes that all make: raise NotHeld if memory did not hold one of any process."""

    def require(self, run: TrainingRun) -> None:
        """Raise InvalidConfig for a run that cannot be trained so."""

    def blocks(self, count: int) -> range:
        """Which of the `count` blocks of each run's micro-batch this process computes; every process has room
        for as many.
        """
        return range(count)

    def sum_gradients(self, bank: TrainedBank, slots: Sequence[int]) -> None:
        """Make the gradients of these slots the sums over all processes."""

    def sum_figures(self, figures: Tensor, slots: Sequence[int] | None = None) -> None:
        """Make these rows of figures [slots, n], by default all, the sums over all processes, in place."""

    def spread(self, bank: TrainedBank) -> None:
        """Give every process the first one's adapters."""

    def least(self, number: int) -> int:
        """The smallest that any process has."""
        return number

    def asked(self, wishes: list[Any]) -> list[Any]:
        """What was asked of the first process since the last time."""
        return wishes

    def either(self, wish: bool) -> bool:
        """Whether the first process wants something."""
        return wish

    def refusal(self, error: WorkbenchError | None, facts: dict[str, str]) -> WorkbenchError | None:
        """What keeps a run from being trained: this process's own error, another's, or that they do not have
        the same base, data or options; facts: digests of these, by what they are of.
        """
        return error


class FirstOf(Share):
    """What the first of `count` processes computes, without the others: to measure what it takes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def blocks(self, count: int) -> range:
        """As Share.blocks()."""
        return range(-(-count // self.count))


ALL = Share()
