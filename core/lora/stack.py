"""K adapters of one kind on one layer, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from core.lora.adapter import LayerWeights
from core.lora.dropout import Dropout
from core.lora.kinds import AdapterKind
from core.lora.layer import LayerStack, plain_weight


class AdapterStack(nn.Module):
    """The tensors of K adapters for one linear layer, and each adapter's scale.

    Under its own name each tensor is what is stored and trained; under work_ and its name stand the same
    numbers in the dtype the base computes in, in the same memory where that is the stored one. All are views
    into the bank's storage.
    """

    scale: Tensor

    def __init__(
        self,
        kind: AdapterKind,
        tensors: Mapping[str, Tensor],
        work: Mapping[str, Tensor],
        trained: Sequence[str],
        scale: Tensor,
        dropout: Dropout | None,
    ) -> None:
        """Tensors are [K, …]; `trained` names those that get gradients. scale [K]."""
        super().__init__()
        self.kind, self.names = kind, tuple(tensors)
        for name in tensors:
            if name in trained:
                self.register_parameter(name, nn.Parameter(tensors[name]))
            else:
                self.register_buffer(name, tensors[name])
            self.register_buffer(f"work_{name}", work[name])
        self.register_buffer("scale", scale)
        self.dropout = dropout

    @property
    def keeps_inputs(self) -> bool:
        """Whether backward needs the layer's input."""
        return True

    def prepare(self, base: nn.Module) -> None:
        """Work out what follows from the frozen layer alone; once, when the stack is built."""

    def placed(self, slot: int, layer: LayerWeights | None, base: nn.Module) -> None:
        """Work out what follows from an adapter that is not trained, when it has been laid into `slot`; None
        for the plain base.
        """

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """The layer's output with the adapters' part.

        x [N, …, in] holds N / len(slots) consecutive rows for each entry of `slots`; None means all slots in
        order. Returns [N, …, out].
        """
        y: Tensor = base(x)
        return y + self.added(x, y, base, slots)

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """The adapters' part alone, where the base's output is y [N, …, out]; by ordinary differentiation."""
        if slots is None:
            tensors = {name: getattr(self, name).to(x.dtype) for name in self.names}
            scale = self.scale.to(x.dtype)
            if self.dropout is not None and self.training:
                x = self.dropout(x)
        else:
            tensors = {name: getattr(self, f"work_{name}")[slots] for name in self.names}
            scale = self.scale[slots].to(x.dtype)
        adapters = scale.shape[0]
        grouped = x.reshape(adapters, -1, x.shape[-1]), y.reshape(adapters, -1, y.shape[-1])
        weight = plain_weight(base) if self.kind.reads_weight else x.new_empty(0)
        return self.kind.added(*grouped, weight, tensors, scale).reshape(y.shape)


class EmbeddingStack(AdapterStack):
    """LoRA on an embedding: of A [K, r, tokens] each id takes a column. There is no dropout, as in PEFT."""

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As AdapterStack.added(), of ids x [N, T]."""
        A, B = (getattr(self, name if slots is None else f"work_{name}") for name in "AB")
        chosen = torch.arange(A.shape[0], device=x.device) if slots is None else slots
        ids = x.reshape(chosen.shape[0], -1)
        low = A.transpose(1, 2)[chosen[:, None], ids].to(y.dtype) * self.scale[chosen, None, None].to(y.dtype)
        delta = low.bmm(B[chosen].transpose(1, 2).to(y.dtype))
        return delta.view(y.shape) * getattr(base, "embed_scale", 1.0)


class MixedStack(nn.Module):
    """Adapters of several kinds on one layer: a slot belongs to one of them, and is zero in the others."""

    def __init__(self, stacks: Sequence[AdapterStack]) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(stacks)

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As AdapterStack.linear().

        The first kind computes as it does alone. Where a slot is of another kind, its y is the plain base's;
        so each adapter answers the same in any company.
        """
        first, *others = self.stacks
        y: Tensor = first.linear(x, base, slots)  # type: ignore[operator]
        for stack in others:
            y = y + stack.added(x, y, base, slots)  # type: ignore[operator]
        return y


class SplitStack(nn.Module):
    """One layer's stacks of several banks, each for its own rows of the batch; None where a bank does not
    target the layer.

    A module, since a layer takes no other thing in the place of the stack of a bank.
    """

    def __init__(self, stacks: Sequence[LayerStack | None], counts: Sequence[int]) -> None:
        super().__init__()
        self.stacks, self.counts = tuple(stacks), counts

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """See AdapterStack.linear(); all slots in order."""
        rows = x.shape[0] // sum(self.counts)
        parts = x.split([rows * count for count in self.counts])
        found = [
            base(part) if stack is None else stack.linear(part, base, None)
            for part, stack in zip(parts, self.stacks, strict=True)
        ]
        return torch.cat(found)
