"""Linear layers that are given the same input, such as q, k and v, computed as one in answers: a product of
few tokens takes as long as its weight takes to be read, and each further call costs time of its own.

Their weights lie behind each other in memory, each still a parameter of its own layer, and so do the factors
of a bank (core/lora/layout.py): nothing is held twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.lora.factors import LoraFactors
from core.lora.layer import LoraLinear
from core.lora.ops import JOINT_OUTPUTS, MOST_JOINT, adapted

_ALIKE = 0.02  # of the largest logit: products of other shapes are summed in another order


class Joint(nn.Module):
    """Layers that are computed together, in the model's order; whichever is asked first computes all."""

    def __init__(self, layers: Sequence[LoraLinear], asked: Sequence[LoraLinear]) -> None:
        """Moves their weights behind each other. asked: the same in the order of being asked."""
        super().__init__()
        self._layers = tuple(layers)  # a tuple, since they are no modules of this one
        self._sizes = [layer.out_features for layer in layers]
        self._weight = _moved([layer.base.weight for layer in layers])
        biases = [layer.base.bias for layer in layers if layer.base.bias is not None]
        self._bias = _moved(biases) if biases else None
        self._shares = [
            _Share(self, number, layer is asked[0], layer is asked[-1]) for number, layer in enumerate(layers)
        ]
        self._factors: tuple[Tensor, Tensor, Tensor] | None = None
        self._slots: Tensor | None = None
        self.outputs: Sequence[Tensor] = ()
        """Of each layer, from when the first is asked until the last is."""

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Within the block the layers are computed together, with the adapters that are in use on them; where
        these are not LoRA on all of them or none, each is computed by itself.
        """
        stacks = [layer.factors for layer in self._layers]
        plain = all(stack is None for stack in stacks)
        self._factors, self._slots = None if plain else _joint_factors(stacks), self._layers[0].slots
        if not plain and self._factors is None:
            yield
            return
        for layer, share in zip(self._layers, self._shares, strict=True):
            layer.share = share
        try:
            yield
        finally:
            for layer in self._layers:
                layer.share = None
            self._factors = self._slots = None

    def computed(self, x: Tensor) -> Sequence[Tensor]:
        """What each layer gives for x [R, …, in], with the same number of tokens for each row."""
        if self._factors is None:
            return F.linear(x, self._weight, self._bias).split(self._sizes, dim=-1)
        assert self._slots is not None
        return adapted(x, self._weight, self._bias, *self._factors, self._slots, self._sizes)


class _Share(nn.Module):
    """What stands in one layer's place."""

    def __init__(self, joint: Joint, number: int, first: bool, last: bool) -> None:
        super().__init__()
        self._joint, self._number, self._first, self._last = joint, number, first, last

    def forward(self, x: Tensor) -> Tensor:
        if self._first:
            self._joint.outputs = self._joint.computed(x)
        found = self._joint.outputs[self._number]
        if self._last:
            self._joint.outputs = ()
        return found


@contextmanager
def together(joints: Sequence[Joint]) -> Iterator[None]:
    """Within the block each of these computes for its layers."""
    with ExitStack() as block:
        for joint in joints:
            block.enter_context(joint.taking_over())
        yield


@torch.no_grad()
def find_joints(model: PreTrainedModel) -> list[Joint]:
    """The layers of a model that are given the same input one after another, seen in a pass over two tokens,
    and from now on with their weights behind each other. None if the model computes otherwise with them.
    """
    ids = {"input_ids": torch.arange(2, device=model.device)[:, None], "use_cache": False}
    asked: list[tuple[LoraLinear, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]

    def notice(layer: LoraLinear, given: tuple[Tensor]) -> None:
        asked.append((layer, given[0]))

    hooks = [layer.register_forward_pre_hook(notice) for layer in layers]
    try:
        alone = model(**ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    runs = [[one for one, _ in run] for _, run in itertools.groupby(asked, key=lambda pair: id(pair[1]))]
    joints = [Joint(sorted(run, key=layers.index), run) for run in runs if _fit(run)]
    with together(joints):
        found = model(**ids).logits
    alike = (found - alone).abs().max() <= _ALIKE * alone.abs().max()
    return joints if bool(alike) else []


def _fit(layers: Sequence[LoraLinear]) -> bool:
    """Whether these can be one product."""
    bases = [layer.base for layer in layers]
    plain = all(map(_is_plain, bases)) and len({id(base) for base in bases}) == len(bases)
    biases = {base.bias is None for base in bases}
    sizes = [layer.out_features for layer in layers]
    even = not any(size % JOINT_OUTPUTS for size in sizes)
    return plain and even and 1 < len(layers) <= MOST_JOINT and len(biases) == 1


def _is_plain(base: nn.Module) -> bool:
    """Whether its weight lies in memory as it is: not packed, and not in parts on several processes."""
    return type(base) is nn.Linear and type(base.weight.data) is Tensor


def _moved(parameters: Sequence[Any]) -> Tensor:
    """Parameters in one tensor, of which each becomes a part."""
    whole = torch.cat([one.data for one in parameters])
    for one, part in zip(parameters, whole.split([len(one) for one in parameters]), strict=True):
        one.data = part
    return whole


def _joint_factors(stacks: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """A [K, P·r, in], B [K, out, r] and scale [P, K] of P stacks as views; None where they are not LoRA's of
    one rank behind each other.
    """
    if not all(isinstance(stack, LoraFactors) for stack in stacks):
        return None
    if len({stack.work_A.shape[1] for stack in stacks}) > 1:
        return None
    A, B = (_as_one([getattr(stack, name) for stack in stacks], 1) for name in ("work_A", "work_B"))
    scale = _as_one([stack.scale[None] for stack in stacks], 0)
    return None if A is None or B is None or scale is None else (A, B, scale)


def _as_one(parts: Sequence[Tensor], dim: int) -> Tensor | None:
    """Views of one memory that lie behind each other along `dim`, as one view."""
    first, length, expected = parts[0], 0, parts[0].data_ptr()
    for one in parts:
        if one.data_ptr() != expected or one.stride()[1:] != first.stride()[1:]:
            return None
        length += one.shape[dim]
        expected += one.shape[dim] * first.stride(dim) * first.element_size()
    shape = [*first.shape[:dim], length, *first.shape[dim + 1 :]]
    return first.as_strided(shape, first.stride())
