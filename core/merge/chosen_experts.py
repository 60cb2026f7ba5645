"""Which experts a router sends each token to, written down in one model and given to another.

A router chooses the k largest of its scores. Where two are nearly equal, rounding decides, and what comes out
is another expert's: a difference that says nothing about the weights. So two models that differ by rounding
alone are compared with the same choices, and the choices by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.lora.expert_wrapping import experts_of

Choice = tuple[Tensor, Tensor]
"""Of each token the numbers of its experts [tokens, k], and by how much each counts, as many."""


@dataclass
class SameChoices:
    """How another model's own choices are like those that it was given."""

    _alike: list[Tensor] = field(default_factory=list)
    _off: list[Tensor] = field(default_factory=list)

    def compare(self, own: Choice, given: Choice) -> None:
        """Count what one layer chose of its own accord beside what it was given."""
        sets = [one.sort(-1).values for one, _ in (own, given)]
        self._alike.append((sets[0] == sets[1]).all(-1).float())
        # in order of size, since these go on smoothly where one expert takes another's place
        weights = [one.float().sort(-1).values for _, one in (own, given)]
        self._off.append((weights[0] - weights[1]).square().sum() / weights[1].square().sum())

    @property
    def agreement(self) -> float:
        """Share of tokens, over all layers, that go to the same experts; 1 for a model without any."""
        return float(torch.cat(self._alike).mean()) if self._alike else 1.0

    @property
    def weight_difference(self) -> float:
        """Of how much the experts count: root mean square, as a share of their own, where that is
        largest of all layers and prompts.
        """
        return float(torch.stack(self._off).max().sqrt()) if self._off else 0.0


@contextmanager
def recorded_choices(model: nn.Module) -> Iterator[list[Choice]]:
    """Within the block all choices are written down, in the order in which they are made."""
    found: list[Choice] = []

    def record(experts: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append(arguments[1:3])

    with _before_experts(model, record):
        yield found


@contextmanager
def given_choices(model: nn.Module, choices: Sequence[Choice]) -> Iterator[SameChoices]:
    """Within the block these are taken in the place of the model's own, in their order."""
    same, left = SameChoices(), iter(choices)

    def give(experts: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *own = arguments
        given = next(left)
        same.compare((own[0], own[1]), given)
        return states, *given, *own[2:]

    with _before_experts(model, give):
        yield same


@contextmanager
def _before_experts(model: nn.Module, hook: Any) -> Iterator[None]:
    """Within the block `hook` is called before the experts of each layer, which are given states, numbers and
    weights (transformers' use_experts_implementation); experts of another form are left alone.
    """
    handles = [experts.register_forward_pre_hook(hook) for experts in experts_of(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
