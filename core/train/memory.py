"""What backward keeps of a forward pass, in tiers, and which tier fits."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.checkpoint import checkpoint

from core.base_model.compiling import what_is_compiled
from core.base_model.load import ResidentBase
from core.base_model.quantisation import LABELS, NONE, bytes_of_linear
from core.errors import InvalidConfig, WorkbenchError
from core.lora.layer import LoraLinear
from core.train.offloading import HostStash
from core.train.sharding import LAYERS_AT_ONCE
from core.train.slicing import SLICE


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
_CGROUP = Path("/sys/fs/cgroup")  # Linux, version 2
_RESERVE = 0.9  # share of the free memory that activations may take
_KEPT = {Tier.KEEP: 1.0, Tier.CHEAP: 0.65}  # of the inputs and outputs of the linear layers
# What a layer that is computed again takes, in inputs and outputs of its linear layers: counted for a Llama
# of 8B, where an eager layer keeps 107,000 numbers a token for backward and a compiled one 47,000, and
# gradients of up to 40,000 are on the way.
_WORK, _WORK_COMPILED, _WORK_ATTENDING = 1.9, 1.1, 2.3
_ON_THE_DEVICE = 3  # inputs of layers that are not on their way to the host or back
_AT_THE_END = 10  # of hidden states: the last norm's in float32, what the head is given, and its gradient


@dataclass(frozen=True)
class ExecutionPlan:
    """How a micro-batch is computed."""

    tier: Tier
    compiled: bool
    pieces: int = 1
    """Passes over parts of its blocks; their gradients add up."""
    captures: bool = True
    """Whether a CUDA graph may be captured, which holds memory of its own."""
    offloads: bool = False
    """Whether the inputs of layers that are computed again wait in the host's memory."""
    sliced: bool = False
    """Whether what a layer computes for each token by itself comes in slices (core/train/slicing.py)."""

    def smaller(
        self,
        blocks: int,
        tokens: int,
        captured: bool = False,
        *,
        may_offload: bool = False,
        may_slice: bool = False,
    ) -> ExecutionPlan | None:
        """The next plan that needs less memory for micro-batches of `blocks` blocks and `tokens` tokens; None
        if none does.

        Pieces cost nothing while each is large enough to keep the device busy; recomputing costs a third of
        the time, offloading next to nothing where the row is long, and slices what compiling would save.
        `captured` says that a graph holds memory now.
        """
        if captured:
            return replace(self, captures=False)
        can_divide = self.pieces < blocks
        if can_divide and (self.tier is Tier.FULL or tokens // (2 * self.pieces) >= _BUSY_TOKENS):
            return replace(self, pieces=min(blocks, 2 * self.pieces))
        if self.tier is not Tier.FULL:
            return replace(self, tier=Tier.CHEAP if self.compiled and self.tier is Tier.KEEP else Tier.FULL)
        if may_offload and not self.offloads:
            return self.offloading()
        return self.slicing() if may_slice and not self.sliced else None

    def offloading(self) -> ExecutionPlan:
        """The same with layers' inputs in the host's memory, which no graph captures."""
        return replace(self, tier=Tier.FULL, offloads=True, captures=False)

    def slicing(self) -> ExecutionPlan:
        """The same in slices, each of which would be compiled by itself, so that nothing is."""
        return replace(self, tier=Tier.FULL, sliced=True, captures=False, compiled=False)

    @property
    def sentence(self) -> str:
        """What it means, for a run's log."""
        offloads = ", its input waits in the host's memory" if self.offloads else ""
        sliced = ", norms and the MLP in slices of tokens" if self.sliced else ""
        pieces = f", each micro-batch in {self.pieces} pieces" if self.pieces > 1 else ""
        graphs = "" if self.captures or self.offloads or self.sliced else ", without CUDA graphs"
        return f"{self.tier.sentence}{offloads}{sliced}{pieces}{graphs}"


@contextmanager
def keeping(
    base: ResidentBase,
    plan: ExecutionPlan,
    *,
    gives_up_products: bool = False,
    stash: HostStash | None = None,
) -> Iterator[None]:
    """Within the block, forward passes keep what `plan` says; backward has to be inside, too.

    gives_up_products: see AdapterBank.gives_up_products; then CHEAP keeps what the partitioner would. stash:
    where the inputs of layers wait, if they do.
    """
    functorch = torch._functorch.config
    before = functorch.activation_memory_budget
    functorch.activation_memory_budget = _budget(plan, gives_up_products)
    try:
        with _recomputing(base, plan, stash):
            yield
    finally:
        functorch.activation_memory_budget = before


def _budget(plan: ExecutionPlan, gives_up_products: bool) -> float:
    """Of a layer that is computed again as a whole what is kept is gone with the layer."""
    keeps_all = (plan.tier is Tier.CHEAP and gives_up_products) or plan.offloads
    return 1.0 if keeps_all else _BUDGETS[plan.tier]


@contextmanager
def _recomputing(base: ResidentBase, plan: ExecutionPlan, stash: HostStash | None) -> Iterator[None]:
    """transformers has a switch for this, which is renamed and rewired from release to release. No random
    numbers are drawn in a layer, and restoring their state would break the capture of a graph.
    """
    if plan.tier is not Tier.FULL or (plan.compiled and stash is None):  # its partitioner does it
        yield
        return
    again: Any = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if stash is not None:
        stash.begin()
        again = stash.recomputed
    # of a compiled layer that which is compiled, so that its graph is the one of other plans
    name, layers = what_is_compiled(base) if plan.compiled else "forward", base.decoder_layers
    own = [vars(layer).get(name) for layer in layers]
    for layer in layers:
        setattr(layer, name, functools.partial(again, getattr(layer, name)))
    try:
        yield
    finally:
        for layer, compute in zip(layers, own, strict=True):
            if compute is None:
                delattr(layer, name)
            else:
                setattr(layer, name, compute)


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


def first_plan(
    base: ResidentBase,
    blocks: int,
    tokens: int,
    start: ExecutionPlan,
    checkpointing: str = "auto",
    *,
    may_slice: bool,
    free: int | None = None,
) -> ExecutionPlan:
    """The quickest plan whose activations fit into the free memory for micro-batches of `blocks` blocks of
    each run and `tokens` tokens in all; the last of the ladder if none does.

    A compiled layer starts at CHEAP, which costs it next to nothing. `checkpointing` on, off or offload is
    somebody's own choice. Where the device's memory is the host's, there is nothing to offload to. free:
    bytes that can be had, where this process does not say so by itself.
    """
    first = replace(start, tier=Tier.CHEAP if start.compiled else Tier.KEEP)
    full = replace(start, tier=Tier.FULL)
    if base.device.type != "cuda":
        return full if checkpointing in ("on", "offload") else first
    if checkpointing == "off":
        return first
    room = _RESERVE * (_free(base.device) if free is None else free)
    ladder = [first] if checkpointing == "auto" else []
    ladder += _recomputing_plans(
        base, blocks, tokens, full, offloads=checkpointing == "offload", slices=may_slice
    )
    return next(
        (plan for plan in ladder if needed(base, -(-tokens // plan.pieces), plan) < room),
        ladder[-1],
    )


def _recomputing_plans(
    base: ResidentBase, blocks: int, tokens: int, full: ExecutionPlan, *, offloads: bool, slices: bool
) -> list[ExecutionPlan]:
    """From quickest to smallest; `offloads`: none without."""
    pieces = [1 << power for power in range(blocks.bit_length()) if 1 << power < blocks] + [blocks]
    found = [replace(full, pieces=count) for count in pieces]
    can_offload = may_offload(base, -(-tokens // (1 if offloads else blocks)))
    if can_offload:
        outside = [one.offloading() for one in found]
        found = outside if offloads else [*found, outside[-1]]
    return [*found, found[-1].slicing()] if slices else found


def may_offload(base: ResidentBase, tokens: int) -> bool:
    """Whether the host has room for the inputs of all layers."""
    if base.device.type != "cuda":
        return False
    return _layer_inputs(base, tokens) < _RESERVE * host_room()


def host_room(cgroup: Path = _CGROUP) -> int:
    """Bytes of the host's memory that can still be had; in a container by its own limit, beyond which the
    kernel would end the process without a word. What files are cached there counts as free.
    """
    available, limit = int(psutil.virtual_memory().available), cgroup / "memory.max"
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return available
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    taken = int((cgroup / "memory.current").read_text()) - int(stat.get("file", 0))
    return min(available, int(most) - taken)


def room_for(base: ResidentBase, state_bytes: float, tokens: int) -> int:
    """How many runs whose trained numbers take `state_bytes`, with micro-batches of `tokens` tokens, fit at
    once; at least one.
    """
    each = state_bytes + _activations(base, tokens, Tier.KEEP)
    return int(min(MOST_RUNS, max(1, _RESERVE * _free(base.device) // each)))


def room_in_parts(base: ResidentBase) -> int:
    """Bytes that can still be had beside the layers of a base in parts that are whole at one time, and the
    weight that is made for a product where they are quantised.
    """
    width = base.dtype.itemsize
    inside = [(one.out_features, one.in_features) for path, one in base.layers.items() if path != base.head]
    numbers = sum(bytes_of_linear(shape, base.quantisation, width) for shape in inside)
    whole = LAYERS_AT_ONCE * numbers / max(1, len(base.decoder_layers))
    made = 0 if base.quantisation == NONE else max(map(math.prod, inside)) * width
    return max(0, int(_free(base.device) - whole - made))


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
    return _widths(base.layers) * tokens * base.dtype.itemsize * _KEPT[tier]


def needed(base: ResidentBase, tokens: int, plan: ExecutionPlan) -> float:
    """Bytes that a micro-batch of `tokens` tokens takes at its peak beside what is there before: what is
    kept, and one layer that is computed again, or the loss.
    """
    if plan.tier is not Tier.FULL:
        return _activations(base, tokens, plan.tier)
    inputs = _layer_inputs(base, tokens)
    if plan.offloads:
        inputs *= min(1.0, _ON_THE_DEVICE / len(base.decoder_layers))
    loss = _AT_THE_END * base.model.config.get_text_config().hidden_size * tokens * base.dtype.itemsize
    return inputs + max(_layer_work(base, tokens, plan), loss)


def _layer_inputs(base: ResidentBase, tokens: int) -> float:
    hidden = base.model.config.get_text_config().hidden_size
    return float(len(base.decoder_layers) * hidden * tokens * base.dtype.itemsize)


def _layer_work(base: ResidentBase, tokens: int, plan: ExecutionPlan) -> float:
    """Of one layer: all that it keeps, and the gradients on the way."""
    inside = {path: one for path, one in base.layers.items() if path != base.head}
    attending = {id(one) for each in base.attention for one in each.module.modules()}
    whole, layers = _widths(inside), max(1, len(base.decoder_layers))
    each = whole / layers * base.dtype.itemsize
    if not plan.sliced:
        return each * tokens * (_WORK_COMPILED if plan.compiled else _WORK)
    attention = _widths({path: one for path, one in inside.items() if id(one) in attending})
    return each * (attention / whole * tokens * _WORK_ATTENDING + min(tokens, SLICE) * _WORK)


def _widths(layers: Mapping[str, LoraLinear]) -> int:
    return sum(layer.in_features + layer.out_features for layer in layers.values())


def _free(device: torch.device) -> int:
    """Bytes that can still be had, the allocator's own unused ones counted."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
