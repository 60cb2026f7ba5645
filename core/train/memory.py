"""What backward keeps of a forward pass, in tiers, and which tier fits."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch
from torch.utils.checkpoint import checkpoint

from core.base_model.load import ResidentBase
from core.base_model.quantisation import LABELS, NONE
from core.errors import InvalidConfig, WorkbenchError


class Tier(enum.IntEnum):
    """From quickest to smallest.

    A compiled layer keeps what its partitioner chooses within the tier's budget.
    """

    KEEP = 0
    """Everything a layer's backward wants."""
    CHEAP = 1
    """Norms, activations and the gated product are computed again: a few per cent of time for a third of the
    memory.
    """
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


# torch's share of what a compiled layer would like to keep. Below 1 its partitioner first gives up what is
# cheap to
# compute again, which is less than this asks for; lower figures make it compute whole products again.
_BUDGETS = {Tier.KEEP: 1.0, Tier.CHEAP: 0.95, Tier.FULL: 0.0}
MOST_RUNS = 64
_BUSY_TOKENS = 2048  # in one pass; below, an accelerator waits for its memory and the host
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a memory object",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_RESERVE = 0.9  # share of the free memory that activations may take
_KEPT = {Tier.KEEP: 1.0, Tier.CHEAP: 0.65, Tier.FULL: 0.05}  # of the inputs and outputs of the linear layers


@contextmanager
def keeping(
    base: ResidentBase, tier: Tier, *, compiled: bool, gives_up_products: bool = False
) -> Iterator[None]:
    """Within the block, forward passes keep what `tier` says; backward has to be inside, too.

    gives_up_products: see AdapterBank.gives_up_products; then CHEAP keeps what the partitioner would.
    """
    functorch = torch._functorch.config
    before = functorch.activation_memory_budget
    whole = tier is Tier.CHEAP and gives_up_products
    functorch.activation_memory_budget = 1.0 if whole else _BUDGETS[tier]
    recomputed = base.decoder_layers if tier is Tier.FULL and not compiled else []
    for layer in recomputed:
        # transformers has a switch for this, which is renamed and rewired from release to release. No random
        # numbers
        # are drawn in a layer, and restoring their state would break the capture of a graph.
        layer.forward = functools.partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        functorch.activation_memory_budget = before
        for layer in recomputed:
            del layer.forward


@dataclass(frozen=True)
class ExecutionPlan:
    """How a micro-batch is computed."""

    tier: Tier
    compiled: bool
    pieces: int = 1
    """Passes over parts of its blocks; their gradients add up."""
    captures: bool = True
    """Whether a CUDA graph may be captured, which holds memory of its own."""

    def smaller(self, blocks: int, tokens: int, captured: bool = False) -> ExecutionPlan | None:
        """The next plan that needs less memory for micro-batches of `blocks` blocks and `tokens` tokens; None
        if none does.

        Pieces cost nothing while each is large enough to keep the device busy; recomputing costs a third of
        the time. `captured` says that a graph holds memory now.
        """
        if captured:
            return replace(self, captures=False)
        can_divide = self.pieces < blocks
        if can_divide and (self.tier is Tier.FULL or tokens // (2 * self.pieces) >= _BUSY_TOKENS):
            return replace(self, pieces=min(blocks, 2 * self.pieces))
        if self.tier is not Tier.FULL:
            return replace(self, tier=Tier.CHEAP if self.compiled and self.tier is Tier.KEEP else Tier.FULL)
        return None

    @property
    def sentence(self) -> str:
        """What it means, for a run's log."""
        pieces = f", each micro-batch in {self.pieces} pieces" if self.pieces > 1 else ""
        return f"{self.tier.sentence}{pieces}{'' if self.captures else ', without CUDA graphs'}"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is how an accelerator, the CPU's allocator or Python says that there is no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def memory_figures(device: torch.device) -> str:
    """What is taken and what there is, in words."""
    if device.type == "cuda":
        mine, (free, total) = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)
    else:
        memory, mine = psutil.virtual_memory(), psutil.Process().memory_info().rss
        free, total = memory.available, memory.total
    held, left, all_of_it = (count / 2**30 for count in (mine, free, total))
    return f"the engine holds {held:.1f} GiB, {left:.1f} of {all_of_it:.1f} GiB are free"


def first_tier(base: ResidentBase, tokens: int, compiled: bool, checkpointing: str = "auto") -> Tier:
    """The quickest tier whose activations fit into the free memory for micro-batches of `tokens` tokens.

    A compiled layer starts at CHEAP, which costs it next to nothing. `checkpointing` on or off is somebody's
    own choice.
    """
    if checkpointing == "on":
        return Tier.FULL
    if base.device.type != "cuda" or checkpointing == "off":
        return Tier.CHEAP if compiled else Tier.KEEP
    for tier in (Tier.CHEAP, Tier.FULL) if compiled else (Tier.KEEP, Tier.FULL):
        if _activations(base, tokens, tier) < _RESERVE * _free(base.device):
            return tier
    return Tier.FULL


def room_for(base: ResidentBase, state_bytes: float, tokens: int) -> int:
    """How many runs whose trained numbers take `state_bytes`, with micro-batches of `tokens` tokens, fit at
    once; at least one.
    """
    each = state_bytes + _activations(base, tokens, Tier.KEEP)
    return int(min(MOST_RUNS, max(1, _RESERVE * _free(base.device) // each)))


def require_room(base: ResidentBase, state_bytes: float, parameters: int) -> None:
    """Raise InvalidConfig, with figures, where a run that trains so many whole parameters cannot have its
    numbers in memory.
    """
    free = _free(base.device)
    if state_bytes <= _RESERVE * free:
        return
    raise InvalidConfig(
        f"Full fine-tuning of {parameters:,} parameters does not fit: weights, gradients and AdamW's two "
        f"moments take {state_bytes / 2**30:.1f} GiB beside the base, and {free / 2**30:.1f} GiB are free. "
        "Train some of the layers (layers_to_transform) or modules (target_modules), or train LoRA."
    )


def require_full_precision(base: ResidentBase, name: str) -> None:
    """Raise WorkbenchError where a base is quantised, so that whole weights cannot stand in its place."""
    if base.quantisation != NONE:
        raise WorkbenchError(
            f"{name} has weights of its own in the place of {base.name}'s, which is held in "
            f"{LABELS[base.quantisation]}. Choose quantisation=none."
        )


def require_room_to_answer(base: ResidentBase, parameters: int, name: str) -> None:
    """Raise WorkbenchError, with figures, where so many whole parameters have no room beside the base."""
    needed, free = parameters * base.dtype.itemsize, _free(base.device)
    if needed > _RESERVE * free:
        raise WorkbenchError(
            f"{name} has weights of its own, which take {needed / 2**30:.1f} GiB beside the base, and "
            f"{free / 2**30:.1f} GiB are free. Export it merged and chat with that, or free memory."
        )


def _activations(base: ResidentBase, tokens: int, tier: Tier) -> float:
    """Bytes that a forward pass over `tokens` tokens keeps,
    estimated from the widths of the linear layers.
    """
    numbers = sum(layer.in_features + layer.out_features for layer in base.layers.values())
    return numbers * tokens * torch.finfo(base.dtype).bits / 8 * _KEPT[tier]


def _free(device: torch.device) -> int:
    """Bytes that can still be had, the allocator's own unused ones counted."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
