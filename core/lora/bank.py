"""Banks: K adapters side by side on the wrapped layers of one model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.config import LoraConfig
from core.lora.dropout import Dropout, DropoutState
from core.lora.layer import LoraFactors, LoraLinear
from core.lora.ops import factor_dtype

# Gradients of a stack's slices are slices too, which torch warns costs time. Beside one pass over them it
# does not.
warnings.filterwarnings("ignore", message=".*gradient layout contract.*")

Layers = Mapping[str, LoraLinear]
"""The wrapped layers of a model by module path, in the model's order."""


class AdapterBank(nn.Module):
    """K adapters side by side on the targeted layers of one model. Several banks can exist; one is in use at
    a time.

    All numbers lie in one tensor, flat [K, P]: first every layer's A, then every layer's B. So one adapter is
    one row, its gradient is one row, and an optimiser's step over it is one kernel.
    """

    def __init__(
        self,
        layers: Layers,
        targets: Sequence[str],
        slots: int,
        rank: int | Mapping[str, int],
        *,
        dropout: Sequence[float] = (),
        dtype: torch.dtype | None = None,
        trainable: bool = False,
    ) -> None:
        """rank is the largest that a slot will hold, for all layers or by module path; dropout is one rate
        for each slot. dtype is factor_dtype() of the base's if nothing is said.
        """
        super().__init__()
        self._layers = {path: layers[path] for path in targets}
        self._numbers = {
            path: number for number, path in enumerate(layers)
        }  # in the model, whatever is targeted
        self.slots = slots
        self.ranks = {path: rank if isinstance(rank, int) else rank[path] for path in targets}
        first = next(iter(self._layers.values())).weight
        device, self._work_dtype = first.device, first.dtype
        dtype = dtype or factor_dtype(self._work_dtype)
        self.dropout = DropoutState(torch.tensor(dropout, device=device)) if any(dropout) else None
        self.split = sum(
            _padded(self.ranks[path], device) * layer.in_features for path, layer in self._layers.items()
        )
        size = sum(
            _padded(self.ranks[path], device) * (layer.in_features + layer.out_features)
            for path, layer in self._layers.items()
        )
        self.flat = torch.zeros(slots, size, device=device, dtype=dtype)
        self.work = (
            self.flat if dtype == self._work_dtype else torch.zeros_like(self.flat, dtype=self._work_dtype)
        )
        self.grad = torch.zeros_like(self.flat) if trainable else None
        self.scale = torch.zeros(len(targets), slots, device=device, dtype=torch.float32)
        self.factors = self._views()
        self._modules.update({path.replace(".", "/"): module for path, module in self.factors.items()})

    def _views(self) -> dict[str, LoraFactors]:
        """Each layer's factors as views into the flat tensors."""
        factors, at_A, at_B = {}, 0, self.split
        self._places: dict[str, tuple[int, int, int]] = {}  # padded rank, where A begins, where B begins
        for index, (path, layer) in enumerate(self._layers.items()):
            rank = _padded(self.ranks[path], self.flat.device)
            size_A, size_B = rank * layer.in_features, rank * layer.out_features
            self._places[path] = (rank, at_A, at_B - self.split)
            views = [
                (
                    flat[:, at_A : at_A + size_A].view(self.slots, rank, layer.in_features),
                    flat[:, at_B : at_B + size_B].view(self.slots, layer.out_features, rank),
                )
                for flat in (self.flat, self.work, self.grad)
                if flat is not None
            ]
            dropout = Dropout(self.dropout, self._numbers[path]) if self.dropout else None
            one = LoraFactors(*views[0], *views[1], self.scale[index], dropout)
            if self.grad is None:
                one.requires_grad_(False)
            else:
                one.A.grad, one.B.grad = views[2]
            factors[path] = one
            at_A, at_B = at_A + size_A, at_B + size_B
        return factors

    @contextmanager
    def use(self, slots: Tensor | None = None) -> Iterator[None]:
        """Within the block the model computes with this bank: row group i uses adapter slots[i] (None: all in
        order).
        """
        for path, layer in self._layers.items():
            layer.factors, layer.slots = self.factors[path], slots
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.factors, layer.slots = None, None

    def refresh(self) -> None:
        """Bring the working copy up to date after the stored factors have changed."""
        if self.work is not self.flat:
            self.work.copy_(self.flat)

    def initialise(self, slot: int, config: LoraConfig, targets: Sequence[str], seed: int) -> None:
        """Start a fresh adapter on `targets` in `slot`: A Kaiming-uniform, B zero.

        Drawn on the CPU, so the same seed gives the same factors on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for path in self.factors:
            if path in targets:
                rank, layer = config.rank_of(path), self._layers[path]
                A = nn.init.kaiming_uniform_(
                    torch.empty(rank, layer.in_features), a=math.sqrt(5), generator=generator
                )
                layers[path] = LayerFactors(A, torch.zeros(layer.out_features, rank), config.scaling_of(path))
        self._place(slot, layers)

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into `slot`; layers it does not target become the plain base there."""
        self._place(slot, adapter.layers)

    @torch.no_grad()
    def _place(self, slot: int, layers: Mapping[str, LayerFactors]) -> None:
        """Lay the factors out on the CPU, padded with zeros to the stacks' ranks, and copy them to the device
        at once.
        """
        row, scales = torch.zeros(self.flat.shape[1], dtype=self.flat.dtype), torch.zeros(len(self.factors))
        for index, (path, layer) in enumerate(self._layers.items()):
            if (own := layers.get(path)) is None:
                continue
            rank, at_A, at_B = self._places[path]
            at_B += self.split
            row[at_A : at_A + rank * layer.in_features].view(rank, -1)[: own.rank] = own.A
            row[at_B : at_B + rank * layer.out_features].view(-1, rank)[:, : own.rank] = own.B
            scales[index] = own.scale
        self.flat[slot].copy_(row)
        self.scale[:, slot].copy_(scales)
        if self.work is not self.flat:
            self.work[slot].copy_(self.flat[slot])

    @torch.no_grad()
    def export(self, slot: int, ranks: Mapping[str, int]) -> dict[str, LayerFactors]:
        """The factors of `slot` cut to `ranks` by module path, as copies on the CPU."""
        return {
            path: LayerFactors(
                A=self.factors[path].A[slot, :rank].cpu().clone(),
                B=self.factors[path].B[slot, :, :rank].cpu().clone(),
                scale=float(self.factors[path].scale[slot]),
            )
            for path, rank in ranks.items()
        }

    def rows(self, slot: int) -> tuple[nn.Parameter, nn.Parameter]:
        """All A and all B of one adapter as two flat parameters with their gradients, for an optimiser of its
        own.
        """
        assert self.grad is not None
        parts = []
        for part in (slice(None, self.split), slice(self.split, None)):
            parameter = nn.Parameter(self.flat[slot, part])
            parameter.grad = self.grad[slot, part]
            parts.append(parameter)
        return parts[0], parts[1]

    def by_layer(self, A: Tensor, B: Tensor, ranks: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
        """One adapter's flat A and B (or an optimiser's moments of them) as [r, in] and [out, r] by path,
        copies on the CPU.
        """
        found = {}
        for path, rank in ranks.items():
            (padded, at_A, at_B), layer = self._places[path], self._layers[path]
            wide_A = A[at_A : at_A + padded * layer.in_features].view(padded, -1)[:rank]
            wide_B = B[at_B : at_B + padded * layer.out_features].view(-1, padded)[:, :rank]
            found[path] = (wide_A.float().cpu().clone(), wide_B.float().cpu().clone())
        return found

    def flat_of(self, layers: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The reverse of by_layer(): flat A and B in this bank's layout, on its device, zero where nothing is
        given.
        """
        A, B = torch.zeros(self.split), torch.zeros(self.flat.shape[1] - self.split)
        for path, (own_A, own_B) in layers.items():
            (padded, at_A, at_B), layer = self._places[path], self._layers[path]
            A[at_A : at_A + padded * layer.in_features].view(padded, -1)[: own_A.shape[0]] = own_A
            B[at_B : at_B + padded * layer.out_features].view(-1, padded)[:, : own_B.shape[1]] = own_B
        return A.to(self.flat.device), B.to(self.flat.device)

    def take(self, slot: int, other: AdapterBank, theirs: int) -> None:
        """Copy the adapter in another bank's slot `theirs` into `slot`, with its gradient; ranks may be laid
        out larger.
        """
        for mine, yours in ((self.flat, other.flat), (self.grad, other.grad)):
            if mine is not None and yours is not None:
                A, B = self.laid_out_like(other, yours[theirs, : other.split], yours[theirs, other.split :])
                mine[slot, : self.split], mine[slot, self.split :] = A, B
        for path, factors in self.factors.items():
            factors.scale[slot] = other.factors[path].scale[theirs] if path in other.factors else 0.0
        self.refresh()

    def laid_out_like(self, other: AdapterBank, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """One adapter's flat A and B (or an optimiser's moments of them) from the layout of `other` in this
        bank's.
        """
        mine_A, mine_B = A.new_zeros(self.split), B.new_zeros(self.flat.shape[1] - self.split)
        for path, (theirs, from_A, from_B) in other._places.items():
            rank, to_A, to_B = self._places[path]
            inputs, outputs = self._layers[path].in_features, self._layers[path].out_features
            wide = slice(to_A, to_A + rank * inputs), slice(to_B, to_B + rank * outputs)
            mine_A[wide[0]].view(rank, inputs)[:theirs] = A[from_A : from_A + theirs * inputs].view(
                theirs, inputs
            )
            mine_B[wide[1]].view(outputs, rank)[:, :theirs] = B[from_B : from_B + theirs * outputs].view(
                outputs, theirs
            )
        return mine_A, mine_B


def loaded_bank(layers: Mapping[str, LoraLinear], adapters: Sequence[AdapterWeights]) -> AdapterBank:
    """A bank that holds these adapters in order, one a slot, to compute with and not to train."""
    paths = sorted({path for adapter in adapters for path in adapter.layers})
    bank = AdapterBank(
        layers, paths, slots=len(adapters), rank=max(adapter.highest_rank for adapter in adapters)
    )
    for slot, adapter in enumerate(adapters):
        bank.load(slot, adapter)
    return bank.requires_grad_(False)


def _padded(rank: int, device: torch.device) -> int:
    """Tensor cores want rows of 16 bytes, so a stack's rank is a multiple of 8 there; the rest stays zero."""
    return -(-rank // 8) * 8 if device.type == "cuda" else rank
