"""Runs that are paused, stopped or killed go on from their last checkpoint and end as if nothing had
happened.
"""

import os
import random
import shutil
import signal
import sqlite3
import time

import pytest

from core.base_model.fingerprint import stat_key
from core.errors import InvalidData, WrongBase
from core.train.training_options import TrainingOptions
from storage.errors import InUse
from storage.tables import ALERT, Adapter, Base, Checkpoint, Dataset, Run
from tests.workbenches import QUICK, finish, wait_for

EVERY = 10
STEPS = {
    **QUICK,
    "max_steps": 80,
    "save_steps": EVERY,
    "save_minutes": 0,
    "dropout": 0.1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "eval_steps": 25,
}


def _points(workbench, run):
    points = workbench.registry.measurements.points(run.id)
    return (
        [(one.step, one.loss) for one in points if one.loss is not None],
        [(one.step, one.validation_loss) for one in points if one.validation_loss is not None],
    )


@pytest.fixture(scope="module")
def found_before():
    """What is the same in every home."""
    return []


@pytest.fixture
def uninterrupted(workbench, found_before):
    """The digest of the adapter of a run to its end, and its measurements."""
    if not found_before:
        found_before += _uninterrupted(workbench)
    return found_before


def _uninterrupted(workbench):
    run = workbench.runs.wait(
        workbench.training.start("llama", "data", TrainingOptions.parse(STEPS), "whole").id
    )
    assert run.state == "finished", run.reason
    return workbench.registry.find(Adapter, "whole").digest, _points(workbench, run)


def _kill_engine(workbench):
    os.kill(workbench.engine.status()["pid"], signal.SIGKILL)
    wait_for(lambda: not workbench.engine.alive)
    workbench.notice_deaths()


def test_a_run_killed_again_and_again_ends_like_the_uninterrupted_one(workbench, uninterrupted):
    digest, measured = uninterrupted
    chance, run = (
        random.Random(1),
        workbench.training.start("llama", "data", TrainingOptions.parse(STEPS), "killed"),
    )
    for _ in range(3):
        wait_for(
            lambda: len(_points(workbench, run)[0]) >= 1 or not workbench.registry.get(Run, run.id).active
        )
        time.sleep(
            chance.uniform(0, 0.6)
        )  # anywhere: between two steps, inside of one, while a checkpoint is written
        if not workbench.registry.get(Run, run.id).active:
            break
        steps = len(_points(workbench, run)[0])
        _kill_engine(workbench)
        found = workbench.registry.get(Run, run.id)
        assert (found.state, "killed" in found.reason) == ("interrupted", True)
        saved = workbench.registry.checkpoints.of(run.id)
        assert len(saved) <= 3, "the last two and the best"
        assert steps - (saved[0].step if saved else 0) <= EVERY, "more than an interval is lost"
        with sqlite3.connect(workbench.settings.database) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        for one in saved:
            workbench.registry.blobs.verify(one.adapter_digest)
            workbench.registry.blobs.verify(one.state_digest)
        workbench.runs.resume(run.id)
    done = workbench.runs.wait(run.id)
    assert done.state == "finished", done.reason
    assert workbench.registry.find(Adapter, "killed").digest == digest
    assert _points(workbench, run) == measured


def test_a_run_that_is_paused_and_stopped_on_the_way_ends_the_same(workbench, uninterrupted):
    digest, measured = uninterrupted
    run = workbench.training.start("llama", "data", TrainingOptions.parse(STEPS), "mine")
    wait_for(lambda: len(_points(workbench, run)[0]) >= 1)
    workbench.runs.pause(run.id)
    found = workbench.runs.wait(run.id)
    assert (found.state, found.reason.startswith("after ")) == ("paused", True)
    assert workbench.registry.checkpoints.of(run.id)[0].step == _points(workbench, run)[0][-1][0]
    assert "mine" not in workbench.registry.names(Adapter)
    assert workbench.runs.pause(run.id).state == "paused", "a second click does nothing"
    workbench.runs.resume(run.id)
    assert workbench.runs.resume(run.id).id == run.id, "a second click does nothing"
    wait_for(lambda: workbench.registry.get(Run, run.id).state == "running")
    workbench.runs.stop(run.id)
    assert workbench.runs.wait(run.id).state == "stopped"
    assert "mine" in workbench.registry.names(Adapter)
    workbench.runs.resume(run.id)
    assert workbench.runs.wait(run.id).state == "finished"
    assert workbench.registry.find(Adapter, "mine-2").digest == digest
    assert _points(workbench, run) == measured
    with pytest.raises(InUse, match="is finished"):
        workbench.runs.resume(run.id)


def test_the_last_two_checkpoints_and_the_best_are_kept(workbench):
    run = workbench.runs.wait(
        workbench.training.start(
            "llama",
            "data",
            TrainingOptions.parse({**STEPS, "max_steps": 40, "save_steps": 3, "eval_steps": 3}),
            "many",
        ).id
    )
    kept = workbench.registry.checkpoints.of(run.id)
    losses = {step: loss for step, loss in _points(workbench, run)[1] if step}
    best = min(losses, key=lambda step: (losses[step], step))
    last = (
        [39, 40] if best == 40 else [36, 39]
    )  # an evaluation that is the best so far is saved, the last one as well
    assert {one.step for one in kept} == {*last, best}
    store = workbench.settings.blobs / "sha256"
    stored = {path.name for folder in store.iterdir() for path in folder.iterdir()}
    assert all({one.adapter_digest, one.state_digest} <= stored for one in kept)
    assert sum((store / name[:2] / name / "state.safetensors").exists() for name in stored) == len(kept)


def test_a_run_saves_when_asked_to(workbench):
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**STEPS, "save_steps": 0, "max_steps": 5000}), "asked"
    )
    wait_for(lambda: workbench.registry.get(Run, run.id).state == "running")
    workbench.runs.save(run.id)
    wait_for(lambda: workbench.registry.all(Checkpoint))
    assert not workbench.registry.get(Run, run.id).save_requested
    workbench.runs.stop(run.id)
    workbench.runs.wait(run.id)


def test_what_has_changed_under_a_paused_run_is_named(workbench, tiny_llama, tmp_path):
    base = workbench.registry.find(Base, "llama")
    folder = shutil.copytree(tiny_llama, tmp_path / "mine")
    base = workbench.registry.save(
        Base(**base.model_dump() | {"folder": str(folder), "stat_key": stat_key(folder)})
    )
    run = workbench.training.start("llama", "data", TrainingOptions.parse(STEPS), "mine")
    wait_for(lambda: len(_points(workbench, run)[0]) >= 1)
    workbench.runs.pause(run.id)
    workbench.runs.wait(run.id)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    workbench.runs.resume(run.id)
    failed = workbench.runs.wait(run.id)
    assert (failed.state, "chat template of llama changed" in failed.reason) == ("failed", True)
    (folder / "chat_template.jinja").write_text(template)
    workbench.registry.datasets.remove(workbench.registry.find(Dataset, "data"))
    with pytest.raises(InvalidData, match="Version 1 of data, which run 1 trains on, was deleted"):
        workbench.runs.resume(run.id)
    base.fingerprint = "f" * 64
    workbench.registry.save(base)
    with pytest.raises(WrongBase, match="gone or another one"):
        workbench.runs.resume(run.id)
    assert workbench.registry.get(Run, run.id).state == "failed"


@pytest.mark.parametrize("before", ["bfloat16", "float32"])
def test_a_run_that_goes_on_in_another_number_format_says_so(workbench, session, monkeypatch, before):
    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    run_id = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "run").id
    workbench.registry.runs.begin(run_id, {"dtype": before})
    finish(session.next())
    told = [note.text for note in workbench.registry.measurements.notes(run_id) if note.kind == ALERT]
    assert len(told) == (before == "bfloat16")
    assert all("computes in float32 now and computed in bfloat16 before" in one for one in told)


def test_a_run_whose_data_is_gone_stays_where_it_is_and_keeps_none_of_the_others(
    workbench, session, tmp_path, monkeypatch
):
    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    workbench.datasets.begin("short-lived", [("user", "hello"), ("assistant", "fine thanks")])
    registry, found = workbench.registry, []
    for data, way in (("short-lived", "space"), ("short-lived", "start"), ("data", "space")):
        options = TrainingOptions.parse({**QUICK, "resume_at_start": way == "start"})
        run_id = workbench.training.start("llama", data, options, f"{way} {data}", anyway=True).id
        registry.queue.claim(run_id)
        registry.runs.begin(run_id, {})
        if way == "space":
            registry.runs.needs_space(run_id, "The disk is full.", 1)
        else:
            registry.runs.interrupted(run_id, "The engine was killed.")
        found.append(run_id)
    workbench.datasets.remove("short-lived")
    assert workbench.runs.resume_what_can() == found[2:]
    assert [registry.get(Run, one).state for one in found] == ["paused", "interrupted", "queued"]
    for one in found[:2]:
        said = [note.text for note in registry.measurements.notes(one) if "by itself" in note.text]
        assert len(said) == 1
        assert "of short-lived, which run" in said[0]
    assert workbench.runs.resume_what_can() == []
    with pytest.raises(InvalidData, match="was deleted"):
        workbench.runs.resume(found[0])
