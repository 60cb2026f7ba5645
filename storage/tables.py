"""Every table of the registry. Plain data: validation happens before rows are made.

Times are seconds since 1970 in UTC. JSON columns hold what core describes; storage does not look into them.
Paths in the home folder are stored relative to it, see paths.py.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from storage.paths import HomeJSON, HomePath

QUEUED, PREPARING, RUNNING = "queued", "preparing", "running"
PAUSING, PAUSED, FINISHED, STOPPED = "pausing", "paused", "finished", "stopped"
FAILED, INTERRUPTED = "failed", "interrupted"
UNDER_WAY = (PREPARING, RUNNING, PAUSING)
ACTIVE_STATES = (QUEUED, *UNDER_WAY)
IDLE_STATES = (QUEUED, PAUSED, INTERRUPTED)
"""Of runs that nothing works on and that are not over: they are stopped at once."""
RESUMABLE_STATES = (PAUSED, INTERRUPTED, STOPPED, FAILED)

PASSED, NOT_PASSED, NOT_CHECKABLE = "passed", "failed", "not checkable"  # verdicts on an export

LOG, STATE, ALERT, CHANGE = "log", "state", "alert", "change"  # kinds of a run's notes
RANKS = "ranks"  # and one that is no line of its log: the rank of each layer at a step, as JSON


def _count() -> Any:
    return Field(default=0, sa_column_kwargs={"server_default": "0"})


def _json() -> Any:
    return Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


def _added_json() -> Any:
    return Field(default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}"))


def _json_with_paths() -> Any:
    return Field(default_factory=dict, sa_column=Column(HomeJSON, nullable=False))


def _path() -> Any:
    return Field(sa_column=Column(HomePath, nullable=False))


class Base(SQLModel, table=True):
    """A base model: what it is, where it lies, and its exact identity."""

    __tablename__ = "base"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    fingerprint: str = Field(index=True)
    stat_key: str
    tokenizer_hash: str
    template_hash: str
    architecture: str
    parameters: int
    dtype: str
    context_length: int
    layers: int
    hidden_size: int
    vocab_size: int
    has_chat_template: bool
    size_bytes: int
    licence: str = ""
    source: str
    origin: str
    folder: str = _path()
    owned: bool
    layer_shapes: dict[str, Any] = _json()
    head: str | None = None
    template: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """Name of the known chat template chosen for a base that has none of its own; empty for the plain one."""
    merged: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    """For a merged model: base_fingerprint, base_name,
    adapter_digest and adapter_name of what went into it.
    """
    files: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    """SHA-256 of each file when it was added, of weights only of their headers; empty where nobody recorded
    them.
    """
    way: str = Field(default="quick", sa_column_kwargs={"server_default": "quick"})
    """How it is computed: quick or general; empty where it writes no text."""
    created: float = Field(default_factory=time.time)


class BaseManifest(SQLModel, table=True):
    """What a fingerprint was taken over, tensor by tensor.

    Outlives its base, to say what an adapter was made for.
    """

    __tablename__ = "base_manifest"

    fingerprint: str = Field(primary_key=True)
    name: str
    tensors: list[Any] = Field(sa_column=Column(JSON, nullable=False))
    architecture: dict[str, Any] = _json()


class DecidedWay(SQLModel, table=True):
    """On which way bases of a configuration are computed. Core says what decides it, and reads it."""

    __tablename__ = "decided_way"

    key: str = Field(primary_key=True)
    """SHA-256 over what decides it."""
    deciding: dict[str, Any] = _json()
    way: dict[str, Any] = _json()
    created: float = Field(default_factory=time.time)


class Dataset(SQLModel, table=True):
    """A data set as it is now: its newest version. `digest` is that version's, `rows_digest` that of the rows
    it is made of.

    Where both are equal an earlier workbench stored it, and the rows are split when they are trained on.
    """

    __tablename__ = "dataset"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    format: str
    reason: str
    rows: int
    digest: str
    size_bytes: int
    source_name: str
    preview: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    version: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    rows_digest: str = Field(default="", sa_column_kwargs={"server_default": ""})
    validation_rows: int = _count()
    excluded_rows: int = _count()
    faulty_rows: int = _count()
    """Rows with an error that have not been left out; training refuses while there are any."""
    warnings: int = _count()
    mapping: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    created: float = Field(default_factory=time.time)


class DatasetVersion(SQLModel, table=True):
    """One version of a data set: what was changed, and the digest that runs name."""

    __tablename__ = "dataset_version"
    __table_args__ = (UniqueConstraint("dataset_id", "number"),)

    id: int | None = Field(default=None, primary_key=True)
    dataset_id: int = Field(
        sa_column=Column(Integer, ForeignKey("dataset.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    number: int
    parent: int | None = None
    """Number of the version it was made from."""
    digest: str
    rows_digest: str
    change: str
    """What was done, in a sentence."""
    rows: int
    validation_rows: int = _count()
    excluded_rows: int = _count()
    faulty_rows: int = _count()
    created: float = Field(default_factory=time.time)


class Run(SQLModel, table=True):
    """A training run, with a frozen copy of everything it was started with."""

    __tablename__ = "run"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    base_id: int
    base_name: str
    base_fingerprint: str
    dataset_id: int
    dataset_name: str
    dataset_digest: str
    dataset_version: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    config: dict[str, Any] = _json()
    chat: dict[str, Any] = _added_json()
    """How its conversations are fitted to the chat template; empty where nobody recorded it."""
    state: str = Field(default=QUEUED, index=True)
    reason: str = ""
    stop_requested: bool = False
    pause_requested: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    save_requested: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    sample_requested: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    change_requested: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    """Whether `changes` holds some that the engine has not seen."""
    changes: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]")
    )
    """What was changed while it was running, in order; `step` is missing until the engine has taken a change
    over.
    """
    position: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    """Its place in the queue: the lowest comes first."""
    together: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    """Whether it may train at once with other waiting runs that allow it."""
    bytes_needed: int = _count()
    """Free space on the disk that it waits for; 0 if it does not."""
    energy_joules: float | None = None
    """What it has cost, where the accelerator reports it."""
    sweep: str = Field(default="", index=True, sa_column_kwargs={"server_default": ""})
    """Shared by the runs that were started together and train together; empty for a run by itself."""
    details: dict[str, Any] = _json()
    adapter_id: int | None = None
    created: float = Field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None

    @property
    def active(self) -> bool:
        """Whether the run is waiting or under way."""
        return self.state in ACTIVE_STATES

    @property
    def kilowatt_hours(self) -> float | None:
        """What it has cost, where the accelerator reports it."""
        return self.energy_joules / 3.6e6 if self.energy_joules else None


class Point(SQLModel, table=True):
    """One measurement of a run: a training step, or an evaluation (validation_loss set, loss empty)."""

    __tablename__ = "point"
    __table_args__ = (
        Index("ix_point_run_id_id", "run_id", "id"),
        Index(
            "ix_point_evaluations",
            "run_id",
            "validation_loss",
            sqlite_where=text("validation_loss IS NOT NULL"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(sa_column=Column(Integer, ForeignKey("run.id", ondelete="CASCADE"), nullable=False))
    step: int
    epoch: float | None = None
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds_left: float | None = None
    tokens: int | None = None
    """Input tokens since the run's first step."""
    seconds: float | None = None
    """Time spent training since the run's first step; pauses do not count."""
    metrics: dict[str, float] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    """What the run's objective names beside the loss; None where it names nothing."""
    at: float = Field(default_factory=time.time)


class Sample(SQLModel, table=True):
    """What a run answered to one of its sample prompts at a step."""

    __tablename__ = "sample"

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(
        sa_column=Column(Integer, ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    step: int
    prompt: str
    text: str
    at: float = Field(default_factory=time.time)


class LabelTable(SQLModel, table=True):
    """What an evaluation of a run that classifies has found, label by label."""

    __tablename__ = "label_table"

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(
        sa_column=Column(Integer, ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    step: int
    content: dict[str, Any] = _json()
    at: float = Field(default_factory=time.time)


class Checkpoint(SQLModel, table=True):
    """A state that a run can go on from: the factors as an adapter,
    and the rest of the state, each a blob.
    """

    __tablename__ = "checkpoint"

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(
        sa_column=Column(Integer, ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    step: int
    adapter_digest: str
    state_digest: str
    train_loss: float | None = None
    validation_loss: float | None = None
    size_bytes: int
    seconds: float
    """That it took to write."""
    about: dict[str, Any] = _json()
    """What the run must find again to be the same run: tokenizer, template, versions, device."""
    created: float = Field(default_factory=time.time)


class Note(SQLModel, table=True):
    """One line of a run's log. A kind tells its states, alerts and changes from what else it says."""

    __tablename__ = "note"

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(
        sa_column=Column(Integer, ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    text: str
    kind: str = Field(default=LOG, sa_column_kwargs={"server_default": "log"})
    at: float = Field(default_factory=time.time)


class Adapter(SQLModel, table=True):
    """An adapter and the exact base it belongs to."""

    __tablename__ = "adapter"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    base_name: str
    base_fingerprint: str = Field(index=True)
    run_id: int | None = None
    dataset_name: str = ""
    source: str
    rank: int
    alpha: float
    target_modules: str
    parameters: int
    digest: str
    size_bytes: int
    steps: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    config: dict[str, Any] = _json()
    chat: dict[str, Any] = _added_json()
    """How the conversations that it learnt were fitted to the chat template; empty where nobody knows."""
    tokenizer_hash: str = Field(default="", sa_column_kwargs={"server_default": ""})
    template_hash: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """Of the base as it was then, its chosen chat template counted; empty where nobody recorded them."""
    parents: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]")
    )
    """What it was made of, if not by training: name, digest and weight of each adapter."""
    starred: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    tags: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """Words with a comma between them."""
    note: str = Field(default="", sa_column_kwargs={"server_default": ""})
    deleted: float | None = Field(default=None, index=True)
    """When it was deleted; it can be brought back until it is swept away."""
    changed: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    """When its name, star, tags or note were last changed, or it was deleted or brought back."""
    created: float = Field(default_factory=time.time)

    @property
    def rank_in_words(self) -> str:
        """Whole weights, as of full fine-tuning, have none."""
        return f"rank {self.rank}" if self.rank else "whole weights"


class Job(SQLModel, table=True):
    """Work that is neither training nor chat: adding a model, importing an adapter, exporting."""

    __tablename__ = "job"

    id: int | None = Field(default=None, primary_key=True)
    kind: str
    title: str
    arguments: dict[str, Any] = _json_with_paths()
    state: str = Field(default=QUEUED, index=True)
    message: str = ""
    fraction: float | None = None
    result: dict[str, Any] = _json_with_paths()
    created: float = Field(default_factory=time.time)
    ended: float | None = None

    @property
    def active(self) -> bool:
        """Whether the job is waiting or under way."""
        return self.state in ACTIVE_STATES


class Export(SQLModel, table=True):
    """What left the house, and the result of its check."""

    __tablename__ = "export"

    id: int | None = Field(default=None, primary_key=True)
    adapter_name: str
    adapter_digest: str
    base_name: str
    folder: str = _path()
    size_bytes: int
    passed: bool
    sentence: str
    check: dict[str, Any] = _json()
    format: str = Field(default="safetensors", sa_column_kwargs={"server_default": "safetensors"})
    verdict: str = Field(default=PASSED, sa_column_kwargs={"server_default": "passed"})
    """passed, failed, or not checkable."""
    files: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    """SHA-256 of each file as it was written; empty where nobody recorded them."""
    created: float = Field(default_factory=time.time)


class Chat(SQLModel, table=True):
    """A conversation in the playground, held with the base and with adapters side by side."""

    __tablename__ = "chat"

    id: int | None = Field(default=None, primary_key=True)
    base_name: str
    title: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """Empty: its first question stands for it."""
    system: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """What the system turn before the first question says; empty for none."""
    raw: bool = Field(default=False, sa_column_kwargs={"server_default": text("0")})
    """Whether text is gone on with, without a chat template and without what was said before."""
    created: float = Field(default_factory=time.time)
    changed: float = Field(default_factory=time.time, sa_column_kwargs={"server_default": text("0")})


class ChatMessage(SQLModel, table=True):
    """One message: the user's (speaker empty), or an answer of an adapter or of the plain base.

    An answer is stored as it grows; `finish` is empty as long as it does.
    """

    __tablename__ = "chat_message"

    id: int | None = Field(default=None, primary_key=True)
    chat_id: int = Field(
        sa_column=Column(Integer, ForeignKey("chat.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    speaker: str = ""
    role: str
    content: str
    finish: str = ""
    adopted: str | None = None
    """Of a question: the speaker from whose answer all go on; None: each from its own."""
    details: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    """Of an answer: its settings and figures, and which weights have given it."""
    created: float = Field(default_factory=time.time)


class Ballot(SQLModel, table=True):
    """One prompt, what several answered to it in the order it was shown, and what was voted.

    It holds copies of all that it tells of, so it outlives adapters and bases.
    """

    __tablename__ = "ballot"

    id: int | None = Field(default=None, primary_key=True)
    base_name: str
    base_fingerprint: str = Field(index=True)
    messages: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """What was asked: the turns before the answers."""
    columns: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """In the order shown: speaker (empty for the plain base), digest of its weights where it is known, text,
    and finish, which is empty while the answer is being written.
    """
    settings: dict[str, Any] = _json()
    """How the answers were sampled."""
    blind: bool = True
    """Whether the names were hidden until the vote."""
    verdict: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """best, tie or all bad; empty until somebody has voted."""
    best: int | None = None
    """The number of the best column, from 0, for the verdict best."""
    error: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """Why the answers are not whole."""
    prompt_run_id: int | None = Field(default=None, index=True)
    """The prompts that were run, if the answers were taken from there."""
    prompt: int | None = None
    """The number of the prompt among those, from 0."""
    created: float = Field(default_factory=time.time)
    voted: float | None = None


class PromptSet(SQLModel, table=True):
    """A saved list of prompts."""

    __tablename__ = "prompt_set"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    prompts: list[Any] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """Each the turns that are to be answered."""
    changed: float = Field(default_factory=time.time)
    created: float = Field(default_factory=time.time)


class PromptRun(SQLModel, table=True):
    """Prompts of a set that were put to several speakers of a base, as they were then."""

    __tablename__ = "prompt_run"

    id: int | None = Field(default=None, primary_key=True)
    set_name: str
    prompts: list[Any] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    base_name: str
    base_fingerprint: str
    columns: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """speaker (empty for the plain base), and digest of its weights where it is known."""
    settings: dict[str, Any] = _json()
    created: float = Field(default_factory=time.time)


class PromptAnswer(SQLModel, table=True):
    """What one speaker answered to one prompt of those that were run."""

    __tablename__ = "prompt_answer"
    __table_args__ = (UniqueConstraint("run_id", "prompt", "speaker"),)

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(
        sa_column=Column(Integer, ForeignKey("prompt_run.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    prompt: int
    """Its number, from 0."""
    speaker: int
    """The number of the column, from 0."""
    text: str
    finish: str
    """Why it ended; refused for a prompt that could not be answered, whose reason is the text."""
    created: float = Field(default_factory=time.time)
