"""What can be done with runs that exist: the queue, control in flight, checkpoints, going on.

Knows nothing of Gradio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.shared.checkpoint_rows import checkpoint_at
from app.shared.disk import bytes_to_go_on, free_bytes
from app.shared.engine_client import EngineClient
from app.shared.errors import EngineUnavailable
from app.shared.publishing import keep_checkpoint
from core.errors import InvalidConfig, InvalidData, WrongBase
from core.lora.config import LoraConfig
from core.train.changes import parse_change, parse_spread
from core.train.config import TrainConfig
from core.train.training_options import all_options, flat_values
from storage.checkpoints import best_checkpoint
from storage.errors import NotFound
from storage.names import free_name
from storage.registry import Registry
from storage.runs import RESUMED_FROM
from storage.tables import INTERRUPTED, PAUSED, QUEUED, UNDER_WAY, Adapter, Base, Checkpoint, Run

_POLL_SECONDS = 0.2


class Runs:
    """The runs of one home folder."""

    def __init__(self, registry: Registry, engine: EngineClient) -> None:
        self._registry, self._engine = registry, engine

    # The queue.

    def move(self, run_id: int, place: int) -> None:
        """Put a waiting run at a place of the queue, counted from 0. Raises NotFound, InUse."""
        self._registry.queue.move(run_id, place)

    def remove(self, run_id: int) -> None:
        """Forget a run that is not under way, with its checkpoints; its adapter stays.

        Raises NotFound, InUse.
        """
        self._registry.runs.remove(run_id)

    def options(self, run_id: int) -> dict[str, Any]:
        """All training options of a run as they were last, to train again with changes. Raises NotFound."""
        return options_of(self._registry.get(Run, run_id))

    # Following.

    def wait(self, run_id: int, watch: Callable[[Run], None] = lambda run: None) -> Run:
        """Follow one run to its end."""
        return self.wait_all([run_id], lambda runs: watch(runs[0]))[0]

    def wait_all(
        self, run_ids: Sequence[int], watch: Callable[[list[Run]], None] = lambda runs: None
    ) -> list[Run]:
        """Follow runs to their end, calling `watch` now and then; also when their process dies."""
        while True:
            self.look_after()
            runs = [self._registry.get(Run, run_id) for run_id in run_ids]
            watch(runs)
            if not any(run.active for run in runs):
                return runs
            time.sleep(_POLL_SECONDS)

    def look_after(self) -> None:
        """Notice an engine that died, let runs go on that can, and give a waiting run a new engine.

        Runs fail if no engine can be started.
        """
        self.notice_death()
        self.resume_what_can()
        if any(run.state == QUEUED for run in self._registry.runs.active()) and not self._engine.alive:
            try:
                self._engine.ensure()
            except EngineUnavailable as error:
                self._registry.runs.fail_queued(str(error))

    def notice_death(self) -> None:
        """Mark runs whose engine is gone as interrupted, with the reason as far as it is known."""
        if any(run.state in UNDER_WAY for run in self._registry.runs.active()) and not self._engine.alive:
            self._registry.runs.interrupt_all(self._engine.death_reason())

    # Control in flight.

    def stop(self, run_id: int) -> Run:
        """Ask a run to stop and keep what it has learnt; one that waits, is paused or was interrupted keeps
        what its last checkpoint holds.

        Raises NotFound, BlobDamaged.
        """
        if not self._registry.requests.stop_idle(run_id):
            return self._registry.requests.stop(run_id)
        row = self._to_publish(run_id)
        if row is not None:
            run, names = self._registry.get(Run, run_id), self._registry.names(Adapter)
            kept = keep_checkpoint(self._registry, row, free_name(run.name, names))
            self._registry.runs.left(run_id, kept.id or 0)
            said = f"Adapter {kept.name} stored, as of step {kept.steps}"
            self._registry.measurements.add_note(run_id, said)
        return self._registry.get(Run, run_id)

    def _to_publish(self, run_id: int) -> Checkpoint | None:
        """The checkpoint that becomes the adapter of a run which ends where it stands: its newest, or its
        best where that is to be kept. None if there is none, or if the adapter that it has left is as far.
        """
        run, rows = self._registry.get(Run, run_id), self._registry.checkpoints.of(run_id)
        best = best_checkpoint(rows) if run.config["train"].get("keep_best") else None
        row = best or next(iter(rows), None)
        left = next((one for one in self._registry.all(Adapter) if one.id == run.adapter_id), None)
        return None if row is None or (left is not None and (left.steps or 0) >= row.step) else row

    def pause(self, run_id: int) -> Run:
        """Ask a run to save where it stands and let go of the memory. Raises NotFound, InUse."""
        return self._registry.requests.pause(run_id)

    def save(self, run_id: int) -> Run:
        """Ask a run to write a checkpoint now. Raises NotFound, InUse."""
        return self._registry.requests.save(run_id)

    def sample(self, run_id: int) -> Run:
        """Ask a run to answer its sample prompts now.

        Raises NotFound, InUse, or InvalidConfig if it has none.
        """
        run = self._registry.get(Run, run_id)
        if not has_prompts(run):
            raise InvalidConfig(f"Run {run_id} ({run.name}) was started without sample prompts.")
        return self._registry.requests.sample(run_id)

    def change(self, run_id: int, values: Mapping[str, object]) -> Run:
        """Change learning_rate, epochs or max_steps of a run: from its next step on, or when it goes on.

        Raises NotFound, InvalidConfig, InUse.
        """
        parsed = parse_change(values)
        self._require_ahead(run_id, parsed, "To end it now, stop it.")
        return self._registry.requests.change(run_id, parsed)

    def extend(self, run_id: int, values: Mapping[str, object]) -> Run:
        """Let a finished run go on to a later end: `epochs` or `max_steps` in all, and a `learning_rate` if
        it is to be another from there.

        It goes on from its last checkpoint with its optimiser's state, in the order that its data would have
        had. Up to its old end it is the run that it was. From there the rate is that which the longer plan
        has at this step: a constant one stays, a falling one rises to it once, as where transformers'
        Trainer goes on from a checkpoint with more epochs. Packing stays as the first plan chose it. The
        adapter that it has left stays; the extended run leaves another.

        Raises NotFound, InvalidConfig, InUse, InvalidData, WrongBase, EngineUnavailable.
        """
        parsed = parse_change(values)
        if not {"epochs", "max_steps"} & set(parsed):
            raise InvalidConfig("Give the new end of the run: epochs or max_steps, in all.")
        self._require_ahead(run_id, parsed, "Give more than that: it is the length in all.")
        self._require_unchanged(self._registry.get(Run, run_id))
        run = self._registry.queue.extend(run_id, parsed)
        self._engine.wake()
        return run

    def _require_ahead(self, run_id: int, values: Mapping[str, Any], advice: str) -> None:
        """Raise InvalidConfig where a run has come to the end that `values` give it, or further."""
        last, ends_at = self._registry.measurements.last_point(run_id), values.get("max_steps") or math.inf
        if last is not None and (
            last.step >= ends_at or (last.epoch or 0.0) >= values.get("epochs", math.inf)
        ):
            raise InvalidConfig(
                f"Run {run_id} is at step {last.step} already, in epoch {last.epoch or 0.0:.2f}; that "
                f"lies behind it. {advice}"
            )

    # Checkpoints.

    def keep(self, run_id: int, step: int | None = None, name: str = "") -> Adapter:
        """Make an adapter of a run's checkpoint at `step`, by default of its newest.

        Raises NotFound, NameTaken, BlobDamaged.
        """
        return keep_checkpoint(self._registry, checkpoint_at(self._registry, run_id, step), name)

    def checkpoint(self, checkpoint_id: int) -> Checkpoint:
        """One checkpoint. Raises NotFound."""
        return self._registry.get(Checkpoint, checkpoint_id)

    # Going on.

    def resume(self, run_id: int, step: int | None = None, spread: Mapping[str, object] | None = None) -> Run:
        """Let a run go on from its last checkpoint, or from the one at `step`: then the later ones are
        forgotten with what was measured behind it. spread: devices and machines from now on, where they are
        to be others.

        Raises NotFound, InUse, InvalidConfig, InvalidData, WrongBase, EngineUnavailable.
        """
        run, others = self._registry.get(Run, run_id), parse_spread(spread or {})
        self._require_unchanged(run)
        at = None if step is None else checkpoint_at(self._registry, run_id, step)
        before = self._registry.checkpoints.of(run_id)
        run = self._registry.queue.again(run_id, step, {"train": others} if others else None)
        if at is not None:
            left = {one.id for one in self._registry.checkpoints.of(run_id)}
            self._registry.checkpoints.forget([one for one in before if one.id not in left])
        if others:
            said = ", ".join(f"{name} = {value}" for name, value in others.items())
            note = f"Goes on with {said}: as before up to rounding, not bit for bit"
            self._registry.measurements.add_note(run_id, note)
        self._engine.wake()
        return run

    def _require_unchanged(self, run: Run) -> None:
        """The base and the version of the data that a run names must still be here."""
        base = next((one for one in self._registry.all(Base) if one.id == run.base_id), None)
        if base is None or base.fingerprint != run.base_fingerprint:
            raise WrongBase(
                f"The base model {run.base_name} that run {run.id} was trained on is gone or another "
                "one by now."
            )
        try:
            self._registry.datasets.rows_of(run.dataset_digest)
        except NotFound:
            raise InvalidData(
                f"Version {run.dataset_version} of {run.dataset_name}, which run {run.id} trains on, "
                "was deleted."
            ) from None

    def resume_what_can(self) -> list[int]:
        """Let those runs go on that wait for space which is there by now, or were interrupted and want to go
        on by themselves.

        One that has not come further since it last went on by itself is left alone: it would die again. So
        is one whose base or data is gone, which its log says: whoever looks after the others goes on.
        Returns their ids.
        """
        resumed = []
        for run in self._registry.runs.in_states(PAUSED, INTERRUPTED):
            run_id = run.id or 0
            if self._can_go_on(run):
                try:
                    resumed.append(self.resume(run_id).id or 0)
                except (WrongBase, InvalidData) as error:
                    self._registry.runs.left_to_people(run_id, f"Does not go on by itself: {error}")
        return resumed

    def _can_go_on(self, run: Run) -> bool:
        if run.state == PAUSED:
            return self._has_space_now(run)
        return bool(run.config["train"].get("resume_at_start")) and self._came_further(run)

    def _has_space_now(self, run: Run) -> bool:
        free = free_bytes(self._registry.blobs.folder)
        return bool(run.bytes_needed) and free > bytes_to_go_on(run.bytes_needed)

    def _came_further(self, run: Run) -> bool:
        newest = next((one.step for one in self._registry.checkpoints.of(run.id or 0)), 0)
        if newest <= run.details.get(RESUMED_FROM, -1):
            return False
        self._registry.runs.resumed_from(run.id or 0, newest)
        return True


def options_of(run: Run) -> dict[str, Any]:
    """All training options of a run as they were last, its changes counted; what is no option any more is
    left out.
    """
    options = {"kind": LoraConfig.kind, "objective": TrainConfig.objective, **flat_values(run.config)}
    for change in run.changes:
        options.update(change["values"])
    known = all_options()
    return {name: value for name, value in options.items() if name in known}


def has_prompts(run: Run) -> bool:
    """Whether it was started with sample prompts."""
    return bool(str(run.config["train"].get("sample_prompts", "")).strip())
