"""Runs that go on behind their end, and runs that end where they stand."""

import json

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.shared.engine_client import EngineClient
from core.errors import InvalidConfig, InvalidData
from storage.errors import InUse
from storage.tables import Adapter, Run
from tests.workbenches import finish

CONSTANT = {"lr_scheduler": "constant", "warmup_ratio": 0.0}
FALLING = {"lr_scheduler": "cosine", "warmup_ratio": 0.2}


def _steps(workbench, run_id):
    """Of each step its loss and rate, and where the run was evaluated."""
    points = workbench.registry.measurements.points(run_id)
    losses = [(one.step, one.loss, one.learning_rate) for one in points if one.loss is not None]
    return losses, [one.step for one in points if one.validation_loss is not None]


def _digest(workbench, name):
    return workbench.registry.find(Adapter, name).digest


@pytest.fixture
def train(session):
    """Train a run to its end in this process; its number."""

    def to_the_end(name, **options):
        run_id, begun = session(name, **options)
        finish(begun)
        return run_id

    return to_the_end


@pytest.fixture
def extend(workbench, session):
    """Extend a run and train it to its new end; its row."""

    def to_the_end(run_id, **values):
        workbench.runs.extend(run_id, values)
        finish(session.next())
        return workbench.registry.get(Run, run_id)

    return to_the_end


@pytest.mark.parametrize(
    ("short", "more", "long"),
    [
        ({"max_steps": 20, "save_steps": 8}, {"max_steps": 36}, {"max_steps": 36}),
        ({"max_steps": 20, "save_steps": 20}, {"max_steps": 36}, {"max_steps": 36}),
        ({"max_steps": 0, "epochs": 1.5, "save_steps": 0}, {"epochs": 3.0}, {"max_steps": 0, "epochs": 3.0}),
        ({"max_steps": 20, "save_steps": 8}, {"epochs": 3.0}, {"max_steps": 0, "epochs": 3.0}),
    ],
)
def test_at_a_constant_rate_an_extended_run_is_the_longer_one(workbench, train, extend, short, more, long):
    train("long", **CONSTANT, **long)
    run_id = train("mine", **CONSTANT, **short)
    first = workbench.registry.find(Adapter, "mine")
    run = extend(run_id, **more)
    assert run.state == "finished", run.reason
    assert _digest(workbench, "mine-2") == _digest(workbench, "long") != first.digest
    assert _steps(workbench, run_id)[0] == _steps(workbench, 1)[0]
    second = workbench.registry.find(Adapter, "mine-2")
    assert (run.adapter_id, second.steps) == (second.id, _steps(workbench, 1)[0][-1][0])
    assert workbench.registry.find(Adapter, "mine").digest == first.digest, "what it left before stays"
    notes = [one.text for one in workbench.registry.measurements.notes(run_id)]
    assert [one for one in notes if one.startswith("Adapter ")] == [
        f"Adapter mine stored, as of step {first.steps}",
        f"Adapter mine-2 stored, as of step {second.steps}",
    ]


def test_a_falling_rate_is_that_of_the_longer_plan_from_the_old_end_on(workbench, train, extend):
    """Wherever it goes on from, also from its start for want of a checkpoint: it is the same run."""
    train("long", **FALLING, max_steps=36)
    rates = [rate for _, _, rate in _steps(workbench, 1)[0]]
    digests = set()
    for name, save_steps in (("mine", 8), ("whole", 0)):
        run_id = train(name, **FALLING, max_steps=20, save_steps=save_steps)
        before, evaluated = _steps(workbench, run_id)
        extend(run_id, max_steps=36)
        after, evaluated_then = _steps(workbench, run_id)
        assert after[:20] == before, "up to its old end it is the run that it was"
        assert [rate for _, _, rate in after[20:]] == rates[20:]
        assert evaluated_then[: len(evaluated)] == evaluated
        digests.add(_digest(workbench, f"{name}-2"))
    assert len(digests) == 1


def test_a_run_is_extended_twice_with_another_rate_and_paused_on_its_way(workbench, train, extend, session):
    run_id = train("mine", **CONSTANT, max_steps=10, save_steps=4)
    extend(run_id, max_steps=14, learning_rate=0.005)
    workbench.runs.extend(run_id, {"max_steps": 24})
    begun = session.next()
    while not any(step >= 16 for step, _, _ in _steps(workbench, run_id)[0]):
        begun.advance()
        begun.flush()
    workbench.runs.pause(run_id)
    finish(begun)
    assert workbench.registry.get(Run, run_id).state == "paused"
    workbench.runs.resume(run_id)
    finish(session.next())
    steps, _ = _steps(workbench, run_id)
    assert [step for step, _, _ in steps] == list(range(1, 25))
    assert [rate for _, _, rate in steps] == [0.01] * 10 + [0.005] * 14
    assert workbench.registry.find(Adapter, "mine-3").steps == 24
    assert workbench.registry.get(Run, run_id).details["total_steps"] == 24


def test_what_cannot_be_extended_is_refused_in_a_sentence(workbench, session, train):
    run_id = train("mine", max_steps=6)
    for values, said in (
        ({}, "Nothing to change"),
        ({"learning_rate": "0.1"}, "Give the new end of the run"),
        ({"max_steps": "6"}, "at step 6 already"),
        ({"epochs": "0.1"}, "it is the length in all"),
        ({"rank": "4"}, "rank cannot change"),
    ):
        with pytest.raises(InvalidConfig, match=said):
            workbench.runs.extend(run_id, values)
    with pytest.raises(InUse, match="extend it, or duplicate it"):
        workbench.runs.change(run_id, {"max_steps": 9})
    waiting, _ = session("waits")
    with pytest.raises(InUse, match="only a finished run is extended"):
        workbench.runs.extend(waiting, {"max_steps": 99})
    workbench.runs.stop(waiting)
    workbench.datasets.remove("data")
    with pytest.raises(InvalidData, match="was deleted"):
        workbench.runs.extend(run_id, {"max_steps": 9})
    assert workbench.registry.get(Run, run_id).state == "finished"


def test_the_command_line_extends(workbench, settings, train, session, monkeypatch):
    monkeypatch.setattr(EngineClient, "wake", lambda client: None)  # the run is trained here
    run_id = train("mine", max_steps=6)
    command = ["runs", "extend", str(run_id), "--home", str(settings.home), "--json", "--detach", "--set"]
    done = CliRunner().invoke(app, [*command, "max_steps=4"])
    assert (done.exit_code, "at step 6 already" in json.loads(done.stdout)["error"]) == (1, True)
    assert CliRunner().invoke(app, [*command, "max_steps=9"]).exit_code == 0
    finish(session.next())
    assert workbench.registry.find(Adapter, "mine-2").steps == 9


@pytest.mark.parametrize("state", ["paused", "interrupted", "queued"])
def test_a_run_that_nothing_works_on_is_stopped_and_keeps_its_last_checkpoint(workbench, session, state):
    run_id, begun = session("mine", max_steps=30, save_steps=4)
    while len(_steps(workbench, run_id)[0]) < 6:
        begun.advance()
        begun.flush()
    if state == "interrupted":
        begun.fail(RuntimeError("out of memory"))
        workbench.registry.runs.interrupt_all("gone")
        run = workbench.registry.get(Run, run_id)
        if run.state == "failed":  # as a fault of its own would leave it
            workbench.runs.resume(run_id)
            workbench.registry.queue.claim(run_id)
            workbench.registry.runs.interrupt_all("gone")
    else:
        workbench.runs.pause(run_id)
        finish(begun)
    if state == "queued":
        workbench.runs.resume(run_id)
    assert workbench.registry.get(Run, run_id).state == state
    newest = workbench.registry.checkpoints.of(run_id)[0]
    for _ in range(2):  # a second click does nothing
        run = workbench.runs.stop(run_id)
        assert (run.state, f"step {newest.step}" in run.reason) == ("stopped", True)
        (kept,) = workbench.registry.all(Adapter)
        assert (kept.name, kept.steps, kept.digest) == ("mine", newest.step, newest.adapter_digest)
        assert run.adapter_id == kept.id
    workbench.runs.resume(run_id)
    finish(session.next())
    assert workbench.registry.get(Run, run_id).state == "finished"
    assert workbench.registry.find(Adapter, "mine-2").steps == 30


def test_an_extended_run_stopped_while_it_waits_keeps_what_it_had_left(workbench, session):
    run_id, begun = session("mine", max_steps=6, save_steps=4)
    finish(begun)
    left = workbench.registry.get(Run, run_id).adapter_id
    workbench.runs.extend(run_id, {"max_steps": 9})
    run = workbench.runs.stop(run_id)
    assert (run.state, run.adapter_id, workbench.registry.names(Adapter)) == ("stopped", left, {"mine"})


def test_a_run_stopped_before_it_started_leaves_no_adapter(workbench, session):
    run_id, _ = session("mine")
    workbench.runs.pause(run_id)
    run = workbench.runs.stop(run_id)
    assert (run.state, run.reason, run.adapter_id) == ("stopped", "before it started", None)
