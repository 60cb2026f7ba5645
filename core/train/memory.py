"""What backward keeps of a forward pass, in tiers, and which tier fits."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch.utils.checkpoint import checkpoint

from core.base_model.load import ResidentBase


class Tier(enum.IntEnum):
    """From quickest to smallest. A compiled layer keeps what its partitioner chooses within the tier's budget."""

    KEEP = 0
    """Everything a layer's backward wants."""
    CHEAP = 1
    """Norms, activations and the gated product are computed again: a few per cent of time for a third of the memory."""
    FULL = 2
    """Only each layer's input is kept and the whole layer is computed again (arXiv 1604.06174)."""

    @property
    def sentence(self) -> str:
        """What it means, for a run's log."""
        return (
            "all activations are kept",
            "norms and activations are computed again in backward",
            "each layer is computed again in backward",
        )[self]


# torch's share of what a compiled layer would like to keep. Below 1 its partitioner first gives up what is cheap to
# compute again, which is less than this asks for; lower figures make it compute whole products again.
_BUDGETS = {Tier.KEEP: 1.0, Tier.CHEAP: 0.95, Tier.FULL: 0.0}
MOST_RUNS = 64
_STATE_BYTES = 18  # of one trained number: itself, its gradient, two moments, and the copy that computes
_RESERVE = 0.9  # share of the free memory that activations may take
_KEPT = {Tier.KEEP: 1.0, Tier.CHEAP: 0.65, Tier.FULL: 0.05}  # of the inputs and outputs of the linear layers


@contextmanager
def keeping(base: ResidentBase, tier: Tier, *, compiled: bool) -> Iterator[None]:
    """Within the block, forward passes keep what `tier` says; backward has to be inside, too."""
    functorch = torch._functorch.config
    before = functorch.activation_memory_budget
    functorch.activation_memory_budget = _BUDGETS[tier]
    recomputed = base.decoder_layers if tier is Tier.FULL and not compiled else []
    for layer in recomputed:
        # transformers has a switch for this, which is renamed and rewired from release to release. No random numbers
        # are drawn in a layer, and restoring their state would break the capture of a graph.
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        functorch.activation_memory_budget = before
        for layer in recomputed:
            del layer.forward


def first_tier(base: ResidentBase, tokens: int, compiled: bool) -> Tier:
    """The quickest tier whose activations fit into the free memory for micro-batches of `tokens` tokens.

    A compiled layer starts at CHEAP, which costs it next to nothing.
    """
    if base.device.type != "cuda":
        return Tier.KEEP
    for tier in (Tier.CHEAP, Tier.FULL) if compiled else (Tier.KEEP, Tier.FULL):
        if _activations(base, tokens, tier) < _RESERVE * _free(base.device):
            return tier
    return Tier.FULL


def room_for(base: ResidentBase, parameters: int, tokens: int) -> int:
    """How many runs with `parameters` trained numbers and micro-batches of `tokens` tokens fit at once; at least one."""
    each = parameters * _STATE_BYTES + _activations(base, tokens, Tier.KEEP)
    return int(min(MOST_RUNS, max(1, _RESERVE * _free(base.device) // each)))


def _activations(base: ResidentBase, tokens: int, tier: Tier) -> float:
    """Bytes that a forward pass over `tokens` tokens keeps, estimated from the widths of the linear layers."""
    numbers = sum(layer.in_features + layer.out_features for layer in base.layers.values())
    return numbers * tokens * torch.finfo(base.dtype).bits / 8 * _KEPT[tier]


def _free(device: torch.device) -> int:
    """Bytes that can still be had, the allocator's own unused ones counted."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
