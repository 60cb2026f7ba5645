"""What a training will need, before it starts. An estimate from shapes; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.base_model.way import GENERAL_NAME, QUICK_NAME
from core.lora.expert_shapes import experts_among
from core.lora.fused import fused_parts
from core.lora.kinds import ADAPTER_KINDS
from core.lora.targets import (
    bytes_beside,
    counted,
    select_targets,
    targeted_kinds,
    trainable_parameter_count,
    training_bytes,
    whole_bytes,
)
from core.lora.whole_names import chosen_parameters, module_of
from core.lora.wholes import require_no_wholes
from core.train.base_shape import BaseShape
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES
from core.train.sharding import DDP, CardsHold, cards_hold
from core.train.step_count import evaluations, packs, planned_steps, steps_per_epoch
from core.train.training_options import TrainingOptions
from core.train.way_options import why_not_in_parts

_CHARACTERS_PER_TOKEN = 4.0
_TEMPLATE_TOKENS = 24  # role names and end tokens around a short conversation
_FILLED = 0.97  # of a packed block
_LOSS_BYTES = 1 << 30  # for the chunk of logits that exists at one time
_FORWARD_SHARE = 0.4  # of the time of a trained token: its forward pass, without a graph's quick launches
_KEPT_PER_LAYER = (
    34  # numbers kept for backward, in units of the hidden size, for each token of a decoder layer
)
_ON_THE_DEVICE = 3  # inputs of layers, where the others wait in the host's memory
_LEAST = (
    18  # these and a layer's attention, where the rest comes in slices; core/train/memory.py has it measured
)


@dataclass(frozen=True)
class DataShape:
    """What the estimate needs to know of a data set."""

    train_rows: int
    """Sequences, where rows become several."""
    mean_characters: float
    validation_rows: int = 0
    row_tokens: float | None = None
    """Mean tokens of a row, where a run on these rows has shown it; else it follows from the characters."""


@dataclass(frozen=True)
class Estimate:
    """The plan in numbers."""

    trainable_parameters: int
    targeted_layers: int
    steps: int
    tokens: int
    memory_bytes: int
    """Of one card, where several train it."""
    seconds: float | None
    """Evaluations counted; None until a run on this base has shown how fast this machine is."""
    packed: bool = False
    targets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of each name of a layer: how many layers have factors, and how many numbers are trained on them."""
    whole: int = 0
    """Of the trainable parameters those that are trained whole."""
    experts: str = ""
    """A sentence on what no target reaches; empty if there is nothing to say."""
    least_bytes: int = 0
    """Memory on a GPU if everything is done that lowers it; 0 where that is not left to the memory."""
    hold: CardsHold | None = None
    """How several cards hold the base; None where one trains it."""
    cards: int = 1
    """Over how many cards the base could be laid out in parts, where one trains it."""

    @property
    def target_sentence(self) -> str:
        """Which layers are hit, and how many parameters that is: q_proj × 30, v_proj × 30 · 921,600
        trainable.
        """
        return f"{self.layer_sentence} · {self.trainable_parameters:,} trainable"

    @property
    def layer_sentence(self) -> str:
        """How many layers of each name have factors, and what is trained beside these."""
        layers = counted({name: count for name, (count, _) in self.targets.items()})
        whole = [f"{self.whole:,} parameters whole"] if self.whole else []
        return ", and ".join([*([layers] if layers else []), *whole])


def estimate(
    base: BaseShape,
    data: DataShape,
    options: TrainingOptions,
    *,
    bytes_per_weight: int,
    tokens_per_second: float | None,
    card_bytes: Sequence[float] = (),
) -> Estimate:
    """Estimate a training. card_bytes: what each of the cards has in all, if that is known; of those that are
    asked for, or of all where one is.

    Raises InvalidConfig if target_modules match nothing.
    """
    train = options.train
    trains = _trained(base, options, bytes_per_weight)
    train_rows = max(1, data.train_rows)
    guessed = data.mean_characters / _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS
    row_tokens = min(train.max_length, data.row_tokens or guessed)
    packed = base.may_pack and packs(
        train_rows, train_rows * row_tokens, int(row_tokens), train.max_length, train
    )
    block_tokens = train.max_length * _FILLED if packed else row_tokens
    blocks = max(1, math.ceil(train_rows * row_tokens / block_tokens))
    steps = planned_steps(blocks, train)
    tokens = int(steps * train_rows * row_tokens / steps_per_epoch(blocks, train))
    micro_tokens = train.rows_a_process * (train.max_length if packed else row_tokens)
    hold = _hold(base, options, bytes_per_weight, card_bytes)
    numbers = base.hidden_size * bytes_per_weight
    kept = micro_tokens * numbers * _kept(base.layers, train.gradient_checkpointing)
    always = _base_bytes(base, train, bytes_per_weight, hold) + trains.memory + _LOSS_BYTES
    least = always + micro_tokens / train.rows_a_process * numbers * _least(hold)
    evaluated = evaluations(steps, train) * data.validation_rows * row_tokens
    worth = tokens + evaluated * _FORWARD_SHARE
    seconds = worth / tokens_per_second if tokens_per_second else None
    return Estimate(
        trains.parameters,
        trains.layers,
        steps,
        tokens,
        int(always + kept),
        seconds,
        packed,
        trains.targets,
        trains.whole,
        least_bytes=int(least) if base.may_pack and train.gradient_checkpointing == "auto" else 0,
        hold=hold,
        cards=len(card_bytes) if train.processes == 1 and not _why_not_in_parts(base, options) else 1,
    )


def _kept(layers: int, checkpointing: str) -> int:
    """For backward, in units of the hidden size, for each token."""
    if checkpointing == "on":
        return layers + _KEPT_PER_LAYER
    return _ON_THE_DEVICE + _KEPT_PER_LAYER if checkpointing == "offload" else layers * _KEPT_PER_LAYER


def _hold(
    base: BaseShape, options: TrainingOptions, bytes_per_weight: int, card_bytes: Sequence[float]
) -> CardsHold | None:
    """How several cards hold the base; None where one trains it."""
    train = options.train
    if train.processes == 1:
        return None
    refusal = _why_not_in_parts(base, options)
    takes = base.held_bytes(train.quantisation, bytes_per_weight)
    return cards_hold(
        train.sharding, train.devices, takes, card_bytes, machines=train.machines, refusal=refusal
    )


def _why_not_in_parts(base: BaseShape, options: TrainingOptions) -> str:
    return why_not_in_parts(QUICK_NAME if base.may_pack else GENERAL_NAME, options)


def _least(hold: CardsHold | None) -> int:
    """Of one row, in units of the hidden size for each token, where all is done that lowers it."""
    in_slices = hold is None or hold.way == DDP
    return _LEAST if in_slices else _ON_THE_DEVICE + _KEPT_PER_LAYER


def _base_bytes(base: BaseShape, train: TrainConfig, bytes_per_weight: int, hold: CardsHold | None) -> float:
    """What a card has of the base while it computes."""
    if hold is None or hold.way == DDP:
        return base.held_bytes(train.quantisation, bytes_per_weight)
    part = base.part_bytes(train.quantisation, bytes_per_weight, train.devices)
    return part + base.gathered_bytes(train.quantisation, bytes_per_weight)


@dataclass(frozen=True)
class _Trained:
    """What is trained: numbers, layers that have some, bytes of memory that these take, and what of it."""

    parameters: int
    layers: int
    memory: float
    targets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    whole: int = 0


def _trained(base: BaseShape, options: TrainingOptions, bytes_per_weight: int) -> _Trained:
    lora, kind = options.lora, ADAPTER_KINDS.get(options.lora.kind)
    if kind.whole:
        tensors = base.tensors or {f"{path}.weight": shape for path, shape in base.layer_shapes.items()}
        chosen = chosen_parameters(list(tensors), lora)
        count = sum(math.prod(tensors[path]) for path in chosen)
        memory = whole_bytes(count, bytes_per_weight)
        return _Trained(count, len({module_of(path) for path in chosen}), memory, {}, count)
    shapes = base.wholes.targetable(base.layer_shapes, lora, options.kind)
    targets = select_targets(list(shapes), lora, base.head, experts_among(shapes))
    own = whole_numbers(base, options, targets)
    parts = fused_parts(base.config, {path: shapes[path] for path in targets}, lora.parts)
    trainable = own + trainable_parameter_count(shapes, targets, lora, options.kind, parts)
    memory = training_bytes(shapes, targets, lora, options.kind, bytes_per_weight)
    kinds = targeted_kinds(shapes, targets, lora, options.kind, parts)
    return _Trained(trainable, len(targets), memory + bytes_beside(own, bytes_per_weight), kinds, own)


def whole_numbers(base: BaseShape, options: TrainingOptions, targets: Sequence[str]) -> int:
    """Numbers that an adapter on `targets` trains whole, a classifier's head not counted.

    Raises InvalidConfig for what the base has not, or what could not be right.
    """
    if OBJECTIVES.get(options.train.objective).classifies:
        require_no_wholes(options.lora, options.kind)
        return 0
    biased = ADAPTER_KINDS.get(options.lora.kind).biases_on_b(options.kind)
    outputs = {path: base.layer_shapes[path][1] for path in targets} if biased else {}
    return sum(map(math.prod, base.wholes.trained(options.lora, targets, outputs).values()))
