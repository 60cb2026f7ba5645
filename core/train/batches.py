"""Which rows go into which step, and how the micro-batches of K runs become one batch of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.base_model.attention import Packed
from core.data.packing import Block, one_row_each, pack
from core.data.rendering import IGNORE
from core.data.tokens import TokenRows
from core.errors import InvalidData
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES
from core.train.step_count import packs

_LENGTH_STEP = 64  # lengths on an accelerator are this times a power of two, so that few shapes occur
_POSITION_STEP = 64
_TRIED = 3  # micro-batches that a trial evaluates


@dataclass(frozen=True)
class MicroBatch:
    """The part of one run: its blocks,
    and by how much each of its trained tokens counts in the step's mean.
    """

    rows: TokenRows
    blocks: Sequence[Block]
    weight: float

    def piece(self, first: int, count: int) -> MicroBatch | None:
        """`count` of its blocks from number `first` on; None if there is none."""
        part = self.blocks[first : first + count]
        return replace(self, blocks=part) if part else None

    @property
    def longest(self) -> int:
        """Tokens of the fullest block."""
        return max((int(self.rows.lengths[list(block)].sum()) for block in self.blocks), default=0)

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return int(sum(self.rows.supervised[list(block)].sum() for block in self.blocks))


@dataclass(frozen=True)
class Step:
    """One optimiser step of one run."""

    micro_batches: list[MicroBatch]
    supervised: int
    tokens: int
    units: int
    """What its loss is a mean over: its trained tokens, or its rows."""


class RunData:
    """The rows of one run, laid into blocks."""

    def __init__(self, rows: TokenRows, config: TrainConfig, *, may_pack: bool = True) -> None:
        """may_pack: whether the base's way lets rows share a block.

        Raises InvalidData if no row is left to train on.
        """
        self.rows, self._config, self.objective = rows, config, OBJECTIVES.get(config.objective)
        self._each = self.objective.sequences.count  # rows here that belong to one of the data set's
        chosen, kept_back = self._firsts(~rows.validation), self._firsts(rows.validation)
        if not len(chosen):
            raise InvalidData(
                "Every row is for validation, so none is left to train on; change the data set's split."
            )
        self.train_rows, self.validation_rows = self._data_rows(chosen), self._data_rows(kept_back)
        self.train_sequences = len(chosen)
        self.block_length = rows.max_length * self._each
        lengths = self._lengths(chosen)
        self.packed = may_pack and packs(
            len(chosen), float(lengths.sum()), int(lengths.max()), self.block_length, config
        )
        self.blocks, self.validation_blocks = self._blocks(chosen), self._blocks(kept_back)

    def _blocks(self, chosen: NDArray[np.int64]) -> list[Block]:
        """What belongs together, given by the number of its first row, stays in one block."""
        if self.packed:
            found = pack(self._lengths(chosen).tolist(), self.block_length, self._config.seed)
        else:
            found = one_row_each(len(chosen))
        each = range(self._each)
        return [tuple(int(chosen[row]) + place for row in block for place in each) for block in found]

    def _data_rows(self, chosen: NDArray[np.int64]) -> int:
        """Rows of the data set among these."""
        return len(np.unique(self.rows.sources[chosen]))

    def _firsts(self, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The first of those rows here that belong to one of the data set's."""
        return np.flatnonzero(wanted[:: self._each]) * self._each

    def _lengths(self, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of all that belongs together."""
        return self.rows.lengths[firsts[:, None] + np.arange(self._each)].sum(1)

    def steps(self) -> Iterator[Step]:
        """Endless steps: each epoch in a new order drawn from seed and epoch.

        Within a step, blocks of similar length share a micro-batch; the loss is a mean over the step's
        tokens, so their order changes nothing but the padding.
        """
        size, accumulation = self._config.micro_batch_size, self._config.gradient_accumulation_steps
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.blocks), generator=generator).tolist()
            for start in range(0, len(order), size * accumulation):
                chosen = [self.blocks[index] for index in order[start : start + size * accumulation]]
                chosen.sort(key=self._tokens)
                supervised, units = sum(map(self._supervised, chosen)), self._units(chosen)
                parts = [chosen[at : at + size] for at in range(0, len(chosen), size)]
                micro = [MicroBatch(self.rows, part, 1.0 / units) for part in parts]
                yield Step(micro, supervised, sum(map(self._tokens, chosen)), units)
            epoch += 1

    def longest(self) -> MicroBatch:
        """The longest blocks in one micro-batch: what takes the most memory and time."""
        chosen = sorted(self.blocks, key=self._tokens)[-self._config.micro_batch_size :]
        return MicroBatch(self.rows, chosen, 1.0 / max(1, self._units(chosen)))

    def step_of(self, part: MicroBatch) -> Step:
        """A step of this one micro-batch."""
        units, tokens = max(1, self._units(part.blocks)), sum(map(self._tokens, part.blocks))
        return Step([replace(part, weight=1.0 / units)], part.supervised, tokens, units)

    def validation(self) -> list[MicroBatch]:
        """The validation rows in micro-batches; every trained token counts 1."""
        size = self._config.micro_batch_size
        ordered = sorted(self.validation_blocks, key=self._tokens)
        return [MicroBatch(self.rows, ordered[at : at + size], 1.0) for at in range(0, len(ordered), size)]

    def trial_validation(self) -> list[MicroBatch]:
        """The longest of them, for a trial."""
        return self.validation()[::-1][:_TRIED]

    @property
    def micro_batch_size(self) -> int:
        """Blocks in a micro-batch."""
        return self._config.micro_batch_size

    @cached_property
    def validation_units(self) -> int:
        """What a loss over the validation rows is a mean over."""
        return self._units(self.validation_blocks)

    @cached_property
    def most_supervised(self) -> int:
        """The largest number of trained tokens in any block."""
        return max(map(self._supervised, [*self.blocks, *self.validation_blocks]))

    @cached_property
    def longest_block(self) -> int:
        """Tokens of the longest block, the padding of packed ones counted."""
        return (
            self.block_length
            if self.packed
            else max(map(self._tokens, [*self.blocks, *self.validation_blocks]))
        )

    @cached_property
    def most_rows(self) -> int:
        """The largest number of rows in any block."""
        return max(map(len, [*self.blocks, *self.validation_blocks]))

    def _tokens(self, block: Block) -> int:
        return int(self.rows.lengths[list(block)].sum())

    def _supervised(self, block: Block) -> int:
        return int(self.rows.supervised[list(block)].sum())

    def _units(self, blocks: Sequence[Block]) -> int:
        if self.objective.mean_over == "rows":
            return sum(map(len, blocks)) // self._each
        return sum(map(self._supervised, blocks))


@dataclass(frozen=True)
class Shape:
    """What all batches of a group have in common.

    On an accelerator shapes are fixed, elsewhere as small as they can be.
    """

    runs: int
    blocks: int
    """Blocks of each run in one micro-batch."""
    block_length: int
    """Length of every block where rows are packed; otherwise the longest there can be."""
    packed: bool
    supervised: int
    """The most trained tokens a run's micro-batch can have."""
    segments: int
    """The most segments a batch can have, the padding at a block's end counted; as many as blocks if none is
    shared.
    """
    fixed: bool
    sequences: int = 0
    """The most sequences a run's micro-batch can have, where the objective tells them apart; otherwise 0."""

    @classmethod
    def of(cls, data: Sequence[RunData], *, runs: int, blocks: int, fixed: bool) -> Shape:
        """That of `runs` runs on these data, which share block length and packing, with so many blocks of
        each at a time.
        """
        length, most_rows = data[0].block_length, max(one.most_rows for one in data)
        return cls(
            runs=runs,
            blocks=blocks,
            block_length=length,
            packed=data[0].packed,
            supervised=min(blocks * length, blocks * max(one.most_supervised for one in data)),
            segments=runs * blocks * (1 + most_rows if most_rows > 1 else 1),
            fixed=fixed,
            sequences=blocks * most_rows if data[0].objective.wants_sequences else 0,
        )


@dataclass(frozen=True)
class Batch:
    """One micro-batch of K runs, run after run: ids and positions [K·blocks, length]; the rest by trained
    token, [K·C].
    """

    ids: Tensor
    positions: Tensor
    index: Tensor
    """Where a trained token is predicted, counted over all ids."""
    targets: Tensor
    weights: Tensor
    offsets: Tensor | None
    bounds: list[int] | None
    """Segments, for the attention: on an accelerator a tensor, elsewhere a list; neither where nothing is
    packed.
    """
    runs: int
    sequence: Tensor | None = None
    """Which of its run's sequences a trained token stands in, where the objective tells them apart."""
    sequences: int = 0
    """As many as there can be of one run."""

    def inputs(self) -> list[dict[str, Tensor]]:
        """What the model is given, of each pass over a part of the batch; the states of all passes in a row
        are what `index` counts over.
        """
        return [{"input_ids": self.ids, "position_ids": self.positions}]

    def attention(self) -> Packed | None:
        """What the attention modules are told."""
        if self.offsets is None and self.bounds is None:
            return None
        return Packed(self.bounds or (), self.offsets, self.ids.shape[1])

    def to(self, device: torch.device) -> Batch:
        """The same on another device, without waiting for the copy."""
        return replace(
            self, **{name: one.to(device, non_blocking=True) for name, one in self._tensors().items()}
        )

    def pinned(self) -> Batch:
        """The same in page-locked memory, from where copies need not be waited for."""
        return replace(self, **{name: one.pin_memory() for name, one in self._tensors().items()})

    def copy_(self, other: Batch) -> None:
        """Take over the content of a batch of the same shape."""
        for name, one in self._tensors().items():
            one.copy_(getattr(other, name), non_blocking=True)

    def key(self) -> tuple[int, ...]:
        """What a captured graph depends on."""
        return (*self.ids.shape, len(self.index), self.runs)

    def _tensors(self) -> dict[str, Any]:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: one for name, one in parts.items() if isinstance(one, Tensor)}


def collate(parts: Sequence[MicroBatch | None], shape: Shape) -> Batch:
    """Lay the micro-batches of K runs into one batch; a run that has none at the moment (None) gets empty
    blocks.
    """
    blocks = shape.blocks if shape.fixed else max(len(part.blocks) for part in parts if part)
    length = padded_length(parts, shape)
    ids = np.zeros((len(parts) * blocks, length), np.int64)
    positions = np.tile(np.arange(length), (len(ids), 1))
    chosen: list[list[tuple[NDArray[np.int64], NDArray[np.int32]]]] = [[] for _ in parts]
    bounds = [0]
    for run, part in enumerate(parts):
        for place in range(blocks):
            row = run * blocks + place
            block = part.blocks[place] if part and place < len(part.blocks) else ()
            at = 0
            for number in block:
                assert part is not None
                tokens, labels = part.rows[number]
                stop = at + len(tokens)
                ids[row, at:stop], positions[row, at:stop] = tokens, np.arange(len(tokens))
                counted = np.flatnonzero(labels[1:] != IGNORE)
                chosen[run].append((row * length + at + counted, labels[1:][counted]))
                at = stop
                bounds.append(row * length + at)
            if at < length:
                positions[row, at:] = np.arange(length - at)
                bounds.append((row + 1) * length)
    index, targets, weights = chosen_positions(chosen, parts, shape)
    offsets, listed = None, bounds if shape.segments > len(ids) else None
    if listed and shape.fixed:
        padded = np.full(shape.segments + 1, bounds[-1], np.int32)
        padded[: len(bounds)] = bounds
        offsets, listed = torch.from_numpy(padded), None
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(index),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        offsets,
        listed,
        len(parts),
        torch.from_numpy(numbered(chosen, len(index) // len(parts))) if shape.sequences else None,
        shape.sequences,
    )


def numbered(
    chosen: Sequence[Sequence[tuple[NDArray[np.int64], NDArray[np.int32]]]], width: int
) -> NDArray[np.int64]:
    """The number of the sequence that each run's trained tokens stand in, as chosen_positions lays them."""
    numbers = np.zeros((len(chosen), width), np.int64)
    for run, one in enumerate(chosen):
        found = np.repeat(np.arange(len(one)), [len(labels) for _, labels in one])
        numbers[run, : len(found)] = found
    return numbers.ravel()


def padded_length(parts: Sequence[MicroBatch | None], shape: Shape) -> int:
    """Tokens of each block of the batch that these micro-batches make."""
    if shape.packed:
        return shape.block_length
    longest = int(max(part.longest for part in parts if part))
    if not shape.fixed:
        return longest
    step = _LENGTH_STEP
    while step < longest:
        step *= 2
    return min(step, -(-shape.block_length // _LENGTH_STEP) * _LENGTH_STEP)


def chosen_positions(
    chosen: Sequence[Sequence[tuple[NDArray[np.int64], NDArray[np.int32]]]],
    parts: Sequence[MicroBatch | None],
    shape: Shape,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Index, target and weight of each run's trained tokens, padded to one number for all runs."""
    counts = [sum(len(labels) for _, labels in one) for one in chosen]
    width = -(-shape.supervised // _POSITION_STEP) * _POSITION_STEP if shape.fixed else max(1, *counts)
    index = np.zeros((len(parts), width), np.int64)
    targets = np.full((len(parts), width), IGNORE, np.int64)
    weights = np.zeros((len(parts), width), np.float32)
    for run, (one, count) in enumerate(zip(chosen, counts, strict=True)):
        part = parts[run]
        if part is None or not count:
            continue
        index[run, :count] = np.concatenate([places for places, _ in one])
        targets[run, :count] = np.concatenate([labels for _, labels in one])
        weights[run, :count] = part.weight
    return index.ravel(), targets.ravel(), weights.ravel()
