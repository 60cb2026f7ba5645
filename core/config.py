"""Configurations: frozen, validated on construction, described field by field.

Each field carries its label, help, unit and range, so the page's forms and the command line are built from
here. Defaults follow common practice for LoRA: rank 16, alpha 32, all linear layers, 2e-4 with cosine decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import InvalidConfig
from core.lora.kinds import ADAPTER_KINDS
from core.lora.module_names import by_pattern
from core.lora.scaling import scaling
from core.options import Config, option, unknown_option

ALL_LINEAR = "all-linear"
SCHEDULERS = ("cosine", "linear", "constant")
OVER_LENGTH = ("truncate", "split", "drop")
ALERTS = ("nan", "spike", "zero-gradient", "overfitting", "no-improvement")


def _adapter_kinds() -> tuple[str, ...]:
    return ADAPTER_KINDS.names  # when asked: a kind's head may need this file


@dataclass(frozen=True)
class LoraConfig(Config):
    """The shape of an adapter: h = W₀x + (α/r)·B·A·x (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

    kind: str = option(
        "lora", "Adapter kind", "What is trained on each targeted layer.", choices=_adapter_kinds
    )
    rank: int = option(
        16,
        "Rank (r)",
        "Size of the low-rank factors. 4 to 16 is plenty for style and format.",
        minimum=1,
        maximum=1024,
    )
    alpha: float = option(
        32.0,
        "Alpha (α)",
        "ΔW is scaled by alpha / rank. Twice the rank is common.",
        minimum=0.001,
        maximum=65536,
    )
    dropout: float = option(
        0.0, "Dropout", "Share of the adapter's inputs zeroed while training.", minimum=0.0, maximum=0.95
    )
    target_modules: str = option(
        ALL_LINEAR,
        "Target modules",
        "all-linear (every linear layer but the output head), or names separated by commas: q_proj,v_proj.",
    )
    use_rslora: bool = option(False, "rsLoRA", "Scale by alpha / √rank, which keeps high ranks learning.")
    rank_pattern: str = option("", "Rank pattern", "Another rank for some modules: q_proj=8,down_proj=32.")
    alpha_pattern: str = option("", "Alpha pattern", "Another alpha for some modules: q_proj=16.")
    layers_to_transform: str = option(
        "", "Layers to transform", "Decoder layers to adapt, counted from 0: 0-7,12. Empty for all."
    )

    @property
    def scaling(self) -> float:
        """The factor in front of BA where no pattern says otherwise."""
        return scaling(self.alpha, self.rank, self.use_rslora)

    def rank_of(self, path: str) -> int:
        """r of the layer at this module path."""
        return int(by_pattern(_pattern(self.rank_pattern, "rank_pattern"), path, self.rank))

    def scaling_of(self, path: str) -> float:
        """The factor in front of BA of the layer at this module path."""
        alpha = by_pattern(_pattern(self.alpha_pattern, "alpha_pattern"), path, self.alpha)
        return scaling(alpha, self.rank_of(path), self.use_rslora)

    @property
    def pattern_names(self) -> tuple[str, ...]:
        """The module names that either pattern speaks of."""
        return (*_pattern(self.rank_pattern, "rank_pattern"), *_pattern(self.alpha_pattern, "alpha_pattern"))

    @property
    def layer_numbers(self) -> frozenset[int] | None:
        """The decoder layers to adapt, counted from 0; None for all."""
        return _layer_numbers(self.layers_to_transform)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The target modules as a tuple of names."""
        return tuple(name.strip() for name in self.target_modules.split(",") if name.strip())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_names:
            raise InvalidConfig("target_modules is empty; give all-linear or names such as q_proj,v_proj.")
        limits = {option.name: option for option in self.options()}
        for rank in _pattern(self.rank_pattern, "rank_pattern").values():
            if rank != int(rank):
                raise InvalidConfig(f"rank_pattern must give whole numbers, not {rank:g}.")
            limits["rank"].check(int(rank))
        for alpha in _pattern(self.alpha_pattern, "alpha_pattern").values():
            limits["alpha"].check(alpha)
        _layer_numbers(self.layers_to_transform)
        ADAPTER_KINDS.get(self.kind).check(self)


def _pattern(text: str, name: str) -> dict[str, float]:
    """module=number pairs, separated by commas."""
    pairs: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        module, equals, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not module.strip() or not math.isfinite(value):
            raise InvalidConfig(
                f"{name}: {part!r} is not module=number; write for example q_proj=8,down_proj=32."
            )
        pairs[module.strip()] = value
    return pairs


def _layer_numbers(text: str) -> frozenset[int] | None:
    """Numbers and ranges such as 0-7,12. None for an empty text."""
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise InvalidConfig(
                f"layers_to_transform: {part!r} is no layer number or range; write for example 0-7,12."
            )
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers) or None


def _objectives() -> tuple[str, ...]:
    from core.train.objectives import OBJECTIVES  # which may want the configurations above

    return OBJECTIVES.names


@dataclass(frozen=True)
class TrainConfig(Config):
    """How an adapter is trained."""

    learning_rate: float = option(
        2e-4,
        "Learning rate",
        "Peak rate of AdamW. 1e-4 to 5e-4 suits most adapters.",
        minimum=1e-8,
        maximum=1.0,
    )
    loraplus_lr_ratio: float = option(
        1.0,
        "LoRA+ ratio (λ)",
        "Learning rate of B as a multiple of A's. 1 is plain LoRA, 16 is LoRA+'s advice.",
        minimum=1.0,
        maximum=1000.0,
    )
    lr_scheduler: str = option(
        "cosine", "LR scheduler", "How the rate falls after the warm-up.", choices=SCHEDULERS
    )
    warmup_ratio: float = option(
        0.03,
        "Warm-up ratio",
        "Share of the steps with a rising rate; never more than a tenth of the run.",
        minimum=0.0,
        maximum=0.5,
    )
    epochs: float = option(3.0, "Epochs", "Passes over the training rows.", minimum=0.01, maximum=1000)
    max_steps: int = option(
        0,
        "Max steps",
        "Optimiser steps; 0 trains for the epochs above.",
        unit="steps",
        minimum=0,
        maximum=10_000_000,
    )
    micro_batch_size: int = option(
        4,
        "Micro-batch size",
        "Rows, or packed blocks, in one forward and backward pass. Lower it if memory is short.",
        unit="rows",
        minimum=1,
        maximum=1024,
    )
    gradient_accumulation_steps: int = option(
        4,
        "Gradient accumulation steps",
        "Micro-batches in one optimiser step.",
        unit="micro-batches",
        minimum=1,
        maximum=4096,
    )
    packing: str = option(
        "auto",
        "Packing",
        (
            "Join rows into blocks of the max length, which never see each other. auto packs when enough "
            "steps remain."
        ),
        choices=("auto", "on", "off"),
    )
    max_length: int = option(
        2048,
        "Max length",
        "Packed rows fill blocks of this length. What happens to longer rows is said below.",
        unit="tokens",
        minimum=8,
        maximum=1_048_576,
    )
    over_length: str = option(
        "truncate",
        "Longer rows",
        (
            "Conversations above the max length: truncate cuts them off, split makes several rows, drop "
            "leaves them out."
        ),
        choices=OVER_LENGTH,
    )
    weight_decay: float = option(0.0, "Weight decay", "AdamW's decoupled decay.", minimum=0.0, maximum=10.0)
    max_grad_norm: float = option(
        1.0,
        "Max gradient norm",
        "Gradients are clipped to this norm; 0 turns clipping off.",
        minimum=0.0,
        maximum=1e6,
    )
    eval_steps: int = option(
        0,
        "Evaluate every",
        "Optimiser steps between two evaluations; 0 evaluates about ten times a run.",
        unit="steps",
        minimum=0,
        maximum=10_000_000,
    )
    save_steps: int = option(
        0,
        "Save every (steps)",
        "A checkpoint after so many optimiser steps; 0: by time alone.",
        minimum=0,
        maximum=10_000_000,
    )
    save_minutes: float = option(
        5.0,
        "Save every (minutes)",
        "A checkpoint after so many minutes; 0: by steps alone.",
        minimum=0.0,
        maximum=10_000.0,
    )
    save_best: bool = option(
        True, "Save the best", "A checkpoint after each evaluation that is the best so far."
    )
    keep_best: bool = option(
        False,
        "Keep the best",
        "The adapter is the state with the lowest validation loss instead of the last one.",
    )
    sample_prompts: str = option(
        "",
        "Sample prompts",
        "Asked at each evaluation, one prompt a line; the answers are kept by step.",
        lines=3,
    )
    sample_tokens: int = option(
        64, "Sample length", "Longest answer to a sample prompt.", unit="tokens", minimum=1, maximum=4096
    )
    stop_on: str = option(
        "nan",
        "Stop on",
        f"Alerts that end the run; the others only tell. Any of {', '.join(ALERTS)}, separated by commas. "
        "no-improvement is early stopping.",
    )
    patience: int = option(
        3,
        "Patience",
        (
            "Evaluations in a row with a rising validation loss (overfitting), or without a new best "
            "(no-improvement)."
        ),
        unit="evaluations",
        minimum=1,
        maximum=10_000,
    )
    resume_at_start: bool = option(
        False,
        "Resume by itself",
        "Go on after the engine or the machine has died, as soon as the workbench runs again.",
    )
    gradient_checkpointing: str = option(
        "auto",
        "Gradient checkpointing",
        (
            "Compute each layer again in backward: a third slower, a fraction of the memory. auto does so "
            "when memory is short."
        ),
        choices=("auto", "on", "off"),
    )
    compile: str = option(
        "auto",
        "Compile",
        (
            "Compile the model's layers with torch.compile. auto does so on a GPU when the run is long "
            "enough to gain."
        ),
        choices=("auto", "on", "off"),
    )
    objective: str = option("sft", "Objective", "What the training minimises.", choices=_objectives)
    seed: int = option(
        42, "Seed", "Start of the factors, order of the rows, dropout.", minimum=0, maximum=2**31 - 1
    )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The sample prompts, one by one."""
        return tuple(line.strip() for line in self.sample_prompts.splitlines() if line.strip())

    @property
    def stopping_alerts(self) -> tuple[str, ...]:
        """The alerts that end the run."""
        return tuple(name.strip() for name in self.stop_on.split(",") if name.strip())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.stopping_alerts:
            if name not in ALERTS:
                raise InvalidConfig(f"stop_on: there is no alert {name!r}; choose from {', '.join(ALERTS)}.")


@dataclass(frozen=True)
class GenerationConfig(Config):
    """How one answer is sampled."""

    max_tokens: int = option(256, "Max tokens", "Longest answer.", unit="tokens", minimum=1, maximum=32768)
    temperature: float = option(
        0.7, "Temperature", "0 is greedy: always the likeliest token.", minimum=0.0, maximum=5.0
    )
    top_p: float = option(
        0.95, "Top-p", "Sample from the smallest set with this probability.", minimum=0.01, maximum=1.0
    )
    top_k: int = option(
        0, "Top-k", "Sample from the k likeliest tokens; 0 for all.", minimum=0, maximum=100_000
    )
    repetition_penalty: float = option(
        1.0, "Repetition penalty", "Above 1 discourages tokens already used.", minimum=0.5, maximum=2.0
    )
    seed: int = option(0, "Seed", "Same seed, same answer.", minimum=0, maximum=2**31 - 1)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


def split_train_options(values: Mapping[str, object]) -> tuple[LoraConfig, TrainConfig]:
    """Sort one flat mapping of training options into the two configurations. Raises InvalidConfig."""
    lora_names = [option.name for option in LoraConfig.options()]
    train_names = [option.name for option in TrainConfig.options()]
    for name in values:
        if name not in lora_names and name not in train_names:
            raise InvalidConfig(unknown_option(name, lora_names + train_names))
    lora = LoraConfig.parse({name: value for name, value in values.items() if name in lora_names})
    train = TrainConfig.parse({name: value for name, value in values.items() if name in train_names})
    return lora, train
