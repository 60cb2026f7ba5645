"""Disks that fail or are full, and memory that ends, while a run is under way."""

import errno
import io
import itertools
import json
import os
import shutil
import sqlite3
from dataclasses import replace

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from app.engine.checkpoints import save_checkpoint
from app.shared import disk
from core.lora.adapter import LayerFactors
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Checkpoint, Run
from tests.workbenches import QUICK, finish, wait_for


class Faults:
    """Counts writes, fsyncs and renames, and lets one of them fail."""

    def __init__(self, monkeypatch):
        self.count, self.fails_at, self.code = 0, 0, errno.EIO
        real_open, real_sync, real_replace = io.open, os.fsync, os.replace

        def opened(file, mode="r", *arguments, **options):
            found = real_open(file, mode, *arguments, **options)
            return _Watched(found, self) if set(mode) & set("wx") else found

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(os, "fsync", lambda handle: (self.happens(), real_sync(handle))[1])
        monkeypatch.setattr(
            os, "replace", lambda source, target: (self.happens(), real_replace(source, target))[1]
        )

    def happens(self):
        self.count += 1
        if self.count == self.fails_at:
            raise OSError(self.code, os.strerror(self.code))


class _Watched:
    def __init__(self, file, faults):
        self._file, self._faults = file, faults

    def write(self, data):
        self._faults.happens()
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *about):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def _everything(workbench, run_id):
    """The rows of a run's checkpoints, each read back under its digest, and what lies half written."""
    rows = workbench.registry.checkpoints.of(run_id)
    for row in rows:
        workbench.registry.blobs.verify(row.adapter_digest)
        workbench.registry.blobs.verify(row.state_digest)
    assert not list((workbench.settings.blobs / "staging").iterdir())
    return [(row.id, row.step) for row in rows]


def test_a_fault_at_any_place_of_a_checkpoint_leaves_the_one_before(workbench, session, monkeypatch):
    run_id, training = session("mine", max_steps=4000, eval_steps=100_000)
    while not workbench.registry.checkpoints.of(run_id):
        training.advance()
    run = workbench.registry.get(Run, run_id)

    further_steps = itertools.count()

    def save():
        """With other numbers each time in all that is saved, as they were after further steps."""
        further = next(further_steps)
        adapter, state = training._group.adapter(run_id), training._group.state(run_id)
        layers = {
            path: LayerFactors(layer.A + 1e-6 * further, layer.B, layer.scale)
            for path, layer in adapter.layers.items()
        }
        position = replace(state.position, steps=state.position.steps + further)
        return save_checkpoint(
            workbench.registry,
            run,
            session.engine,
            replace(adapter, layers=layers),
            replace(state, position=position),
        )

    def train_on():
        done = training._group.state(run_id).position.steps
        while training._group.state(run_id).position.steps == done:
            training.advance()

    faults = Faults(monkeypatch)
    train_on()
    save()
    places = faults.count
    assert places > 10
    for code in (errno.EIO, errno.ENOSPC):
        for place in range(1, places + 1):
            before = _everything(workbench, run_id)
            faults.count, faults.fails_at, faults.code = 0, place, code
            with pytest.raises(OSError, match=os.strerror(code)):
                save()
            faults.fails_at = 0
            assert _everything(workbench, run_id) == before, (place, code)
    train_on()
    save()
    assert _everything(workbench, run_id)[0][0] > before[0][0]


def _full():
    """What SQLite says on a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return OperationalError("INSERT", {}, error)


def test_what_sqlite_says_on_a_full_disk_is_known(tmp_path):
    with sqlite3.connect(tmp_path / "small.db") as connection:
        connection.execute("create table one (text)")
        connection.execute("pragma max_page_count=3")
        with pytest.raises(sqlite3.OperationalError) as refused:
            connection.execute("insert into one values (?)", ["x" * 100_000])
    assert disk.is_full(OperationalError("INSERT", {}, refused.value))
    assert not disk.is_full(OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked")))


def test_a_registry_without_space_takes_no_checkpoint_and_the_run_waits(workbench, session, monkeypatch):
    run_id, training = session("mine")
    while not workbench.registry.checkpoints.of(run_id):
        training.advance()
    before = _everything(workbench, run_id)

    def refuse(row):
        raise _full()

    monkeypatch.setattr(workbench.registry.checkpoints, "add", refuse)
    finish(training)
    assert workbench.registry.get(Run, run_id).state == "paused"
    assert _everything(workbench, run_id) == before


def test_measurements_wait_for_space_and_none_is_lost(workbench, session, monkeypatch):
    run_id, training = session("mine")
    real, refused = workbench.registry.measurements.add_points, []

    def add_points(points, energy=None):
        if len(refused) < 3:
            refused.append(training.waiting_for_space)
            raise _full()
        real(points, energy)

    monkeypatch.setattr(workbench.registry.measurements, "add_points", add_points)
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: None)
    finish(training)
    assert refused == [False, True, True]
    steps = [one.step for one in workbench.registry.measurements.points(run_id) if one.loss is not None]
    assert steps == list(range(1, 31))
    assert workbench.registry.get(Run, run_id).state == "finished"


@pytest.fixture
def whole(workbench, session):
    """The digest of the run that nothing happened to."""
    _, training = session("whole")
    finish(training)
    return workbench.registry.find(Adapter, "whole").digest


def test_a_full_disk_pauses_the_run_and_space_lets_it_go_on(workbench, session, whole, monkeypatch):
    run_id, training = session("mine")
    while not workbench.registry.checkpoints.of(run_id):
        training.advance()
    usage = shutil.disk_usage(workbench.settings.home)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=5_000_000))
    finish(training)
    run = workbench.registry.get(Run, run_id)
    assert (run.state, run.reason.startswith("the disk is full: 0.3 MB are needed")) == ("paused", True), (
        run.reason
    )
    assert "5.0 MB are free" in run.reason
    assert "goes on from step 10 by itself" in run.reason
    assert "mine" not in workbench.registry.names(Adapter)
    assert workbench.runs.resume_what_can() == [], "there is no space yet"
    monkeypatch.undo()
    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    assert workbench.runs.resume_what_can() == [run_id]
    finish(session.next())
    assert workbench.registry.get(Run, run_id).state == "finished"
    assert workbench.registry.find(Adapter, "mine").digest == whole


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(
    workbench, session, whole, monkeypatch
):
    run_id, training = session("mine")

    def refuse(*about):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("app.engine.session.save_checkpoint", refuse)
    finish(training)
    assert workbench.registry.get(Run, run_id).state == "finished"
    assert not workbench.registry.all(Checkpoint) or {
        one.run_id for one in workbench.registry.all(Checkpoint)
    } == {1}
    told = [note.text for note in workbench.registry.measurements.notes(run_id) if note.kind == "alert"]
    assert "The checkpoint at step 10 could not be written" in told[0]
    assert "there is none yet" in told[0]
    assert workbench.registry.find(Adapter, "mine").digest == whole


def test_a_disk_that_is_full_at_the_end_keeps_the_last_checkpoint(workbench, session, whole, monkeypatch):
    run_id, training = session("mine")
    real = workbench.registry.blobs.put
    monkeypatch.setattr(
        workbench.registry.blobs, "put", lambda source: _refuse_adapter_alone(source) or real(source)
    )
    finish(training)
    run = workbench.registry.get(Run, run_id)
    assert (run.state, run.bytes_needed > 0) == ("paused", True)
    monkeypatch.undo()
    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    workbench.runs.resume(run_id)
    finish(session.next())
    assert workbench.registry.find(Adapter, "mine").digest == whole


def _refuse_adapter_alone(source):
    """A checkpoint has its state beside the adapter; the adapter of the end has not."""
    if not (source.parent / "state").exists() and source.name == "adapter":
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="needs a limit on a process's memory")
def test_a_limit_on_the_engines_memory_ends_in_pieces_and_the_next_run_starts_clean(workbench):
    """The engine may take 6 MB more than it has; a long micro-batch takes some 80 MB more, and gives them
    back: the run behind it may take half of them.
    """
    rows = [{"text": "fine thanks hello " * 60} for _ in range(32)]
    path = workbench.settings.home / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workbench.datasets.add(path, "long")
    options = {
        **QUICK,
        "max_steps": 3,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 16,
        "max_length": 256,
        "packing": "off",
        "eval_steps": 1000,
    }
    roomy = workbench.runs.wait(
        workbench.training.start("llama", "long", TrainingOptions.parse(options), "roomy").id
    )
    assert roomy.state == "finished", roomy.reason
    engine = psutil.Process(workbench.engine.status()["pid"])
    taken, most = engine.memory_info().vms, engine.rlimit(psutil.RLIMIT_AS)[1]
    engine.rlimit(psutil.RLIMIT_AS, (taken + 6_000_000, most))
    large = {**options, "micro_batch_size": 64, "gradient_accumulation_steps": 1}
    tight = workbench.runs.wait(
        workbench.training.start("llama", "long", TrainingOptions.parse(large), "tight").id
    )
    notes = [note.text for note in workbench.registry.measurements.notes(tight.id)]
    assert tight.state == "finished", notes
    assert any("The memory did not hold" in note and "pieces" in note for note in notes), notes
    found, wanted = (workbench.registry.find(Adapter, name).train_loss for name in ("tight", "roomy"))
    assert found == pytest.approx(wanted, rel=1e-4)
    wait_for(lambda: workbench.engine.status()["pid"] == engine.pid)
    engine.rlimit(psutil.RLIMIT_AS, (taken + 40_000_000, most))
    after = workbench.runs.wait(
        workbench.training.start("llama", "long", TrainingOptions.parse(options), "after").id
    )
    assert after.state == "finished", after.reason
    assert (
        workbench.registry.find(Adapter, "after").digest == workbench.registry.find(Adapter, "roomy").digest
    )
