"""How a group's micro-batches are computed: the plan they run under, and what is done where it does not hold.

The first plan keeps as much as the memory seems to hold. Where that was too much, or compiling fails, the
steps under way are done again under the next plan, which gives the same gradients.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from core.base_model.compiling import compile_layers, compiles
from core.base_model.load import ResidentBase
from core.lora.ops import factor_dtype
from core.train.batches import MicroBatch, Shape
from core.train.figures import Figures
from core.train.group_objective import GroupObjective
from core.train.label_step import LabelStep
from core.train.memory import (
    ExecutionPlan,
    Tier,
    first_plan,
    may_offload,
    ran_out_of_memory,
    room_in_parts,
)
from core.train.offloading import HostStash
from core.train.seating import Seating
from core.train.share import ALL, NotHeld, Share
from core.train.step import MicroBatchStep

COMPILE_SECONDS = 60.0  # what compiling costs at first
COMPILE_GAIN = 0.3  # the share of the time it saves

Parts = Sequence[MicroBatch | None]
"""A micro-batch of each slot's run; None for a run that has none at the moment."""


class Execution:
    """Computes micro-batches of the runs that are seated."""

    def __init__(self, base: ResidentBase, seating: Seating, figures: Figures, share: Share = ALL) -> None:
        self._base, self._seating, self._figures, self._share = base, seating, figures, share
        self._plan: ExecutionPlan | None = None
        self._step: MicroBatchStep | LabelStep | None = None
        self._stash: HostStash | None = None
        self._untold = ""
        self.squeezed = False
        """Whether the memory did not hold the work as it was planned."""

    @property
    def step(self) -> MicroBatchStep | LabelStep:
        """One micro-batch under the plan that holds now."""
        assert self._step is not None
        return self._step

    @property
    def graphs(self) -> int:
        """CUDA graphs that are captured now."""
        return len(self._step.graphs) if self._step is not None else 0

    def begin(self, goal: GroupObjective) -> None:
        """Compute towards `goal` with the bank as it was built anew; at first, choose the plan."""
        self._goal = goal
        self._labels = [run.labels for run in self._seating.runs if run.labels is not None]
        if self._plan is None:
            start = ExecutionPlan(Tier.KEEP, self._wants_compile("on"), captures=self._may_capture)
            self._plan = self._first_plan(start)
            if self._plan.compiled:
                compile_layers(self._base)
            if self._plan.tier is Tier.FULL and self._checkpointing() != "on":
                self._untold = f"To fit the memory, {self._plan.sentence}"
        self._use(self._plan)

    def _first_plan(self, start: ExecutionPlan) -> ExecutionPlan:
        work = self._base, self._most_blocks, self._tokens_a_batch(), start
        how = self._checkpointing()
        if not self._share.in_step:
            return first_plan(*work, how, may_slice=self._may_slice)
        room = self._share.least(room_in_parts(self._base))
        plan = first_plan(*work, how, may_slice=self._may_slice, free=room)
        (agreed,) = self._share.asked([asdict(plan)])  # another's would ask for other passes
        return ExecutionPlan(**agreed | {"tier": Tier(agreed["tier"])})

    @property
    def _may_capture(self) -> bool:
        return not self._replaces and not self._share.in_step

    def _use(self, plan: ExecutionPlan) -> None:
        self._plan = plan
        bank, about = self._seating.bank, (plan, self._goal)
        if plan.offloads and self._stash is None:
            self._stash = HostStash(self._base.device)
        stash = self._stash if plan.offloads else None
        self._step = (
            LabelStep(self._base, bank, *about, self._labels, stash=stash)
            if self._goal.objective.classifies
            else MicroBatchStep(self._base, bank, *about, stash=stash)
        )

    def close(self) -> None:
        """Give the host's memory back, when nothing is trained any more."""
        if self._stash is not None:
            self._stash.close()

    def _checkpointing(self) -> str:
        """On or offload if one of the runs wants it, off if all refuse it."""
        asked = {run.train.gradient_checkpointing for run in self._seating.runs}
        wanted = next((how for how in ("offload", "on") if how in asked), "auto")
        return "off" if asked == {"off"} else wanted

    @property
    def _may_slice(self) -> bool:
        if self._share.in_step:  # what may be sliced is found by trying a layer, which no process has whole
            return False
        return self._base.way.quick and not (self._goal.objective.classifies or self._replaces)

    # Compiling.

    def _wants_compile(self, how: str) -> bool:
        runs = self._seating.runs
        if self._goal.objective.classifies or self._replaces or not self._base.way.quick:
            return False
        return any(run.train.compile == how for run in runs) and self._all_compile

    @cached_property
    def _all_compile(self) -> bool:
        """False where a process cannot compile that the others would wait for in the middle of a pass; one by
        itself finds out on the way.
        """
        return not self._share.in_step or bool(self._share.least(int(compiles(self._base.device))))

    @property
    def _replaces(self) -> bool:
        """Whether the run's own parameters stand in the base's place, which compiled layers would not see."""
        return self._seating.runs[0].kind.whole

    def compile_if_it_pays(self, seconds: float) -> None:
        """Compile from now on if that earns its own time. seconds: what a micro-batch takes."""
        plan = self.step.plan
        cannot = plan.compiled or plan.sliced or self._base.device.type != "cuda"
        if cannot or not self._wants_compile("auto"):
            return
        left = max(run.total_steps * run.train.gradient_accumulation_steps for run in self._seating.runs)
        pays = compiling_pays(left * seconds)
        if not (self._share.either(pays) if self._share.in_step else pays):
            return
        compile_layers(self._base)
        self._use(replace(plan, tier=max(plan.tier, Tier.CHEAP), compiled=True))

    @property
    def will_compile(self) -> bool:
        """Whether the next micro-batch is the first that is compiled, which takes a while."""
        return self._step is not None and self._step.plan.compiled and not self._step.proven

    # Shapes and pieces.

    def _tokens_a_batch(self) -> int:
        shape = self._shape()
        return shape.runs * shape.blocks * shape.block_length

    @property
    def _blocks_a_piece(self) -> int:
        pieces = self._plan.pieces if self._plan else 1
        return -(-self._most_blocks // pieces)

    @property
    def _most_blocks(self) -> int:
        """Blocks of each run in a micro-batch, of those that are this process's."""
        return -(-self._seating.runs[0].train.micro_batch_size // self._share.count)

    def _shape(self) -> Shape:
        data, fixed = [run.data for run in self._seating.runs], self._base.device.type == "cuda"
        return Shape.of(data, runs=len(self._seating.slots), blocks=self._blocks_a_piece, fixed=fixed)

    def _pieces(self, parts: Parts) -> Iterator[tuple[int, list[MicroBatch | None]]]:
        """The micro-batches in the plan's pieces, each with the number of its first block."""
        each = self._blocks_a_piece
        own = self._share.blocks(self._seating.runs[0].train.micro_batch_size)
        for first in own[::each]:
            count = min(each, own.stop - first)
            piece = [part.piece(first, count) if part else None for part in parts]
            if any(piece):
                yield first, piece

    def _beside(self, parts: Parts) -> Iterator[list[MicroBatch | None]]:
        """Pieces that count nothing, as many as this process has fewer than the others may have, where all
        are needed for each pass.
        """
        if not self._share.in_step:
            return
        missing = -(-self._most_blocks // self._blocks_a_piece) - sum(1 for _ in self._pieces(parts))
        for _ in range(missing):
            yield [replace(part, blocks=part.blocks[:1], weight=0.0) if part else None for part in parts]

    # Training.

    def train(self, parts: Parts) -> Iterator[str]:
        """Add the gradients and the figures of one micro-batch of each run; yield what the runs should be
        told.

        It may need more memory than there is, or fail to compile. Then the steps under way are done again
        from their beginning, in smaller pieces or without compiling. Raises what nothing helps against.
        """
        if self._untold:
            yield self._untold
            self._untold = ""
        try:
            self._add_gradients(parts, 0)
        except Exception as error:  # noqa: BLE001  (whatever nothing helps against is raised again)
            why = self._next_plan(error)
        else:
            why = ""
        while why:
            yield why
            why = self._redo()
        notices = self.step.notices
        while notices:
            yield notices.pop()

    def _add_gradients(self, parts: Parts, back: int) -> None:
        """Forward and backward for the micro-batches that were taken `back` micro-batches ago, piece by
        piece.
        """
        bank = self._seating.bank
        if bank.drops:
            bank.key_dropout([run.dropout_key(back) if run else 0 for run in self._seating.slots])
        with self._share.together():
            for first, piece in self._pieces(parts):
                if bank.drops:
                    bank.begin_rows(first * self._rows_a_block)
                if (figures := self._trained(piece)) is not None:
                    self._figures.add(figures)
            for piece in self._beside(parts):
                self._trained(piece)
        self._share.agree_it_fits()

    @property
    def _rows_a_block(self) -> int:
        """Of the batch that is computed: on the general way what belongs together is several."""
        return 1 if self._base.way.quick else self._goal.objective.sequences.count

    def _trained(self, piece: Parts) -> Tensor | None:
        step, is_cuda = self.step, self._base.device.type == "cuda"

        def compute() -> Tensor:
            batch: Any = step.collate(piece, self._shape())
            return step.train(batch.pinned() if is_cuda else batch)

        return self._share.passed(compute, backward=True)

    def _redo(self) -> str:
        """Do the steps under way again up to here. Returns why, if that needed yet another plan."""
        self._let_go()  # here, where the error that held on to it is gone
        self._forget_steps()
        try:
            for back in range(max(run.place for run in self._seating.runs) - 1, -1, -1):
                parts = [run.earlier_micro_batch(back) if run else None for run in self._seating.slots]
                self._add_gradients(parts, back)
        except Exception as error:  # noqa: BLE001  (as above)
            return self._next_plan(error)
        return ""

    def _forget_steps(self) -> None:
        self._seating.bank.forget_gradients()
        self._figures.forget()

    # Evaluating.

    def evaluate(self, parts: Parts) -> tuple[Tensor, list[str]]:
        """Each run's figures over one micro-batch, [K, 1 + 2·metrics] and a classifier's counts behind them,
        and what to say of how it was done.
        """
        told: list[str] = []
        while True:
            try:
                with self._share.together():
                    found = [self._evaluated(piece) for _, piece in self._pieces(parts)]
                    for piece in self._beside(parts):
                        self._evaluated(piece)
                self._share.agree_it_fits()
                held = [one for one in found if one is not None]
                return torch.stack(held).sum(0) if held else self._no_figures(), told
            except Exception as error:  # noqa: BLE001  (whatever nothing helps against is raised again)
                told.append(self._next_plan(error))
            self._let_go()

    def _evaluated(self, piece: Parts) -> Tensor | None:
        step = self.step

        def compute() -> Tensor:
            batch: Any = step.collate(piece, self._shape())
            return step.evaluate(batch)

        return self._share.passed(compute, backward=False)

    def _no_figures(self) -> Tensor:
        """Where all of a micro-batch's blocks are other processes'."""
        shape, dtype = (len(self._seating.slots), self.step.width), factor_dtype(self._base.dtype)
        return torch.zeros(shape, device=self._base.device, dtype=dtype)

    # The ladder of plans.

    def _next_plan(self, error: Exception) -> str:
        """Choose a plan under which this would not have happened, and say why; raise it if there is none."""
        if self._share.in_step and not isinstance(error, NotHeld):
            raise error  # the others do not know of it, and wait in the middle of a pass
        if ran_out_of_memory(error):
            plan, why = self._smaller_plan(error)
            self.squeezed = True
        elif self.step.plan.compiled and not self.step.proven:
            plan = replace(self.step.plan, compiled=False)
            why = f"Compiling failed ({_first_line(error)}); going on without"
        else:
            raise error
        self._use(plan)
        return why

    def _smaller_plan(self, error: Exception) -> tuple[ExecutionPlan, str]:
        plan, shape, tokens = self.step.plan, self._shape(), self._tokens_a_batch()
        can_offload = may_offload(self._base, tokens)
        if self._share.in_step:
            can_offload = bool(self._share.least(int(can_offload)))
        smaller = plan.smaller(
            self._most_blocks,
            plan.pieces * tokens,
            bool(self.step.graphs),
            may_offload=can_offload,
            may_slice=self._may_slice,
        )
        if smaller is None:
            raise error
        tried = f"{shape.runs * shape.blocks} × {shape.block_length:,} tokens"
        return smaller, f"The memory did not hold {tried}, so the step is done again: {smaller.sentence}"

    def _let_go(self) -> None:
        """Give back what a step that failed has left behind: its graph of operations, and captured graphs of
        old plans.
        """
        gc.collect()  # recomputing leaves cycles
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()


def compiling_pays(seconds: float) -> bool:
    """Whether compiling earns its own time in so many seconds of training."""
    return seconds * COMPILE_GAIN >= COMPILE_SECONDS


def _first_line(error: Exception) -> str:
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0][:200] if said else ''}"
