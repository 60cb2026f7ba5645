"""Objectives: what a training minimises, and from which columns. Each is one file here; see core/seam.py.

The head that this file describes needs no torch, so the page and the command line can list the objectives.

An objective looks at one run's part of a batch at a time, and at sums only: what it returns is added up over
pieces, micro-batches and evaluations, and divided at the end. Nothing it does may wait for the device, and
shapes must follow from shapes alone, since a step may be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from core.data.sequences import ONE_EACH, Sequences
from core.options import Config, NoOptions
from core.seam import Seam

if TYPE_CHECKING:
    from torch import Tensor

    from core.train.config import TrainConfig


@dataclass(frozen=True)
class Metric:
    """A figure that an objective names beside its loss, and how it is shown."""

    name: str
    """What events, the registry and the command line's JSON call it."""
    label: str
    unit: str = ""
    digits: int = 4
    """Behind the decimal point."""
    lower_is_better: bool | None = None
    """None where neither is."""
    chart: str = ""
    """Metrics of the same chart are drawn into one; by default each has its own."""

    def shown(self, value: float) -> str:
        """As people read it."""
        return f"{value:.{self.digits}f}{f' {self.unit}' if self.unit else ''}"

    @property
    def title(self) -> str:
        """Of the chart it is drawn into."""
        return self.chart or self.label


@dataclass(frozen=True)
class TokenLosses:
    """One run's part of a batch: a place for each trained token, [C], and empty ones, which count nothing."""

    losses: Tensor
    """Cross-entropy of each token in nats, which is -log p; 0 at empty places. [C] float32."""
    base: Tensor | None
    """The same with the adapter off, where the objective asks for it. [C] float32."""
    counted: Tensor
    """Whether there is a token, [C] bool."""
    sequence: Tensor | None
    """Which of the part's sequences a token stands in, counted from 0 in the order of the rows, so that those
    of one row are neighbours; only where the objective asks for it. [C] int64."""
    sequences: int
    """As many as there can be in a part."""

    def by_sequence(self, values: Tensor) -> Tensor:
        """Sums of `values` [C] over each sequence's tokens, [sequences]; 0 where there is none."""
        assert self.sequence is not None, "the objective has to say wants_sequences"
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


Sums = Mapping[str, "tuple[Tensor, Tensor]"]
"""For each metric the sum and the count that its mean is made of, each [] float32."""


class Objective:
    """The head of an objective, and what it computes; here the mean cross-entropy of the trained tokens."""

    name: str
    label: str
    help: str
    order: int = 100
    options: type[Config] = NoOptions
    """Options of this objective alone, beside TrainConfig's; unique among all training options."""
    metrics: tuple[Metric, ...] = ()
    """What it names beside the loss."""
    sequences: Sequences = ONE_EACH
    """How rows become sequences."""
    mean_over: Literal["tokens", "rows"] = "tokens"
    """What the loss is a mean over: trained tokens, or rows."""
    wants_base: bool = False
    """Whether it wants the base's token losses too, which take one more forward pass."""
    wants_sequences: bool = False
    """Whether it wants to know which sequence each token stands in."""
    classifies: bool = False
    """Whether rows get labels by a head of the adapter's own, and no token is predicted: then neither loss()
    nor measure() is asked, and core/train/label_step.py computes.
    """

    def check(self, train: TrainConfig) -> None:
        """Raise InvalidConfig for an option of all trainings that it cannot keep."""

    def loss(self, tokens: TokenLosses, options: Any) -> Tensor:
        """The sum over the part's tokens or rows that is minimised, in nats, []; differentiable in
        tokens.losses.

        An objective that leaves this as it is needs no second look at the output head.
        """
        return tokens.losses.sum()

    def measure(self, tokens: TokenLosses, options: Any) -> Sums:
        """Its metrics over the part, by name."""
        return {}

    @property
    def is_weighted_sum(self) -> bool:
        """Whether the loss is the plain sum of the token losses, so that it is differentiated as it is
        computed.
        """
        return type(self).loss is Objective.loss


OBJECTIVES: Seam[Objective] = Seam("core.train.objectives", Objective, "objective")
