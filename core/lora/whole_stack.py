"""Numbers that adapters have of their own for a module of the base, beside their factors: K of them at once.

A whole weight (embedding, output head) computes the rows of its adapter in the place of the base's. A bias is
added to what the module computes with the base's: y + (b − b₀), and a bias on B to what the factors add:
y + s·b (PEFT's lora_bias).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.lora.layer import Adaptable, LayerStack
from core.lora.wholes import BIAS, BIAS_ON_B, WEIGHT

V = TypeVar("V")
Own = Mapping[str, Tensor]
"""One adapter's numbers for one module: weight and bias, by these names."""


class OwnModule(nn.Module):
    """Around a module's stack: some adapters compute with a weight of their own."""

    def __init__(
        self, own: Callable[[], Sequence[Own]], dtype: torch.dtype, inner: LayerStack | None = None
    ) -> None:
        """own gives the numbers of each slot, empty where it computes with the base's and `inner`; dtype is
        what the base computes in.
        """
        super().__init__()
        self._own, self._dtype, self._inner = own, dtype, inner
        self._numbers: list[Own] = []

    def begin(self) -> None:
        """Work out the numbers in the dtype that the base computes in, once for all that follows."""
        self._numbers = [{name: one.to(self._dtype) for name, one in own.items()} for own in self._own()]

    def end(self) -> None:
        """Let go of them."""
        self._numbers = []

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """See LayerStack; of an embedding x is ids [N, T]."""
        if slots is None:
            return self._all_in_order(x, base)
        y = self._without(x, base, slots)
        rows = slots.repeat_interleave(x.shape[0] // slots.shape[0])
        for slot, own in enumerate(self._numbers):
            is_here = rows == slot
            if own and (x.is_cuda or bool(is_here.any())):  # to look would make an accelerator wait
                y = torch.where(is_here.view(-1, *[1] * (y.dim() - 1)), _with(base, own, x), y)
        return y

    def _all_in_order(self, x: Tensor, base: nn.Module) -> Tensor:
        count = len(self._numbers)
        parts = x.chunk(count)
        if all(self._numbers):
            return torch.cat([_with(base, *pair) for pair in zip(self._numbers, parts, strict=True)])
        others = self._without(x, base, None).chunk(count)
        trios = zip(self._numbers, parts, others, strict=True)
        return torch.cat([_with(base, own, part) if own else other for own, part, other in trios])

    def _without(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        y: Tensor = base(x) if self._inner is None else self._inner.linear(x, base, slots)
        return y


def _with(base: nn.Module, own: Own, x: Tensor) -> Tensor:
    result: Tensor = functional_call(base, dict(own), (x,))
    return result


class OwnBias(nn.Module):
    """Around a module's stack: biases of each adapter's own, [K, out]."""

    bias: Tensor | None
    bias_on_b: Tensor | None

    def __init__(
        self,
        inner: LayerStack | None,
        frozen: Tensor | None,
        bias: Tensor | None = None,
        bias_on_b: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """inner: the stack whose output it is added to; None for the base's alone. bias goes in the place of
        the `frozen` one; bias_on_b is added times `scale` [K]. Both may be parameters.
        """
        super().__init__()
        self.inner, self._frozen, self._scale = inner, frozen, scale
        for name, one in (("bias", bias), ("bias_on_b", bias_on_b)):
            if isinstance(one, nn.Parameter):
                self.register_parameter(name, one)
            else:
                self.register_buffer(name, one)

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """See LayerStack."""
        y: Tensor = base(x) if self.inner is None else self.inner.linear(x, base, slots)
        more = self._more()
        more = more if slots is None else more[slots]
        grouped = y.reshape(more.shape[0], -1, y.shape[-1]) + more[:, None].to(y.dtype)
        return grouped.view(y.shape)

    def _more(self) -> Tensor:
        """What is added for each adapter, [K, out]."""
        parts = []
        if self.bias is not None:
            parts.append(self.bias if self._frozen is None else self.bias - self._frozen)
        if self.bias_on_b is not None:
            assert self._scale is not None
            parts.append(self.bias_on_b * self._scale[:, None])
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


@contextmanager
def in_use(
    places: Mapping[str, Adaptable],
    stacks: Mapping[str, LayerStack],
    slots: Tensor | None,
    own: Sequence[OwnModule],
) -> Iterator[None]:
    """Within the block each of these modules computes with its stack; `own` are those of the stacks that work
    something out first.
    """
    for one in own:
        one.begin()
    for path, place in places.items():
        place.factors, place.slots = stacks[path], slots
    try:
        yield
    finally:
        for place in places.values():
            place.factors, place.slots = None, None
        for one in own:
            one.end()


def by_module(named: Mapping[str, V]) -> dict[str, dict[str, V]]:
    """What is given by whole parameters, by their module's path and there by WEIGHT, BIAS or BIAS_ON_B."""
    found: dict[str, dict[str, V]] = {}
    for name, one in named.items():
        end = next(end for end in (BIAS_ON_B, BIAS, WEIGHT) if name.endswith(end))
        found.setdefault(name.removesuffix(end), {})[end] = one
    return found
