"""What long work reports while it goes on. Plain values only, so an event can cross a socket as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNANSWERED = "error"
"""Why a row ended that was not answered."""


@dataclass(frozen=True)
class Prepared:
    """Training is ready to start."""

    train_rows: int
    validation_rows: int
    truncated_rows: int
    skipped_rows: int
    total_steps: int
    trainable_parameters: int
    max_length: int
    """The configured length, or the model's context where that is shorter."""
    dtype: str
    train_sequences: int = 0
    """Sequences that the rows to train on become; 0 where each is one."""
    quantisation: str = "none"
    """How the base's linear layers are held."""
    blocks: int = 0
    """Blocks that the training rows were packed into; 0 if they are not packed."""
    start_change: float | None = None
    """The most that a fresh adapter adds to any layer's output, tried on the device: 0 where ΔW is exactly 0.
    None where the run goes on from a checkpoint.
    """


@dataclass(frozen=True)
class Notice:
    """Something about how the work is done that its owner should know: compiling, falling back, saving
    memory.
    """

    text: str


@dataclass(frozen=True)
class MicroBatchDone:
    """One forward and backward pass is done; the engine may do something else before the next."""


@dataclass(frozen=True)
class StepDone:
    """One optimiser step."""

    step: int
    epoch: float
    loss: float
    """The objective's mean over the step, in nats: for supervised fine-tuning the cross-entropy of a trained
    token.
    """
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Input tokens of the step, padding not counted."""
    tokens_per_second: float
    memory_bytes: int
    """Peak accelerator memory so far, or the process's resident memory on a CPU."""
    seconds_left: float
    total_tokens: int
    """Input tokens since the run's first step."""
    total_seconds: float
    """Time spent on the run's steps so far."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the step that the objective names beside the loss."""


@dataclass(frozen=True)
class RanksDone:
    """The rank of each layer of a run whose kind changes them while it learns."""

    step: int
    ranks: Mapping[str, int]
    """By module path."""


@dataclass(frozen=True)
class EvalDone:
    """One pass over the validation rows."""

    step: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over these rows that the objective names beside the loss."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """Of a classifier: its table by label and its confusions, see core/train/label_report.py."""


@dataclass(frozen=True)
class TrainingDone:
    """The last event of a training."""

    steps: int
    stopped: bool
    train_loss: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class RunFailed:
    """One run of a group cannot go on; the others do."""

    error: Exception


@dataclass(frozen=True)
class TokenDone:
    """One row of a generation has grown."""

    row: int
    text: str
    """What to append to the row's text."""
    finished: bool
    reason: str = ""
    """Why the row ended: end (an end token) or length (max_tokens reached); UNANSWERED for one that was not
    answered.
    """
    tokens: int = 0
    """Generated so far, in this row."""
    prompt_tokens: int = 0
    """That the row started from."""
    seconds_to_first: float = 0.0
    """From the request's coming to the engine to the row's first token."""
    tokens_per_second: float = 0.0
    """Of the tokens after the first; 0 while there is no second."""
    logprobs: Sequence[tuple[str, float, list[int] | None]] | None = None
    """Where they were asked for: the token and then the likeliest in its place, each with its text, ln p by
    the raw logits, before any sampling setting, and its bytes where they are known.
    """
    weights: Mapping[str, Any] | None = None
    """Which weights answer, told with a row's first token and with its last: `base` (the fingerprint),
    `base_name`, and `parts`, for each adapter its `name`, `digest` and `weight`; none of the plain base.
    """
    error: str = ""
    """What kept the row from being answered, in a sentence."""


@dataclass(frozen=True)
class Progress:
    """A job's position, for a progress bar. fraction is None where the end is not known."""

    message: str
    fraction: float | None = None
