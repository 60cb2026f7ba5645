"""One run in the engine process: takes its row, trains, writes what happens back, publishes the adapter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

from app.sources import folder_of
from core.config import LoraConfig, TrainConfig
from core.data.dataset_file import DatasetFile
from core.engine import BaseSource, Engine
from core.errors import WrongBase
from core.events import EvalDone, Prepared, StepDone, TrainingDone
from core.lora.peft_format import save_adapter
from core.train.trainer import Event, Trainer
from storage.blobs import content_size
from storage.names import free_name
from storage.registry import Registry
from storage.tables import FINISHED, RUNNING, STOPPED, Adapter, Base, Point, Run

_FLUSH_SECONDS = 0.5  # measurements are written at most this often: each write waits for the disk


class RunSession:
    """A run under way. advance() does one micro-batch's worth of work."""

    def __init__(self, registry: Registry, engine: Engine, run: Run) -> None:
        self.run_id, self._run = run.id or 0, run
        self._registry, self._engine = registry, engine
        self._points: list[Point] = []
        self._flushed = time.monotonic()
        self._stopping = False
        self._trainer: Trainer | None = None
        self._events = self._train()

    def advance(self) -> bool:
        """Go on until the next pause of the trainer. False when the run has ended. Errors are the caller's to record."""
        if not self._stopping and self._registry.stop_requested(self.run_id):
            self._stopping = True
            self._registry.add_note(self.run_id, "Stop asked for; keeping what is learnt so far")
            if self._trainer is not None:
                self._trainer.stop()
        event = next(self._events, None)
        if event is not None:
            self._record(event)
        return event is not None

    def flush(self) -> None:
        """Write the measurements that wait."""
        if self._points:
            self._registry.add_points(self._points)
        self._points, self._flushed = [], time.monotonic()

    def _train(self) -> Iterator[Event]:
        if not self._registry.claim_run(self.run_id):
            return  # stopped before it started
        base = self._registry.get(Base, self._run.base_id)
        if base.fingerprint != self._run.base_fingerprint:
            raise WrongBase(f"{base.name} is no longer the model this run was queued for; start the run again.")
        source = BaseSource(base.name, folder_of(base), base.fingerprint, base.stat_key)
        rows = DatasetFile(self._registry.blobs.verify(self._run.dataset_digest))
        lora = LoraConfig.parse(self._run.config["lora"])
        train = TrainConfig.parse(self._run.config["train"])
        self._registry.add_note(self.run_id, f"Loading {base.name} and reading {len(rows)} rows")
        self._trainer = self._engine.train(source, iter(rows), lora, train)
        yield from self._trainer.run()

    def _record(self, event: Event) -> None:
        match event:
            case Prepared():
                self._registry.update_run(self.run_id, state=RUNNING, details=asdict(event))
                self._registry.add_note(self.run_id, _prepared_sentence(event))
            case StepDone():
                self._points.append(_training_point(self.run_id, event))
            case EvalDone():
                self._points.append(Point(run_id=self.run_id, step=event.step, validation_loss=event.loss))
            case TrainingDone():
                self.flush()
                self._publish(event)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def _publish(self, done: TrainingDone) -> None:
        """Store the adapter and end the run. A run stopped before its first step leaves no adapter."""
        state = STOPPED if done.stopped else FINISHED
        if done.steps == 0:
            self._registry.update_run(self.run_id, state=state, reason="stopped before the first step", ended=time.time())
            return
        adapter = self._store_adapter(done)
        reason = f"stopped after {done.steps} steps; the adapter is kept" if done.stopped else ""
        self._registry.add_note(self.run_id, f"Adapter {adapter.name} stored after {done.steps} steps")
        self._registry.update_run(self.run_id, state=state, reason=reason, adapter_id=adapter.id, ended=time.time())

    def _store_adapter(self, done: TrainingDone) -> Adapter:
        assert self._trainer is not None  # it has just yielded TrainingDone
        weights, run = self._trainer.adapter(), self._run
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


def _prepared_sentence(event: Prepared) -> str:
    parts = [
        f"{event.train_rows} rows to train on, {event.validation_rows} kept for validation, {event.total_steps} steps, "
        f"{event.trainable_parameters:,} trainable parameters, base in {event.dtype}"
    ]
    if event.truncated_rows:
        parts.append(f"{event.truncated_rows} rows are longer than {event.max_length:,} tokens and were cut")
    if event.skipped_rows:
        parts.append(f"{event.skipped_rows} rows have no answer within that length and were skipped")
    return "; ".join(parts)


def _training_point(run_id: int, event: StepDone) -> Point:
    return Point(
        run_id=run_id, step=event.step, epoch=event.epoch, loss=event.loss, learning_rate=event.learning_rate,
        grad_norm=event.grad_norm, tokens_per_second=event.tokens_per_second, memory_bytes=event.memory_bytes,
        seconds_left=event.seconds_left,
    )  # fmt: skip
