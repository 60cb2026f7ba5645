"""What a layer computes for each token by itself, computed in slices of tokens, forward and backward: the MLP
and the norms, whose temporaries are several times as large as a layer's input.

Backward computes each slice again from the whole module's input and goes through it at once (TiledMLP of
Arctic Long Sequence Training, arXiv 2506.13996, section 3.2). Which modules these are is found by asking
them: what gives something else in slices stays whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.base_model.compiling import eager_layers
from core.base_model.load import ResidentBase
from core.lora.layer import LoraLinear
from core.lora.side_by_side import TrainedBank

SLICE = 8192  # tokens of all rows together
_PROBE = 8  # tokens
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest number; of 16 bits 2e-2

Begin = Callable[[int], None]
"""Told before each slice with which token of a row it begins."""


@dataclass(frozen=True)
class TokenWise:
    """A module that takes one tensor [rows, tokens, …] and gives one [rows, tokens, *tail], token by
    token.
    """

    module: nn.Module
    tail: tuple[int, ...]


@contextmanager
def in_slices(modules: Sequence[TokenWise], begin: Begin, tokens: int | None = None) -> Iterator[None]:
    """Within the block these modules compute `tokens` tokens (SLICE) of all rows at a time; backward has to
    be inside, too. Their results are the same but for the order of sums.
    """
    for one in modules:
        one.module.forward = functools.partial(_forward, one.module.forward, one.tail, begin, tokens or SLICE)
    try:
        yield
    finally:
        for one in modules:
            del one.module.forward


def _forward(compute: Any, tail: tuple[int, ...], begin: Begin, tokens: int, x: Tensor) -> Tensor:
    each = max(1, tokens // x.shape[0])
    if x.shape[1] <= each:
        found: Tensor = compute(x)
        return found
    inside = _Slices(compute, tail, begin, each)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return inside.all(x)
    place: Tensor = _Begin.apply(x, inside)
    with torch.no_grad():
        y = inside.all(x)
    result: Tensor = _End.apply(place, y)
    return result


@dataclass(frozen=True)
class _Slices:
    """How one module's call is divided."""

    compute: Callable[[Tensor], Tensor]
    tail: tuple[int, ...]
    begin: Begin
    each: int

    def all(self, x: Tensor) -> Tensor:
        """y [rows, tokens, *tail]."""
        y = x.new_empty(*x.shape[:2], *self.tail)
        for at in self._starts(x):
            y[:, at] = self.compute(x[:, at].contiguous())
        return y

    def gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """That for x; those of parameters add up in them."""
        dx = torch.empty_like(x)
        for at in self._starts(x):
            part = x[:, at].contiguous().detach().requires_grad_()
            with torch.enable_grad():
                y = self.compute(part)
            torch.autograd.backward(y, dy[:, at])
            assert part.grad is not None
            dx[:, at] = part.grad
        return dx

    def _starts(self, x: Tensor) -> Iterator[slice]:
        for first in range(0, x.shape[1], self.each):
            self.begin(first)
            yield slice(first, first + self.each)
        self.begin(0)


# Two functions, since recomputing a layer ends where the last of what backward wants has been kept: the input
# of its last module is kept before that module computes, which then does not compute once more in vain.


class _Begin(torch.autograd.Function):
    """Keeps x, and gives a place for the result's gradient to come to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inside: _Slices) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inside = inside
        return x.new_zeros(()).expand(*x.shape[:2], *inside.tail)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.inside.gradient(x, dy), None


class _End(torch.autograd.Function):
    """The result, whose gradient goes to its place."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


# Which modules.


@torch.no_grad()
def token_wise(base: ResidentBase, bank: TrainedBank, rows: int) -> list[TokenWise]:
    """The modules of a base on the quick way, beside its attention, that compute each token by itself, seen
    in a pass over `rows` rows of a few tokens with the bank in use. With dropout also the linear layers of
    the attention, where masks are as wide as what they are given.
    """
    bank.eval()
    given: dict[nn.Module, list[tuple[tuple[Any, ...], Any]]] = {}
    flat: set[nn.Module] = set()
    candidates = _candidates(base, bank)
    with ExitStack() as hooks, eager_layers(), bank.use():
        for module in candidates:
            _watch(hooks, module, given, flat)
        base.inner(input_ids=_probe(base, rows), use_cache=False)
    with eager_layers(), bank.use():
        return [
            TokenWise(module, tuple(calls[0][1].shape[2:]))
            for module, calls in given.items()
            if all(_is_token_wise(module, *call, rows) for call in calls)
            and not (bank.drops and module in flat)
        ]


def _probe(base: ResidentBase, rows: int) -> Tensor:
    ids = torch.arange(rows * _PROBE, device=base.device) % int(base.config["vocab_size"])
    return ids.view(rows, _PROBE)


def _candidates(base: ResidentBase, bank: TrainedBank) -> list[nn.Module]:
    attending = [one.module for one in base.attention]
    beside = [
        child
        for layer in [base.model.base_model, *base.decoder_layers]
        for child in layer.children()
        if not any(one in attending for one in child.modules())
    ]
    inside = [child for one in attending for child in one.children()]
    return [*beside, *(child for child in inside if bank.drops or not isinstance(child, LoraLinear))]


def _watch(
    hooks: ExitStack, module: nn.Module, given: dict[nn.Module, list[Any]], flat: set[nn.Module]
) -> None:
    """Note what a module is given and gives, and whether it gives a linear layer rows of tokens in a row, for
    which a mask of dropout would be another in slices.
    """

    def seen(_: nn.Module, x: tuple[Any, ...], named: dict[str, Any], y: Any) -> None:
        given.setdefault(module, []).append(((*x, *named.values()), y))

    def seen_inside(_: nn.Module, x: tuple[Any, ...], y: Any) -> None:
        if x[0].dim() < 3:
            flat.add(module)

    hooks.callback(module.register_forward_hook(seen, with_kwargs=True).remove)
    for one in module.modules():
        if isinstance(one, LoraLinear):
            hooks.callback(one.register_forward_hook(seen_inside).remove)


def _is_token_wise(module: nn.Module, given: tuple[Any, ...], y: Any, rows: int) -> bool:
    if len(given) != 1 or not all(isinstance(one, Tensor) for one in (given[0], y)):
        return False
    x = given[0]
    if not x.is_floating_point() or any(one.shape[:2] != (rows, _PROBE) for one in (x, y)):
        return False
    parts = torch.cat([module(part.contiguous()) for part in x.split(3, dim=1)], dim=1)
    limit = _TOLERANCE.get(x.dtype, 2e-2) * float(y.abs().max())
    return y.dtype == x.dtype and float((parts - y).abs().max()) <= limit
