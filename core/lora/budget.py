"""AdaLoRA while it trains: its layers, the penalty, importances and the budget of ranks.

The method is told in core/lora/kinds/adalora.py; the figures are PEFT's, step for step. Nothing but
ranks_left() waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core.lora.layer import plain_weight
from core.lora.ops import lora_linear
from core.lora.stack import AdapterStack

if TYPE_CHECKING:
    from core.lora.bank import AdapterBank
    from core.lora.kinds.adalora import AdaloraOptions


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
        return lora_linear(x, plain_weight(base), base.bias, A, self.P, *work)[0]

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
    numbers, gradients = bank.row(slot), bank.layout.of(bank.gradient(slot))
    for path, rank in ranks.items():
        for name, transposed in (("P", True), ("Q", False)):
            one, gradient = numbers[path][name], gradients[path][name]
            rows, into = (
                (one.t()[:rank], gradient.t()[:rank]) if transposed else (one[:rank], gradient[:rank])
            )
            off = rows @ rows.t()
            off.diagonal().sub_(1.0)
            into.add_(off @ rows / torch.linalg.vector_norm(off), alpha=2 * weight / (2 * len(ranks)))


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
    for name in "EPQ":
        felt = (row[spans[name]] * gradient[spans[name]]).abs()
        sensitivity, uncertainty = (row[spans[f"{name}_{what}"]] for what in ("sensitivity", "uncertainty"))
        sensitivity.mul_(decay).add_(felt, alpha=1 - decay)
        uncertainty.mul_(decay).add_((felt - sensitivity).abs(), alpha=1 - decay)


def _leave(bank: AdapterBank, slot: int, whole: int, budget: int) -> None:
    """Leave the `budget` most important of `whole` triplets, over all layers."""
    if budget >= whole:
        return
    importance = _importance(bank, slot)
    threshold = torch.cat(list(importance.values())).kthvalue(whole - budget).values
    row = bank.row(slot)
    for path, one in importance.items():
        row[path]["left"][: len(one), 0] = (one > threshold).to(row[path]["left"].dtype)
    _mask(bank, slot)


def _importance(bank: AdapterBank, slot: int) -> dict[str, Tensor]:
    """Of each triplet, [r] by module path: E's score and the means of P's and Q's (equation 11)."""
    row, found = bank.row(slot), {}
    for path, rank in bank.held(slot).items():
        E, P, Q = (row[path][f"{name}_sensitivity"] * row[path][f"{name}_uncertainty"] for name in "EPQ")
        found[path] = (E[:, 0] + (Q.mean(1) + P.mean(0)))[:rank]
    return found


def _mask(bank: AdapterBank, slot: int) -> None:
    """Set E of what is not left to zero."""
    for tensors in bank.row(slot).values():
        tensors["E"].mul_(tensors["left"])


def ranks_left(bank: AdapterBank, slot: int) -> dict[str, int]:
    """Triplets that are left, by module path."""
    row = bank.row(slot)
    paths = list(bank.held(slot))
    counts = torch.stack([row[path]["left"].sum() for path in paths]).tolist()
    return {path: int(count) for path, count in zip(paths, counts, strict=True)}
