"""The experts of a mixture with adapters on their fused parameters.

What transformers decorates with use_experts_implementation has one shape: two fused parameters, a gate
between them, and weights by which the experts of a token are summed. That is computed here with the adapters'
part beside each product. Other experts are left alone, and adapters on them are refused.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from core.lora.expert_products import Pairs, added_to_few, added_to_pairs, grouped_product, sorted_pairs
from core.lora.expert_shapes import ExpertShape
from core.lora.layer import Adapted, LayerStack, LoraEmbedding, LoraLinear
from core.lora.stack import AdapterStack, SplitStack

_UP = ("gate_up_proj", "up_proj")
_DOWN = "down_proj"


def expert_shapes(module: nn.Module) -> dict[str, ExpertShape]:
    """Of the fused parameters of a module, wrapped or not, by name; empty for what is no experts, or none
    that are known here.
    """
    module = module.base if isinstance(module, LoraExperts) else module
    own = dict(module.named_parameters(recurse=False))
    up = next((name for name in _UP if name in own), None)
    if (
        up is None
        or _DOWN not in own
        or not all(hasattr(module, one) for one in ("is_transposed", "has_bias"))
    ):
        return {}
    found = {name: _shape(own[name], bool(module.is_transposed)) for name in (up, _DOWN)}
    return {name: shape for name, shape in found.items() if shape is not None} if all(found.values()) else {}


def _shape(parameter: Tensor, transposed: bool) -> ExpertShape | None:
    if parameter.dim() != 3:
        return None
    experts, rows, columns = parameter.shape
    return ExpertShape(rows, columns, experts) if transposed else ExpertShape(columns, rows, experts)


class FusedWeight(nn.Module):
    """A fused parameter as a module, which it is not in the model."""

    def __init__(self, experts: nn.Module, name: str) -> None:
        super().__init__()
        self._of = (experts, name)  # in a tuple, so that it is no part of this one

    @property
    def weight(self) -> Tensor:
        """[E, out, in], or [E, in, out] where the base keeps it so."""
        experts, name = self._of
        found: Tensor = getattr(experts, name)
        return found

    @property
    def bias(self) -> Tensor | None:
        """[E, out], where the experts have one."""
        experts, name = self._of
        return getattr(experts, f"{name}_bias") if experts.has_bias else None


class ExpertParameter(nn.Module):
    """One fused parameter of experts, and the adapters in use on it."""

    def __init__(self, experts: nn.Module, name: str, shape: ExpertShape) -> None:
        super().__init__()
        self.base = FusedWeight(experts, name)
        self.shape = shape
        self.in_features, self.out_features = shape
        self.transposed = bool(experts.is_transposed)
        self.factors: LayerStack | None = None
        self.slots: Tensor | None = None


AdaptedLayer = LoraLinear | LoraEmbedding | ExpertParameter
"""What adapters can have factors on."""


class LoraExperts(Adapted):
    """Frozen experts and the adapters in use on them; without any, exactly what the base computes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.shapes = expert_shapes(base)
        self.fused = nn.ModuleDict(
            {name: ExpertParameter(base, name, shape) for name, shape in self.shapes.items()}
        )

    @property
    def _both(self) -> tuple[ExpertParameter, ExpertParameter]:
        """What makes an expert's inner states, and what its output."""
        up, down = self.fused.values()
        return up, down  # type: ignore[return-value]

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """hidden states [T, H], the chosen experts [T, k] and their weights [T, k], as transformers gives
        them. T holds the tokens of all rows in order.
        """
        up, down = (one.factors for one in self._both)
        if up is None and down is None:
            result: Tensor = self.base(*given, **named)
            return result
        if named:
            given = inspect.signature(self.base.forward).bind(*given, **named).args
        split = next((one for one in (up, down) if isinstance(one, SplitStack)), None)
        if split is None:
            return self.computed(given, up, down)
        tokens = given[0].shape[0] // sum(split.counts)
        pieces = zip(*(one.split([tokens * count for count in split.counts]) for one in given), strict=True)
        stacks = zip(*(_parts(one, len(split.counts)) for one in (up, down)), strict=True)
        return torch.cat([self._share(one, *own) for one, own in zip(pieces, stacks, strict=True)])

    def _share(self, given: tuple[Tensor, ...], up: LayerStack | None, down: LayerStack | None) -> Tensor:
        """The rows of one bank."""
        if up is None and down is None:
            result: Tensor = self.base(*given)
            return result
        return self.computed(given, up, down)

    def computed(self, given: tuple[Tensor, ...], up: LayerStack | None, down: LayerStack | None) -> Tensor:
        """The sum over each token's experts, [T, H], with what the stacks add to the two products; given as
        forward() is.
        """
        x, top_k_index, top_k_weights = given
        base: Any = self.base
        first, last = self._both
        slots = first.slots if up is not None else last.slots
        pairs = sorted_pairs(top_k_index, first.shape.experts, _adapters(up or down, slots))
        inner = _product(x[pairs.token], first, pairs, up, slots)
        inner = base._apply_gate(inner) if getattr(base, "has_gate", True) else base.act_fn(inner)
        outer = _product(inner, last, pairs, down, slots)
        if getattr(base, "has_post_expert_norm", False):
            outer = base.post_expert_norm(outer)
        weighted = outer * top_k_weights.reshape(-1)[pairs.order, None]
        back = torch.empty_like(pairs.order)
        back[pairs.order] = torch.arange(len(back), device=back.device)
        return weighted[back].view(*top_k_index.shape, -1).sum(1).to(x.dtype)


def _parts(stack: LayerStack | None, count: int) -> tuple[LayerStack | None, ...]:
    """The stacks of several banks on one parameter."""
    return stack.stacks if isinstance(stack, SplitStack) else (None,) * count


def _adapters(stack: LayerStack | None, slots: Tensor | None) -> int:
    """How many adapters share the tokens of a pass."""
    if slots is not None:
        return len(slots)
    return len(stack.scale) if isinstance(stack, ExpertStack) else 1


def _product(
    x: Tensor, place: ExpertParameter, pairs: Pairs, stack: LayerStack | None, slots: Tensor | None
) -> Tensor:
    """What sorted pairs x [P, in] become by one fused parameter, with its bias and the adapters' part."""
    weight, bias = place.base.weight, place.base.bias
    y = grouped_product(x, weight if place.transposed else weight.transpose(1, 2), pairs.expert_ends)
    if bias is not None:
        y = y + bias[pairs.expert]
    return y + stack.of_pairs(x, pairs, slots) if isinstance(stack, ExpertStack) else y


class ExpertStack(AdapterStack):
    """LoRA on a fused parameter of experts: A [K, E, r, in], B [K, E, out, r]. There is no dropout, as in
    PEFT.
    """

    A: Tensor
    B: Tensor
    work_A: Tensor
    work_B: Tensor

    def of_pairs(self, x: Tensor, pairs: Pairs, slots: Tensor | None) -> Tensor:
        """What is added for pairs x [P, in] of the adapters in `slots`, or of all in order, [P, out]."""
        if slots is None:
            A, B = self.A.to(x.dtype), self.B.to(x.dtype)
            return added_to_pairs(x, A, B, self.scale.to(x.dtype), pairs)
        A, B, scale = self.work_A, self.work_B, self.scale.to(x.dtype)
        if len(x) <= pairs.experts * pairs.adapters:
            return added_to_few(x, A, B, scale, slots, pairs)
        return added_to_pairs(x, A[slots], B[slots], scale[slots], pairs)

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """What each expert adds for tokens x [K, T, in], [K, E, T, out]; nothing sums that."""
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        scale = self.scale.to(x.dtype)[:, None, None, None]
        return (x[:, None] @ A.mT) @ B.mT * scale
