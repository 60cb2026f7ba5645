"""Runs in the engine process: takes their rows, trains them together, writes what happens back, publishes adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from app.checkpoints import load_checkpoint, save_checkpoint
from app.errors import USER_ERRORS
from app.sources import folder_of
from core.base_model.load import ResidentBase
from core.config import LoraConfig, TrainConfig
from core.data.dataset_file import DatasetFile
from core.data.importing import Summary
from core.data.render import Renderer
from core.data.split import Split
from core.data.tokens import TokenRows, tokenised
from core.data.version import Version, first_version
from core.engine import BaseSource, Engine
from core.errors import WrongBase
from core.events import EvalDone, Notice, Prepared, RunFailed, StepDone, TrainingDone
from core.lora.peft_format import save_adapter
from core.train.group import Event, TrainingGroup
from core.train.run import RunRequest
from storage.blobs import content_size
from storage.names import free_name
from storage.registry import Registry
from storage.tables import FAILED, FINISHED, PAUSED, RUNNING, STOPPED, Adapter, Base, Point, Run

_FLUSH_SECONDS = 0.5  # measurements are written at most this often: each write waits for the disk
_LOOK_SECONDS = 0.1  # between two looks for somebody who asked to stop
_WAIT_SECONDS = 0.1  # at a time for rows that are being rendered, so that chats go on meanwhile

log = logging.getLogger("engine")
Result = TypeVar("Result")


@dataclass
class _Record:
    """One run's row, and the measurements that wait to be written."""

    run: Run
    points: list[Point] = field(default_factory=list)
    over: bool = False
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    step: int = 0
    wants_save: bool = False

    @property
    def id(self) -> int:
        return self.run.id or 0

    @cached_property
    def train(self) -> TrainConfig:
        """How it is to be trained."""
        return TrainConfig.parse(self.run.config["train"])


class RunSession:
    """Runs under way together. advance() does one micro-batch's worth of work."""

    def __init__(self, registry: Registry, engine: Engine, runs: Sequence[Run], cache: Path) -> None:
        """All runs are of one sweep, or there is only one. `cache` holds rendered rows."""
        self._registry, self._engine, self._cache = registry, engine, cache
        self._records = {run.id: _Record(run) for run in runs}
        self._flushed = self._looked = time.monotonic()
        self._stopping: set[int] = set()
        self._pausing: set[int] = set()
        self._group: TrainingGroup | None = None
        self._events = self._train()

    @property
    def run_ids(self) -> list[int]:
        """The runs that have not ended."""
        return [record.id for record in self._records.values() if not record.over]

    def advance(self) -> bool:
        """Go on until the next pause of the training. False when all runs have ended.

        A fault of one run ends that run; what ends all of them is the caller's to record with fail().
        """
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._look_for_requests()
        try:
            next(self._events)
        except StopIteration:
            self.flush()
            return False
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()
        return True

    def fail(self, error: Exception, reason: str) -> None:
        """Record what ended all runs that are left."""
        self.flush()
        for record in self._records.values():
            if not record.over:
                self._fail(record, error, reason)

    def flush(self) -> None:
        """Write the measurements that wait."""
        points = [point for record in self._records.values() for point in record.points]
        if points:
            self._registry.add_points(points)
        for record in self._records.values():
            record.points = []
        self._flushed = time.monotonic()

    def _look_for_requests(self) -> None:
        self._looked = time.monotonic()
        for run in self._registry.requests(self.run_ids):
            run_id = run.id or 0
            self._records[run_id].wants_save |= run.save_requested
            if run_id in self._stopping or not (run.stop_requested or run.pause_requested):
                continue
            if not run.stop_requested:
                self._pausing.add(run_id)
            self._stopping.add(run_id)
            doing = "keeping what is learnt so far" if run.stop_requested else "saving where it stands"
            self._registry.add_note(run_id, f"{'Stop' if run.stop_requested else 'Pause'} asked for; {doing}")
            if self._group is not None:
                self._group.stop(run_id)

    def _train(self) -> Iterator[Event | None]:
        for record in self._records.values():
            record.over = not self._registry.claim_run(record.id)  # it may have been stopped before it started
        requests: list[RunRequest] = []
        for record in [record for record in self._records.values() if not record.over]:
            try:
                requests.append((yield from self._prepare(record)))
            except USER_ERRORS as error:
                self._fail(record, error, str(error))
        if not requests:
            return
        self._group = self._engine.train(self._source(self._records[requests[0].key].run), requests)  # type: ignore[index]
        for run_id in self._stopping:
            self._group.stop(run_id)
        for key, event in self._group.run():
            if key is not None:
                self._record(self._records[key], event)  # type: ignore[index]
            yield event

    def _source(self, run: Run) -> BaseSource:
        base = self._registry.get(Base, run.base_id)
        if base.fingerprint != run.base_fingerprint:
            raise WrongBase(f"{base.name} is no longer the model this run was queued for; start the run again.")
        return BaseSource(base.name, folder_of(base), base.fingerprint, base.stat_key, base.template)

    def _prepare(self, record: _Record) -> Generator[None, None, RunRequest]:
        """Load the base and render the rows, in a thread beside the chats. Its value is the run's request."""
        run, train = record.run, record.train
        rows, version, special_tokens = self._data(run)
        self._registry.add_note(record.id, f"Loading {run.base_name} and reading {len(rows)} rows")
        base: ResidentBase = self._engine.load_base(self._source(run))
        length = min(train.max_length, base.context_length)
        renderer = Renderer(base.tokenizer, special_tokens=special_tokens)
        file = yield from _beside(lambda: tokenised(rows.all_stored(), version.rows, renderer, self._cache))
        found = TokenRows(
            file, length, keep=version.usable(rows), validation=version.validation, over_length=train.over_length
        )  # fmt: skip
        resume = load_checkpoint(self._registry, run, self._engine, base)
        if resume is not None:
            record.step = record.saved_step = resume[1].position.steps
            self._registry.add_note(record.id, f"Going on from the checkpoint at step {record.step}")
        return RunRequest(record.id, found, LoraConfig.parse(run.config["lora"]), train, resume)

    def _data(self, run: Run) -> tuple[DatasetFile, Version, bool]:
        """The rows of the version that the run names, its parts, and whether special tokens in its texts are meant."""
        blobs, digest = self._registry.blobs, self._registry.rows_of(run.dataset_digest)
        folder = blobs.verify(digest)
        rows, summary = DatasetFile(folder), Summary.read(folder)
        if run.dataset_digest == digest:  # stored by an earlier version of the workbench, which split when it trained
            version = first_version(digest, rows, Split())
        else:
            version = Version.read(blobs.verify(run.dataset_digest))
        return rows, version, bool(summary and summary.mapping.get("special_tokens"))

    def _record(self, record: _Record, event: Event) -> None:
        match event:
            case Prepared():
                self._registry.update_run(record.id, state=RUNNING, details=asdict(event))
                self._registry.add_note(
                    record.id,
                    _prepared_sentence(event, len(self.run_ids), record.run.config["train"].get("over_length", "truncate")),
                )
            case Notice():
                self._registry.add_note(record.id, event.text)
            case StepDone():
                record.points.append(_training_point(record.id, event))
                record.step = event.step
                record.wants_save |= self._is_due(record)
            case EvalDone():
                record.points.append(Point(run_id=record.id, step=event.step, validation_loss=event.loss))
            case TrainingDone() if record.id in self._pausing:
                self._pause(record)
            case TrainingDone():
                self.flush()
                if event.stopped:
                    self._save(record)  # it can be taken up again later
                self._publish(record, event)
            case RunFailed():
                self.flush()
                self._fail(record, event.error, str(event.error))

        if record.wants_save and isinstance(event, (StepDone, EvalDone)) and self._told(record):
            self._save(record)

    def _told(self, record: _Record) -> bool:
        """Whether all that belongs to the state at hand has been measured and noted: only then can the run go on from it."""
        return self._group is not None and not record.over and self._group.told(record.id, record.step)

    @staticmethod
    def _is_due(record: _Record) -> bool:
        train = record.train
        by_steps = bool(train.save_steps) and record.step - record.saved_step >= train.save_steps
        by_time = bool(train.save_minutes) and time.monotonic() - record.saved_at >= train.save_minutes * 60
        return by_steps or by_time

    def _save(self, record: _Record) -> None:
        """Write a checkpoint, unless there is nothing new to save."""
        assert self._group is not None
        state = self._group.state(record.id)
        if state is None or state.position.steps == record.saved_step:
            return
        self.flush()  # what was measured up to here must not be missing when the run goes on from here
        row = save_checkpoint(self._registry, record.run, self._engine, self._group.adapter(record.id), state)
        record.saved_step, record.saved_at, record.wants_save = row.step, time.monotonic(), False

    def _pause(self, record: _Record) -> None:
        """Save where the run stands and let go of it."""
        self._save(record)
        self.flush()
        record.over = True
        reason = f"paused after {record.saved_step} steps" if record.saved_step else "paused before the first step"
        self._registry.add_note(record.id, reason.capitalize())
        self._registry.update_run(record.id, state=PAUSED, reason=reason, ended=time.time(), pause_requested=False)

    def _fail(self, record: _Record, error: Exception, reason: str) -> None:
        record.over = True
        log.error("run %s failed", record.id, exc_info=error)
        self._registry.add_note(record.id, f"Failed: {reason}")
        self._registry.update_run(record.id, state=FAILED, reason=reason, ended=time.time())

    def _publish(self, record: _Record, done: TrainingDone) -> None:
        """Store the adapter and end the run. A run stopped before its first step leaves no adapter."""
        record.over = True
        state = STOPPED if done.stopped else FINISHED
        if done.steps == 0:
            self._registry.update_run(record.id, state=state, reason="stopped before the first step", ended=time.time())
            return
        adapter = self._store_adapter(record.run, done)
        reason = f"stopped after {done.steps} steps; the adapter is kept" if done.stopped else ""
        self._registry.add_note(record.id, f"Adapter {adapter.name} stored after {done.steps} steps")
        self._registry.update_run(record.id, state=state, reason=reason, adapter_id=adapter.id, ended=time.time())

    def _store_adapter(self, run: Run, done: TrainingDone) -> Adapter:
        assert self._group is not None  # it has just yielded TrainingDone
        weights = self._group.adapter(run.id)
        with self._registry.blobs.staging() as staging:
            folder = staging / "adapter"
            folder.mkdir()
            save_adapter(folder, weights)
            digest = self._registry.blobs.put(folder)
        return self._registry.add(
            Adapter(
                name=free_name(run.name, self._registry.names(Adapter)), base_name=run.base_name,
                base_fingerprint=run.base_fingerprint, run_id=run.id, dataset_name=run.dataset_name, source="trained",
                rank=weights.rank, alpha=weights.alpha, target_modules=", ".join(weights.target_names),
                parameters=weights.parameter_count, digest=digest,
                size_bytes=content_size(self._registry.blobs.path(digest)), steps=done.steps,
                train_loss=done.train_loss, validation_loss=done.validation_loss, config=run.config,
            )
        )  # fmt: skip


def _beside(work: Callable[[], Result]) -> Generator[None, None, Result]:
    """Do `work` in a thread and pause again and again until it is done. The value is its result."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[Result] = pool.submit(work)
        while True:
            try:
                return future.result(timeout=_WAIT_SECONDS)
            except TimeoutError:
                if future.done():
                    raise  # the work's own
                yield None


def _rows(count: int, one: str, many: str) -> str:
    return f"1 row {one}" if count == 1 else f"{count:,} rows {many}"


def _prepared_sentence(event: Prepared, together: int, over_length: str) -> str:
    parts = [
        f"{event.train_rows} rows to train on, {event.validation_rows} kept for validation, {event.total_steps} steps, "
        f"{event.trainable_parameters:,} trainable parameters, base in {event.dtype}"
    ]
    if event.blocks:
        parts.append(f"packed into {event.blocks} blocks of {event.max_length:,} tokens")
    if together > 1:
        parts.append(f"{together} adapters train at once")
    if event.truncated_rows:
        done = {"truncate": "cut off", "split": "split into several", "drop": "left out"}[over_length]
        parts.append(f"{_rows(event.truncated_rows, 'is', 'are')} longer than {event.max_length:,} tokens and "
                     f"{'was' if event.truncated_rows == 1 else 'were'} {done}")  # fmt: skip
    if event.skipped_rows and over_length != "drop":
        parts.append(f"{_rows(event.skipped_rows, 'has', 'have')} no answer within that length and nothing was trained on there")
    return "; ".join(parts)


def _training_point(run_id: int, event: StepDone) -> Point:
    return Point(
        run_id=run_id, step=event.step, epoch=event.epoch, loss=event.loss, learning_rate=event.learning_rate,
        grad_norm=event.grad_norm, tokens_per_second=event.tokens_per_second, memory_bytes=event.memory_bytes,
        seconds_left=event.seconds_left,
    )  # fmt: skip
