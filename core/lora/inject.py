"""Put LoRA layers into a model, and hold banks of adapters for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.config import LoraConfig
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.layer import LoraFactors, LoraLinear, is_linear

Layers = Mapping[str, LoraLinear]
"""The wrapped layers of a model by module path, in the model's order."""


def wrap_linear_layers(model: PreTrainedModel) -> dict[str, LoraLinear]:
    """Freeze `model` and wrap each linear layer in a LoraLinear, in place. Returns them by module path.

    An output head that shares its weight with the input embedding is left alone: an adapter on it could not be
    merged without changing the embedding too.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", False)
    found = [(path, module) for path, module in model.named_modules() if is_linear(module)]
    layers = {}
    for path, module in found:
        if module is head and tied:
            continue
        layers[path] = LoraLinear(module)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[path])
    return layers


def head_path(model: PreTrainedModel) -> str | None:
    """The module path of the output head."""
    head = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is head), None)


class AdapterBank(nn.Module):
    """K adapters side by side on the targeted layers of one model. Several banks can exist; one is in use at a time."""

    def __init__(
        self, layers: Layers, targets: Sequence[str], slots: int, rank: int, *,
        dropout: float = 0.0, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self._layers = {path: layers[path] for path in targets}
        self.slots, self.rank = slots, rank
        self.factors = {
            path: LoraFactors(slots, rank, layer.in_features, layer.out_features, dropout=dropout,
                              device=layer.weight.device, dtype=dtype)
            for path, layer in self._layers.items()
        }  # fmt: skip
        self._modules.update({path.replace(".", "/"): module for path, module in self.factors.items()})

    @contextmanager
    def use(self, slots: Tensor | None = None) -> Iterator[None]:
        """Within the block the model computes with this bank: row group i uses adapter slots[i] (None: all in order)."""
        for path, layer in self._layers.items():
            layer.factors, layer.slots = self.factors[path], slots
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.factors, layer.slots = None, None

    def initialise(self, slot: int, config: LoraConfig, seed: int) -> None:
        """Start a fresh adapter in `slot`; the same seed gives the same factors on every device."""
        generator = torch.Generator().manual_seed(seed)
        for factors in self.factors.values():
            factors.initialise(slot, config.rank, config.scaling, generator)

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into `slot`; layers it does not target become the plain base there."""
        for path, factors in self.factors.items():
            own = adapter.layers.get(path)
            if own is None:
                factors.clear(slot)
            else:
                factors.load(slot, own.A, own.B, own.scale)

    @torch.no_grad()
    def export(self, slot: int, rank: int) -> dict[str, LayerFactors]:
        """The factors of `slot` cut to `rank`, as float32 copies on the CPU, by module path."""
        return {
            path: LayerFactors(
                A=own.A[slot, :rank].float().cpu().clone(),
                B=own.B[slot, :, :rank].float().cpu().clone(),
                scale=float(own.scale[slot]),
            )
            for path, own in self.factors.items()
        }

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All factors, for an optimiser."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
