"""Runs in the engine process: takes their rows, trains them together, writes what happens back, publishes
adapters.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TypeVar

from app.engine.checkpoints import checkpoint_bytes, save_checkpoint
from app.engine.faults import reason
from app.engine.preparing import base_source, prepare, way_of
from app.engine.record import RunRecord, other_numbers_sentence, prepared_sentence
from app.engine.sample_prompts import sample_answers
from app.engine.several_cards import SeveralCards
from app.shared.disk import bytes_to_go_on, free_bytes, insist, is_full
from app.shared.errors import USER_ERRORS
from app.shared.publishing import keep_adapter
from app.shared.run_data import chat_of
from app.shared.run_rows import cards_of, held_for
from app.shared.settings import Settings
from core.engine import Engine
from core.errors import CannotShare, WorkerLost
from core.events import EvalDone, Notice, Prepared, RanksDone, RunFailed, StepDone, TrainingDone
from core.files.publish import SPARE_BYTES
from core.lora.peft.files import save_checked
from core.train.alerts import Alert
from core.train.group import Event, TrainingGroup
from core.train.hardware import EnergyMeter, operations_a_token
from core.train.memory import memory_figures, ran_out_of_memory
from core.train.run import RunRequest
from storage.checkpoints import best_checkpoint
from storage.names import free_name
from storage.registry import Registry
from storage.tables import ALERT, CHANGE, LOG, Adapter, LabelTable, Run, Sample

_FLUSH_SECONDS = 0.5  # measurements are written at most this often: each write waits for the disk
_LOOK_SECONDS = 0.1  # between two looks for what somebody asks of a run

log = logging.getLogger("engine")
Result = TypeVar("Result")


class RunSession:
    """Runs under way together. advance() does one micro-batch's worth of work."""

    def __init__(self, registry: Registry, engine: Engine, runs: Sequence[Run], settings: Settings) -> None:
        """Of the home folder with these settings."""
        self._registry, self._engine, self._settings = registry, engine, settings
        self._records = {run.id: RunRecord(run, energy=run.energy_joules) for run in runs}
        self._flushed = self._looked = time.monotonic()
        self._stopping: set[int] = set()
        self._pausing: set[int] = set()
        self._group: TrainingGroup | None = None
        self._meter: EnergyMeter | None = None
        self._cards = SeveralCards(settings, engine, self._say_to_all)
        self.waiting_for_space = False
        """Whether the registry cannot be written, since the disk is full."""
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

    def fail(self, error: Exception) -> None:
        """Record what ended all runs that are left.

        For want of memory, or of another process that trained with this one, they are interrupted and can go
        on later.
        """
        error = self.explained(error)
        why = reason(error)
        self._cards.close(why)
        self.flush()
        log.error("the runs %s cannot go on", self.run_ids, exc_info=error)
        if ran_out_of_memory(error):
            why = f"{why} ({memory_figures(self._engine.device)})"
        active = {run.id for run in self._registry.runs.active()}  # others were stopped before they began
        for record in self._records.values():
            if not record.over and record.id in active:
                self._fail(record, error, why)

    def flush(self) -> None:
        """Write the measurements that wait, and what was used of energy."""
        self._share_energy()
        points = [point for record in self._records.values() for point in record.points]
        if points:
            energy = {
                record.id: record.energy for record in self._records.values() if record.energy is not None
            }
            self._write(self._registry.measurements.add_points, points, energy)
        for record in self._records.values():
            record.points = []
        self._flushed = time.monotonic()

    def _write(self, write: Callable[..., Result], *arguments: object, **values: object) -> Result:
        def waiting(so: bool) -> None:
            self.waiting_for_space = so

        return insist(functools.partial(write, *arguments, **values), waiting)

    def _say(self, record: RunRecord, text: str, kind: str = LOG) -> None:
        self._write(self._registry.measurements.add_note, record.id, text, kind)

    def _say_to_all(self, text: str) -> None:
        for record in self._records.values():
            if not record.over:
                self._say(record, text)

    def _share_energy(self) -> None:
        """What the device has used is shared by the runs under way."""
        used, sharing = (
            self._meter.used() if self._meter else None,
            [one for one in self._records.values() if not one.over],
        )
        for record in sharing if used is not None else []:
            record.energy = (record.energy or 0.0) + (used or 0.0) / len(sharing)

    # What people ask for.

    def _look_for_requests(self) -> None:
        self._looked = time.monotonic()
        for run in self._registry.requests.open(self.run_ids):
            record = self._records[run.id]
            record.wants_save |= run.save_requested
            record.wants_sample |= run.sample_requested
            if run.change_requested:
                self._change(record, run)
            if record.id not in self._stopping and (run.stop_requested or run.pause_requested):
                self._end_early(record, pause=not run.stop_requested)

    def _end_early(self, record: RunRecord, *, pause: bool) -> None:
        """Have a run stop after the micro-batch at hand: to pause it, or to keep what it has learnt."""
        if pause:
            self._pausing.add(record.id)
        self._stopping.add(record.id)
        if not record.stopped_by:
            doing = "saving where it stands" if pause else "keeping what is learnt so far"
            self._say(record, f"{'Pause' if pause else 'Stop'} asked for; {doing}")
        if self._group is not None:
            self._group.stop(record.id)

    def _change(self, record: RunRecord, run: Run) -> None:
        """Take over the changes that are new, once the run is training."""
        if self._group is None or record.id not in {one.key for one in self._group.runs}:
            return
        taken = {}
        for place, one in enumerate(run.changes):
            if one.get("step") is None:
                change = self._group.change(record.id, **one["values"])
                taken[place] = change.step
                said = ", ".join(f"{name} {value:g}" for name, value in change.values.items())
                self._say(record, f"From step {change.step + 1} on: {said}", CHANGE)
        record.total_steps = next(one.total_steps for one in self._group.runs if one.key == record.id)
        self._write(self._registry.requests.settle_changes, record.id, taken, record.total_steps)

    # The training.

    def _train(self) -> Iterator[Event | None]:
        for record in self._records.values():
            record.over = not self._write(
                self._registry.queue.claim, record.id
            )  # it may have been stopped before it started
        self._leave_those_held_otherwise()
        left = [record for record in self._records.values() if not record.over]
        if not left:
            return
        source = yield from self._cards.begin(
            base_source(self._registry, left[0].run), left[0].options, way_of(self._registry, left[0].run)
        )
        requests: list[RunRequest] = []
        for record in [record for record in self._records.values() if not record.over]:
            try:
                say = functools.partial(self._say, record)
                request = yield from prepare(
                    self._registry,
                    self._engine,
                    record.run,
                    record.options,
                    self._settings.cache,
                    say,
                    parts=source.parts,
                )
                if request.resume is not None:
                    record.step = record.saved_step = request.resume[1].position.steps
                    record.catch_up(self._registry.measurements.points(record.id))
                requests.append(request)
            except USER_ERRORS as error:
                self._fail(record, error, str(error))
        if not requests:
            return
        first = self._records[requests[0].key]  # type: ignore[index]
        for _ in self._cards.join(source, first.train):
            if self._stopping.issuperset(self.run_ids):
                self._leave_unbegun()
                return
            yield None
        self._cards.hand_out(requests)
        self._group = self._engine.train(source, requests, self._cards.share)
        self._meter = EnergyMeter(self._engine.device)
        for run_id in self._stopping:
            self._group.stop(run_id)
        for key, event in self._group.run():
            self._cards.require()  # else what was computed without them would be kept
            record = self._records[key] if key is not None else first  # type: ignore[index]
            if key is not None:
                self._record(record, event)
            yield event
            if isinstance(event, (StepDone, EvalDone)) and self._told(record):
                yield from self._sample(record)
                if record.wants_save:
                    self._save(record)

    def _leave_unbegun(self) -> None:
        """Let go of runs that were to end while others were waited for."""
        for record in self._records.values():
            if not record.over:
                record.over = True
                ended = (
                    self._registry.runs.paused if record.id in self._pausing else self._registry.runs.stopped
                )
                self._write(ended, record.id, record.stood_at)

    def explained(self, error: Exception) -> Exception:
        """The error in words of what other processes that train have to do with it."""
        return self._cards.explained(error)

    def close(self) -> None:
        """Let go of the other processes, once all runs have ended."""
        self._cards.close(in_order=self._group is not None and self._group.finished)

    def _leave_those_held_otherwise(self) -> None:
        """Runs for which the base is held otherwise in memory than for the first of them have to wait."""
        left = [record for record in self._records.values() if not record.over]
        for record in left[1:]:
            if _needs(record.run) != _needs(left[0].run):
                record.over = True
                why = (
                    "waits for its own turn: the base is held otherwise for it, or on another number of cards"
                )
                self._write(self._registry.queue.put_back, record.id, why)

    def _record(self, record: RunRecord, event: Event) -> None:
        match event:
            case Prepared():
                self._begin(record, event)
            case Notice():
                self._say(record, event.text)
            case StepDone():
                self._act_on(record, record.step_done(event))
            case RanksDone():
                ranks = dict(event.ranks)
                self._write(self._registry.measurements.add_ranks, record.id, event.step, ranks)
            case EvalDone():
                if event.report:
                    table = LabelTable(run_id=record.id, step=event.step, content=dict(event.report))
                    self._write(self._registry.measurements.add_label_table, table)
                self._act_on(record, record.evaluated(event))
            case TrainingDone() if record.over:
                pass  # it was let go of already, for want of space
            case TrainingDone() if record.id in self._pausing:
                self._pause(record)
            case TrainingDone():
                self._finish(record, event)
            case RunFailed():
                self.flush()
                if isinstance(event.error, CannotShare):
                    record.over = True
                    self._write(
                        self._registry.queue.put_back,
                        record.id,
                        "waits for its own turn: " + str(event.error),
                    )
                else:
                    self._fail(record, event.error, str(event.error))

    def _begin(self, record: RunRecord, event: Prepared) -> None:
        assert self._engine.base is not None
        details = asdict(event) | {
            "operations_a_token": operations_a_token(self._engine.base),
            "operations_a_second": self._engine.operations_a_second,
        }
        record.total_steps, record.validates = event.total_steps, event.validation_rows > 0
        self._write(self._registry.runs.begin, record.id, details)
        self._say(record, prepared_sentence(event, len(self.run_ids), record.train.over_length))
        if said := other_numbers_sentence(record.run.details.get("dtype"), event):
            self._say(record, said, ALERT)

    def _act_on(self, record: RunRecord, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self._say(record, alert.text, ALERT)
            if alert.kind in record.train.stopping_alerts and record.id not in self._stopping:
                record.stopped_by = f"{alert.kind}: {alert.text}"
                self._end_early(record, pause=False)

    def _told(self, record: RunRecord) -> bool:
        """Whether all that belongs to the state at hand has been measured and noted: only then may it be
        saved or asked.
        """
        wanted = record.wants_save or (record.wants_sample and record.train.prompts)
        return (
            bool(wanted)
            and self._group is not None
            and not record.over
            and self._group.told(record.id, record.step)
        )

    def _sample(self, record: RunRecord) -> Iterator[None]:
        """Have the run as it is now answer its sample prompts, while chats go on."""
        if not (record.wants_sample and record.train.prompts) or self._group is None:
            return
        record.wants_sample = False
        self._say(record, f"Answering the sample prompts at step {record.step}")
        answers = sample_answers(
            self._engine,
            base_source(self._registry, record.run),
            self._group.adapter(record.id),
            f"{record.run.name} at step {record.step}",
            record.train,
            chat_of(self._registry, record.run),
        )
        while True:
            try:
                next(answers)
            except StopIteration as end:
                texts = end.value
                break
            if record.id in self._stopping:
                answers.close()
                return
            yield None
        for prompt, text in zip(record.train.prompts, texts, strict=True):
            self._write(
                self._registry.measurements.add_sample,
                Sample(run_id=record.id, step=record.step, prompt=prompt, text=text),
            )
        record.wants_sample = False  # the wish was still in the row, and seen again, while it was answered

    # Saving, and the end.

    def _save(self, record: RunRecord) -> None:
        """Write a checkpoint, unless there is nothing new to save.

        A full disk pauses the run, which has the one before.
        """
        assert self._group is not None
        record.wants_save = False
        state = self._group.state(record.id)
        if state is None or state.position.steps == record.saved_step:
            self._write(self._registry.requests.settle_save, record.id)
            return
        self.flush()  # what was measured up to here must not be missing when the run goes on from here
        adapter = self._group.adapter(record.id)
        try:
            row = save_checkpoint(self._registry, record.run, self._engine, adapter, state)
        except Exception as error:
            if is_full(error):
                self._wait_for_space(record, checkpoint_bytes(adapter, state))
            elif isinstance(error, OSError):
                record.saved_at = time.monotonic()  # the next one is tried when it is due
                kept = (
                    f"the one at step {record.saved_step} is untouched"
                    if record.saved_step
                    else "there is none yet"
                )
                self._say(
                    record,
                    f"The checkpoint at step {state.position.steps} could not be written: {error}; {kept}",
                    ALERT,
                )
                self._write(self._registry.requests.settle_save, record.id)
            else:
                raise
        else:
            record.saved_step, record.saved_at = row.step, time.monotonic()

    def _wait_for_space(self, record: RunRecord, needed: int) -> None:
        """Let go of a run until there is space for what it has to write."""
        self.flush()
        record.over = True
        if self._group is not None:
            self._group.stop(record.id)
        lost = f"goes on from step {record.saved_step}" if record.saved_step else "starts anew"
        folder = self._registry.blobs.folder
        reason = (
            f"the disk is full: {needed / 1e6:,.1f} MB are needed in {folder} beside "
            f"{SPARE_BYTES / 1e6:,.1f} MB that stay free for the registry, "
            f"{free_bytes(folder) / 1e6:,.1f} MB are free; "
            f"it {lost} by itself once {bytes_to_go_on(needed) / 1e6:,.1f} MB are free"
        )
        self._write(self._registry.runs.needs_space, record.id, reason, needed)

    def _pause(self, record: RunRecord) -> None:
        """Save where the run stands and let go of it."""
        self._save(record)
        if record.over:
            return
        self.flush()
        record.over = True
        self._write(self._registry.runs.paused, record.id, record.stood_at)

    def _fail(self, record: RunRecord, error: Exception, reason: str) -> None:
        record.over = True
        log.error("run %s failed", record.id, exc_info=error)
        goes_on = ran_out_of_memory(error) or isinstance(error, WorkerLost)
        ended = self._registry.runs.interrupted if goes_on else self._registry.runs.failed
        self._write(ended, record.id, reason)

    def _finish(self, record: RunRecord, done: TrainingDone) -> None:
        """Store the adapter and end the run. A run stopped before its first step leaves no adapter."""
        self.flush()
        ended = self._registry.runs.stopped if done.stopped else self._registry.runs.finished
        if done.steps == 0:
            record.over = True
            self._write(ended, record.id, "before the first step")
            return
        if done.stopped:
            self._save(record)  # it can be taken up again later
        if record.over:
            return
        try:
            keep = self._stored(record, done)
        except OSError as error:
            if not is_full(error):
                raise
            assert self._group is not None
            self._wait_for_space(record, checkpoint_bytes(self._group.adapter(record.id), None))
            return
        record.over = True
        reason = record.stopped_by or (
            f"after {done.steps} steps; the adapter is kept" if done.stopped else ""
        )

        def end() -> None:
            """Register the adapter and end the run: both, or neither if the process is killed now."""
            with self._registry.database.together():
                adapter = keep()
                text = f"Adapter {adapter.name} stored, as of step {adapter.steps}"
                self._registry.measurements.add_note(record.id, text, LOG)
                ended(record.id, reason, adapter.id)

        self._write(end)

    def _stored(self, record: RunRecord, done: TrainingDone) -> Callable[[], Adapter]:
        """Store the files of what the run has learnt: its last state, or its best where that is asked for.
        Returns what registers them.
        """
        assert self._group is not None  # it has just yielded TrainingDone
        registry, run = self._registry, self._registry.get(Run, record.id)
        best = best_checkpoint(registry.checkpoints.of(record.id)) if record.train.keep_best else None
        name = free_name(run.name, registry.names(Adapter))
        at_end = math.inf if done.validation_loss is None else done.validation_loss
        if best is not None and not at_end <= (best.validation_loss or 0.0):  # so that NaN is no best either
            return functools.partial(
                keep_adapter,
                registry,
                run,
                best.adapter_digest,
                name=name,
                step=best.step,
                train_loss=best.train_loss,
                validation_loss=best.validation_loss,
            )
        with registry.blobs.staging() as staging:
            folder = staging / "adapter"
            folder.mkdir()
            base = self._group.base
            adapter = self._group.adapter(record.id)
            save_checked(folder, adapter, base.layer_shapes, base.head, wholes=base.wholes)
            digest = registry.blobs.put(folder)
        return functools.partial(
            keep_adapter,
            registry,
            run,
            digest,
            name=name,
            step=done.steps,
            train_loss=done.train_loss,
            validation_loss=done.validation_loss,
        )


def _needs(run: Run) -> tuple[str, tuple[int, int, str]]:
    """How the base is held for a run, on how many cards and machines, and how these hold it."""
    return held_for(run), cards_of(run)
