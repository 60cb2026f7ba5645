"""How an adapter is trained. Defaults follow common practice for LoRA: 2e-4 with cosine decay."""

from __future__ import annotations

from dataclasses import dataclass

from core.base_model.quantisation import NONE, QUANTISATIONS
from core.data.packing import OVER_LENGTH
from core.errors import InvalidConfig
from core.options import Config, option
from core.train.sharding import AUTO, SHARDINGS

SCHEDULERS = ("cosine", "linear", "constant")
_ALERTS = (
    ("nan", "The loss is no number any more"),
    ("spike", "The loss jumps far above what it was"),
    ("zero-gradient", "Nothing is learnt: the gradients are zero"),
    ("overfitting", "The validation loss rises again and again"),
    ("no-improvement", "No new best validation loss for a while (early stopping)"),
)
ALERTS = tuple(name for name, _ in _ALERTS)


def _objectives() -> tuple[str, ...]:
    from core.train.objectives import OBJECTIVES  # its heads may need this file

    return OBJECTIVES.names


@dataclass(frozen=True)
class TrainConfig(Config):
    """How an adapter is trained."""

    objective: str = option(
        "sft",
        "Objective",
        "What the training minimises, and from which columns.",
        choices=_objectives,
        subject="Objective",
    )
    learning_rate: float = option(
        2e-4,
        "Learning rate",
        "Peak rate of AdamW. 1e-4 to 5e-4 suits most adapters, about ten times that of full fine-tuning "
        "(LoRA Without Regret, 2025).",
        minimum=1e-8,
        maximum=1.0,
        subject="Optimiser and schedule",
        common=True,
    )
    loraplus_lr_ratio: float = option(
        1.0,
        "LoRA+ ratio (λ)",
        "Learning rate of B as a multiple of A's. 1 is plain LoRA, 16 is LoRA+'s advice.",
        minimum=1.0,
        maximum=1000.0,
        subject="Optimiser and schedule",
    )
    lr_scheduler: str = option(
        "cosine",
        "LR scheduler",
        "How the rate falls after the warm-up.",
        choices=SCHEDULERS,
        subject="Optimiser and schedule",
    )
    warmup_ratio: float = option(
        0.03,
        "Warm-up ratio",
        "Share of the steps with a rising rate; never more than a tenth of the run.",
        minimum=0.0,
        maximum=0.5,
        subject="Optimiser and schedule",
    )
    epochs: float = option(
        3.0,
        "Epochs",
        "Passes over the training rows.",
        minimum=0.01,
        maximum=1000,
        subject="Optimiser and schedule",
        common=True,
    )
    max_steps: int = option(
        0,
        "Max steps",
        "Optimiser steps; 0 trains for the epochs.",
        unit="steps",
        minimum=0,
        maximum=10_000_000,
        subject="When it stops",
    )
    micro_batch_size: int = option(
        4,
        "Micro-batch size",
        "Rows, or packed blocks, in one forward and backward pass. Lower it if memory is short.",
        unit="rows",
        minimum=1,
        maximum=1024,
        subject="Batches and memory",
        common=True,
    )
    gradient_accumulation_steps: int = option(
        4,
        "Gradient accumulation steps",
        "Micro-batches in one optimiser step.",
        unit="micro-batches",
        minimum=1,
        maximum=4096,
        subject="Batches and memory",
        common=True,
    )
    packing: str = option(
        "auto",
        "Packing",
        (
            "Join rows into blocks of the max length, which never see each other. auto packs when enough "
            "steps remain."
        ),
        choices=("auto", "on", "off"),
        subject="Batches and memory",
    )
    max_length: int = option(
        2048,
        "Max length",
        "Packed rows fill blocks of this length. The option Longer rows says what becomes of longer ones.",
        unit="tokens",
        minimum=8,
        maximum=1_048_576,
        subject="Batches and memory",
        common=True,
    )
    over_length: str = option(
        "truncate",
        "Longer rows",
        (
            "Conversations above the max length: truncate cuts them off, split makes several rows, drop "
            "leaves them out."
        ),
        choices=OVER_LENGTH,
        subject="Batches and memory",
    )
    weight_decay: float = option(
        0.0,
        "Weight decay",
        "AdamW's decoupled decay. Biases and norms have none.",
        minimum=0.0,
        maximum=10.0,
        subject="Optimiser and schedule",
    )
    max_grad_norm: float = option(
        1.0,
        "Max gradient norm",
        "Gradients are clipped to this norm; 0 turns clipping off.",
        minimum=0.0,
        maximum=1e6,
        subject="Optimiser and schedule",
    )
    eval_steps: int = option(
        0,
        "Evaluate every",
        "Optimiser steps between two evaluations; 0 evaluates about ten times a run.",
        unit="steps",
        minimum=0,
        maximum=10_000_000,
        subject="Evaluation and checkpoints",
    )
    save_steps: int = option(
        0,
        "Save every (steps)",
        "A checkpoint after so many optimiser steps; 0: by time alone.",
        minimum=0,
        maximum=10_000_000,
        subject="Evaluation and checkpoints",
    )
    save_minutes: float = option(
        5.0,
        "Save every (minutes)",
        "A checkpoint after so many minutes; 0: by steps alone.",
        minimum=0.0,
        maximum=10_000.0,
        subject="Evaluation and checkpoints",
    )
    save_best: bool = option(
        True,
        "Save the best",
        "A checkpoint after each evaluation that is the best so far.",
        subject="Evaluation and checkpoints",
    )
    keep_best: bool = option(
        False,
        "Keep the best",
        "The adapter is the state with the lowest validation loss instead of the last one.",
        subject="Evaluation and checkpoints",
    )
    sample_prompts: str = option(
        "",
        "Sample prompts",
        "Asked at each evaluation, one prompt a line; the answers are kept by step.",
        lines=3,
        subject="Samples",
    )
    sample_tokens: int = option(
        64,
        "Sample length",
        "Longest answer to a sample prompt.",
        unit="tokens",
        minimum=1,
        maximum=4096,
        subject="Samples",
    )
    stop_on: str = option(
        "nan",
        "Stop on",
        f"Alerts that end the run; the others only tell. Any of {', '.join(ALERTS)}, separated by commas. "
        "no-improvement is early stopping.",
        several=_ALERTS,
        subject="When it stops",
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
        subject="When it stops",
    )
    resume_at_start: bool = option(
        False,
        "Resume by itself",
        "Go on after the engine or the machine has died, as soon as the workbench runs again.",
        subject="Others",
    )
    gradient_checkpointing: str = option(
        "auto",
        "Gradient checkpointing",
        (
            "Compute each layer again in backward: a third slower, a fraction of the memory. offload also "
            "has the layers' inputs wait in the host's memory, for long rows on a GPU. auto does as much as "
            "the memory asks for."
        ),
        choices=("auto", "on", "offload", "off"),
        subject="Batches and memory",
    )
    quantisation: str = option(
        NONE,
        "Base held in",
        "none: as its files have it. nf4 holds the linear layers in 4 bits (QLoRA, arXiv 2305.14314), a "
        "quarter of their memory, for 1.08 of a step's time (8B, H100) and a base that answers a little "
        "worse; int8 in 8 bits, half of it, and next to nothing lost: an 8B base in bfloat16 takes 15.0 GiB, "
        "5.3 and 8.5 so; of the starter's loss on plain text, 3.42, they made 3.53 and 3.42. These need "
        "bitsandbytes. fp8 multiplies in 8 bits, weights and activations, for speed and not for memory, on "
        "NVIDIA GPUs from Ada on.",
        choices=QUANTISATIONS,
        subject="Batches and memory",
    )
    devices: int = option(
        1,
        "Cards",
        "Cards of this machine that train it together: each computes its part of every micro-batch, and "
        "gradients are summed once a step, so the adapter is the one of a single card, up to rounding. "
        "micro_batch_size counts the rows of all cards. Without a card these are processes of the CPU.",
        minimum=1,
        maximum=64,
        subject="Batches and memory",
    )
    machines: int = option(
        1,
        "Machines",
        "Machines that train it together, each with as many cards as are chosen for this one. The others "
        "join with: lora-workbench worker --join ADDRESS:PORT, and the settings join_address and join_key.",
        minimum=1,
        maximum=64,
        subject="Batches and memory",
    )
    sharding: str = option(
        AUTO,
        "Cards hold",
        "How several cards hold the base. ddp: each holds all of it (data parallel, DDP). fsdp: each holds a "
        "part of every layer, which is gathered when it computes (fully sharded, FSDP2): for a base that no "
        "card holds, at about 0.7 of the speed (8B, two H200); for LoRA on linear layers, of a base "
        "in few bits too (nf4, int8). auto: ddp where the base takes at most 85 % of a card, else fsdp.",
        choices=SHARDINGS,
        subject="Batches and memory",
    )
    compile: str = option(
        "auto",
        "Compile",
        (
            "Compile the model's layers with torch.compile. auto does so on a GPU when the run is long "
            "enough to gain."
        ),
        choices=("auto", "on", "off"),
        subject="Batches and memory",
    )
    seed: int = option(
        42,
        "Seed",
        "Start of the factors, order of the rows, dropout.",
        minimum=0,
        maximum=2**31 - 1,
        subject="Others",
    )

    @property
    def processes(self) -> int:
        """That train it together, on all machines."""
        return self.devices * self.machines

    @property
    def rows_a_process(self) -> int:
        """Rows, or packed blocks, of a micro-batch that one of these computes; the last may have fewer."""
        return -(-self.micro_batch_size // self.processes)

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
