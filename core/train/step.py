"""One micro-batch on the device: forward, loss and backward, plain, compiled,
or replayed from a CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.base_model.attention import attend
from core.base_model.compiling import eager_layers
from core.base_model.load import ResidentBase
from core.lora.mixed_bank import Bank
from core.lora.side_by_side import TrainedBank
from core.train.batches import Batch, MicroBatch, Shape
from core.train.group_objective import GroupObjective, figures_width
from core.train.loss import token_losses
from core.train.memory import ExecutionPlan, keeping
from core.train.offloading import HostStash
from core.train.padded import batch_of
from core.train.slicing import TokenWise, in_slices, token_wise

_LAUNCH_BOUND = 0.5  # share of a micro-batch that the host spends launching, above which a graph pays
_WARM_UP = 3  # micro-batches before a capture


def trained_states(base: ResidentBase, batch: Batch) -> tuple[nn.Module, Tensor]:
    """The output head, and what it is given where a trained token is predicted, [K·C, H]."""
    # whatever the model does after its head is only known to its own forward
    head = base.model.get_output_embeddings() if base.plain_head else nn.Identity()
    found = [base.inner(**inputs, use_cache=False)[0].flatten(0, 1) for inputs in batch.inputs()]
    states = found[0] if len(found) == 1 else torch.cat(found)
    return head, states.index_select(0, batch.index)


def objective_of(
    head: nn.Module, states: Tensor, batch: Batch, goal: GroupObjective, base_losses: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sum to differentiate, and each run's figures, [K, 1 + 2·metrics].

    Where the objective is more than a weighted sum of token losses, what each of them counts follows from
    all of them: the head is asked for the losses first, and then again for the gradient.
    """
    if goal.objective.is_weighted_sum:
        total, losses = token_losses(head, states, batch.targets, batch.weights, batch.runs)
        return total, goal.figures(batch, losses, base_losses)
    with torch.no_grad():
        losses = token_losses(head, states.detach(), batch.targets, batch.weights, batch.runs)[1]
    figures, weights = goal.figures_and_weights(batch, losses, base_losses)
    return token_losses(head, states, batch.targets, weights, batch.runs)[0], figures


@contextmanager
def _set_up(base: ResidentBase, bank: Bank | TrainedBank | None, batch: Batch) -> Iterator[None]:
    """Within the block the base computes with this bank (None: by itself) on these segments; recomputing
    needs it in backward, too.
    """
    how = batch.attention()
    with (
        bank.use() if bank is not None else nullcontext(),
        attend(base.attention, [how] * len(base.attention)) if how else nullcontext(),
    ):
        yield


@torch.no_grad()
def _plain_losses(base: ResidentBase, bank: Bank | TrainedBank | None, batch: Batch) -> Tensor:
    """The token losses [K·C] with this bank, or of the base by itself, without a thought for gradients."""
    with eager_layers(), _set_up(base, bank, batch):  # without gradients it would be another graph
        head, states = trained_states(base, batch)
        return token_losses(head, states, batch.targets, batch.weights, batch.runs)[1]


def evaluate_batch(
    base: ResidentBase, bank: Bank | TrainedBank, batch: Batch, goal: GroupObjective
) -> Tensor:
    """The figures of each adapter of the bank over its part of the batch, [K, 1 + 2·metrics], without
    dropout.
    """
    bank.eval()
    batch = batch.to(base.device)
    base_losses = _plain_losses(base, None, batch) if goal.objective.wants_base else None
    return goal.figures(batch, _plain_losses(base, bank, batch), base_losses)


@dataclass
class MicroBatchStep:
    """Forward and backward for one bank. Gradients add up in the bank until they are zeroed."""

    base: ResidentBase
    bank: TrainedBank
    plan: ExecutionPlan
    goal: GroupObjective
    proven: bool = False
    """Whether a micro-batch has come through."""
    notices: list[str] = field(default_factory=list)
    """What the runs should be told."""
    graphs: dict[tuple[int, ...], _Graph] = field(default_factory=dict)
    stash: HostStash | None = None
    """Where the inputs of layers wait, if the plan has them wait in the host's memory."""
    _seen: dict[tuple[int, ...], int] = field(default_factory=dict)
    _launching: dict[tuple[int, ...], float] = field(default_factory=dict)
    _token_wise: list[TokenWise] | None = None
    _launched: torch.cuda.Event | None = None
    _pool: Any = None
    """The memory that all graphs share: what one leaves there is of no use to another, which may take it."""

    @property
    def width(self) -> int:
        """Numbers in a run's figures when it is evaluated."""
        return figures_width(self.goal.objective)

    def collate(self, parts: Sequence[MicroBatch | None], shape: Shape) -> Batch:
        """The batch of these micro-batches."""
        return batch_of(parts, shape, self.base.way)

    def train(self, batch: Batch) -> Tensor:
        """Add the gradients of this micro-batch; return each run's figures, [K, 1 + 2·metrics], without
        waiting for them.
        """
        if self.base.device.type == "cuda":
            figures = self._on_cuda(batch)
            self._stay_close()
        else:
            figures = self._plain(batch.to(self.base.device))
        self.proven = True
        return figures

    def _stay_close(self) -> None:
        """Wait for the micro-batch before this one. So the device always has one to go on with while the host
        prepares the next, and a chat that asks between two waits for one of them and not for a whole step.
        """
        launched = torch.cuda.Event()
        launched.record()
        if self._launched is not None:
            self._launched.synchronize()
        self._launched = launched

    def _on_cuda(self, batch: Batch) -> Tensor:
        """The first micro-batches of a shape show what they take; where launching them is half of it, a graph
        takes over.
        """
        key = batch.key()
        if key in self.graphs:
            return self.graphs[key].replay(batch)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        batch = batch.to(self.base.device)
        if not self.plan.captures:
            return self._plain(batch)
        if seen == _WARM_UP:
            return self._measured(key, batch)
        if seen == _WARM_UP + 1 and self._launching[key] > _LAUNCH_BOUND:
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self.graphs[key] = _Graph(self._plain, batch, self._pool)
            except RuntimeError as error:
                self.plan = replace(self.plan, captures=False)  # nor would another shape be
                self.notices.append(
                    f"The step could not be captured in a CUDA graph and runs without: {str(error)[:200]}"
                )
            else:
                return self.graphs[key].replay(batch)
        return self._plain(batch)

    def evaluate(self, batch: Batch) -> Tensor:
        """Each run's figures, [K, 1 + 2·metrics]."""
        with self._in_slices(batch):
            return evaluate_batch(self.base, self.bank, batch, self.goal)

    def _in_slices(self, batch: Batch) -> AbstractContextManager[None]:
        if not self.plan.sliced:
            return nullcontext()
        if self._token_wise is None:
            self._token_wise = token_wise(self.base, self.bank, batch.runs)
        return in_slices(self._token_wise, self.bank.begin_tokens)

    def _plain(self, batch: Batch) -> Tensor:
        with self._in_slices(batch):
            return self._trained(batch)

    def _trained(self, batch: Batch) -> Tensor:
        base_losses = _plain_losses(self.base, None, batch) if self.goal.objective.wants_base else None
        self.bank.train()
        self.bank.begin_batch(batch.ids.shape[1] if self.base.way.quick else 0)
        layers = nullcontext() if self.plan.compiled else eager_layers()
        gives_up = self.bank.gives_up_products
        with (
            keeping(self.base, self.plan, gives_up_products=gives_up, stash=self.stash),
            layers,
            _set_up(self.base, self.bank, batch),
        ):
            head, states = trained_states(self.base, batch)
            total, figures = objective_of(head, states, batch, self.goal, base_losses)
            total.backward()
        return figures

    def _measured(self, key: tuple[int, ...], batch: Batch) -> Tensor:
        """As plain, but find out how much of the time the host was busy launching."""
        torch.cuda.synchronize(self.base.device)
        start = time.perf_counter()
        figures = self._plain(batch)
        launched = time.perf_counter()
        torch.cuda.synchronize(self.base.device)
        self._launching[key] = (launched - start) / (time.perf_counter() - start)
        return figures


class _Graph:
    """A micro-batch captured once and replayed: one launch instead of thousands."""

    def __init__(self, work: Callable[[Batch], Tensor], batch: Batch, pool: Any) -> None:
        """Raises RuntimeError if the work cannot be captured, as where the host waits for a number of it."""
        self._batch, stream = batch, torch.cuda.current_stream()
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # the graph has memory of its own; what earlier micro-batches left is not for it
        torch.cuda.empty_cache()
        try:
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._figures = work(batch)
        except RuntimeError:
            torch.cuda.set_stream(stream)  # where the capture cannot be ended, torch stays on its stream
            raise

    def replay(self, batch: Batch) -> Tensor:
        if batch is not self._batch:
            self._batch.copy_(batch)
        self._graph.replay()
        return self._figures.clone()


def embedding_needs_gradient(base: ResidentBase) -> Callable[[], None]:
    """Let gradients flow from the first layer on, so that it is the same graph as the others.

    Returns the undo.
    """

    def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            output.requires_grad_(True)

    return base.model.get_input_embeddings().register_forward_hook(hook).remove
