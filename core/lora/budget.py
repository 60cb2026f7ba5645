"""AdaLoRA while it trains: its layers, the penalty, importances and the budget of ranks.

The method is told in core/lora/kinds/adalora.py; the figures are PEFT's, step for step. Nothing but
ranks_left() waits for the device.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from core.lora.beside import beside
from core.lora.stack import AdapterStack

if TYPE_CHECKING:
    from core.lora.bank import AdapterBank
    from core.lora.kinds.adalora import AdaloraOptions

Key = TypeVar("Key", bound=Hashable)


class TripletFactors(AdapterStack):
    """The triplets of K adapters for one linear layer, while they are trained: they answer as LoRA."""

    P: Tensor
    E: Tensor
    Q: Tensor
    work_P: Tensor

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As any stack's, in all slots, with the adapters' products inside the base's output."""
        if self.dropout is not None and self.training:
            return super().linear(x, base, slots)
        A = self.E * self.Q
        work = A.detach().to(x.dtype), self.work_P, self.scale
        return beside(x, base, base.bias, A, self.P, *work)  # type: ignore[arg-type]

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """s·P·(E ∘ Q)·x, by ordinary differentiation."""
        if self.dropout is not None and self.training:
            x = self.dropout(x)
        A, P = (self.E * self.Q).to(x.dtype), self.P.to(x.dtype)
        low = x.reshape(len(A), -1, x.shape[-1]).bmm(A.transpose(1, 2))
        return (low * self.scale[:, None, None].to(x.dtype)).bmm(P.transpose(1, 2)).reshape(y.shape)


@torch.no_grad()
def penalise(bank: AdapterBank, slot: int, weight: float) -> None:
    """Add the gradient of weight·mean(‖PᵀP − I‖ + ‖QQᵀ − I‖) over all P and Q (equation 4)."""
    ranks = bank.held(slot)
    rows = _directions(bank, ranks, bank.flat[slot])
    gradients = _directions(bank, ranks, bank.gradient(slot))
    for keys in _of_one_shape(rows):
        own = torch.stack([rows[key] for key in keys])
        off = own @ own.mT
        off.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        pulls = off @ own / torch.linalg.vector_norm(off, dim=(-2, -1), keepdim=True)
        for key, pull in zip(keys, pulls, strict=True):
            gradients[key].add_(pull, alpha=weight / len(ranks))


def _directions(bank: AdapterBank, ranks: Mapping[str, int], row: Tensor) -> dict[tuple[str, str], Tensor]:
    """Pᵀ [r, out] and Q [r, in] as views of a row of numbers, by module path and name."""
    found: dict[tuple[str, str], Tensor] = {}
    for path, rank in ranks.items():
        P, Q = (bank.layout.places[path][name].of(row) for name in "PQ")
        found |= {(path, "P"): P.t()[:rank], (path, "Q"): Q[:rank]}
    return found


def _of_one_shape(tensors: Mapping[Key, Tensor]) -> list[list[Key]]:
    """The keys of tensors of the same shape, together: a device is given few large pieces of work instead of
    one for each layer.
    """
    found: dict[torch.Size, list[Key]] = {}
    for key, one in tensors.items():
        found.setdefault(one.shape, []).append(key)
    return list(found.values())


@torch.no_grad()
def allocate(bank: AdapterBank, slot: int, done: int, planned: int, own: AdaloraOptions) -> None:
    """After step `done` of `planned`: measure, and leave as many triplets as the budget says."""
    ranks = bank.held(slot)
    begin, end = int(own.rank_hold * planned), planned - int(own.rank_settle * planned)
    if done < end or done == 1:
        _measure(bank, slot, own.importance_decay)
    whole = sum(ranks.values())
    target = max(1, round(own.rank_share * whole))
    if done > end:
        _mask(bank, slot)
    elif done == end:
        _leave(bank, slot, whole, target)
    elif done > begin and done % own.rank_every == 0:
        ahead = 1 - (done - begin) / (end - begin)
        _leave(bank, slot, whole, int((whole - target) * ahead**3 + target))


def _measure(bank: AdapterBank, slot: int, decay: float) -> None:
    """Smooth |w·∂L/∂w| and how far it is from its mean (equations 8 to 10)."""
    row, gradient, spans = bank.flat[slot], bank.gradient(slot), bank.layout.spans
    taken = gradient.norm().isfinite()  # and not left out
    for name in "EPQ":
        felt = (row[spans[name]] * gradient[spans[name]]).abs().where(taken, 0.0)
        sensitivity, uncertainty = (row[spans[f"{name}_{what}"]] for what in ("sensitivity", "uncertainty"))
        sensitivity.mul_(decay).add_(felt, alpha=1 - decay)
        uncertainty.mul_(decay).add_((felt - sensitivity).abs(), alpha=1 - decay)


def _leave(bank: AdapterBank, slot: int, whole: int, budget: int) -> None:
    """Leave the `budget` most important of `whole` triplets, over all layers."""
    if budget >= whole:
        return
    importance = _importance(bank, slot)
    threshold = torch.cat(list(importance.values())).kthvalue(whole - budget).values
    row = bank.flat[slot]
    for path, one in importance.items():
        left = bank.layout.places[path]["left"].of(row)
        left[: len(one), 0] = one > threshold
    _mask(bank, slot)


def _importance(bank: AdapterBank, slot: int) -> dict[str, Tensor]:
    """Of each triplet, [r] by module path: E's score and the means of P's and Q's (equation 11)."""
    ranks = bank.held(slot)
    means: dict[tuple[str, str], Tensor] = {}
    for name, over in (("E", -1), ("P", -2), ("Q", -1)):
        scores = _scores(bank, slot, name)
        for paths in _of_one_shape(scores):
            mean = torch.stack([scores[path] for path in paths]).mean(over)
            means |= {(name, path): one for path, one in zip(paths, mean, strict=True)}
    return {
        path: (means["E", path] + (means["Q", path] + means["P", path]))[:rank]
        for path, rank in ranks.items()
    }


def _scores(bank: AdapterBank, slot: int, name: str) -> dict[str, Tensor]:
    """Sensitivity times uncertainty of all numbers of a name, by module path."""
    row, spans = bank.flat[slot], bank.layout.spans
    felt = f"{name}_sensitivity"
    score = row[spans[felt]] * row[spans[f"{name}_uncertainty"]]
    places = bank.layout.places
    return {path: places[path][felt].of(score, spans[felt].start) for path in bank.held(slot)}


def _mask(bank: AdapterBank, slot: int) -> None:
    """Set E of what is not left to zero."""
    row, spans = bank.flat[slot], bank.layout.spans
    row[spans["E"]].mul_(row[spans["left"]])


def ranks_left(bank: AdapterBank, slot: int) -> dict[str, int]:
    """Triplets that are left, by module path."""
    row = bank.row(slot)
    paths = list(bank.held(slot))
    counts = torch.stack([row[path]["left"].sum() for path in paths]).tolist()
    return {path: int(count) for path, count in zip(paths, counts, strict=True)}
