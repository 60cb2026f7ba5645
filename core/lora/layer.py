"""A frozen linear layer that adapters can be put on, and what a linear layer is."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.lora.quantised import QuantisedLinear


class LayerStack(Protocol):
    """The adapters on one layer, in whatever arrangement."""

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """The module's output with the adapters' part, see AdapterStack.linear(); an embedding is given
        ids.
        """


class LoraLinear(nn.Module):
    """A frozen linear layer and the adapters in use on it.

    Without any it computes exactly what the base does; the forward pass never changes W.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = linear_shape(base)
        self.factors: LayerStack | None = None
        self.slots: Tensor | None = None
        self.share: nn.Module | None = None
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """The frozen weight as the base stores it, or of a quantised one what it computes with; some model
        code looks at its dtype.
        """
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if the layer has one."""
        return self.base.bias  # type: ignore[return-value]

    @property
    def transposed(self) -> bool:
        """Whether the base's files hold W as [in, out] (GPT-2's Conv1D)."""
        return isinstance(self.base, Conv1D) or getattr(self.base, "transposed", False)

    def forward(self, x: Tensor) -> Tensor:
        if self.share is not None:  # it is computed together with others, see core/lora/joint.py
            return self.share(x)
        return self.base(x) if self.factors is None else self.factors.linear(x, self.base, self.slots)


class Adapted(nn.Module):
    """Another frozen module that an adapter may have numbers of its own for, such as an embedding or a norm.

    As LoraLinear it computes exactly what the base does where none are in use. What else is asked of it, the
    base answers.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.factors: LayerStack | None = None
        self.slots: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.factors is None else self.factors.linear(x, self.base, self.slots)


class LoraEmbedding(Adapted):
    """A frozen input embedding: a linear layer whose input is one of its rows, chosen by an id. Its weight
    lies as [in, out].
    """

    transposed = True

    @property
    def in_features(self) -> int:
        """Tokens."""
        return int(self.weight.shape[0])

    @property
    def out_features(self) -> int:
        """The width of what it gives."""
        return int(self.weight.shape[1])


class Adaptable(Protocol):
    """A module of the base, or a parameter of one, in which adapters can take part."""

    factors: LayerStack | None
    slots: Tensor | None


Place = LoraLinear | Adapted
"""A module of the base in which adapters can take part."""


def is_linear(module: nn.Module) -> bool:
    """Whether adapters can be put on `module`."""
    return isinstance(module, (nn.Linear, Conv1D, QuantisedLinear))


def where_and_in(base: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module's weight lies, and the dtype that it computes in."""
    held = base if isinstance(base, QuantisedLinear) else base.weight
    return held.device, held.dtype  # type: ignore[return-value]


def plain_weight(base: nn.Module) -> Tensor:
    """W as [out, in], a view where the base stores it transposed, and made anew where it is quantised."""
    return base.weight.t() if isinstance(base, (Conv1D, nn.Embedding)) else base.weight  # type: ignore[return-value]


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer, Conv1D included."""
    if isinstance(module, QuantisedLinear):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if isinstance(module, Conv1D) else (int(columns), int(rows))
