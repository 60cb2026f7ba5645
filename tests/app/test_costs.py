"""What LoRA costs: the claims beside a run and full fine-tuning, and the speed of an adapter."""

import json
import threading
from dataclasses import replace
from functools import partial

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.service.baselines import full_options
from app.service.costs import latency_rows
from core.errors import InvalidConfig
from core.generate import latency
from core.train.run_state import RunState
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.tables import Run
from tests.workbenches import QUICK, finish, wait_for

OPTIONS = {**QUICK, "eval_steps": 3, "packing": "off"}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """As many rows at once as ever, with fewer tokens and in fewer rounds: as much is told of them."""
    loads = [replace(one, prompt=16, new=4) for one in latency.LOADS]
    monkeypatch.setattr(latency, "measure_latency", partial(latency.measure_latency, loads=loads, rounds=2))


@pytest.fixture
def run(workbench, session):
    queued = workbench.training.start("llama", "data", TrainingOptions.parse(OPTIONS), "mine")
    finish(session.next())
    return workbench.registry.get(Run, queued.id)


def test_claims_stand_beside_what_was_trained_and_measured(workbench, session, run, jobs_here):
    """Full fine-tuning is queued, and waited for by what measures the speed."""
    started = threading.Thread(target=lambda: workbench.costs.begin(run.id))
    started.start()
    wait_for(lambda: workbench.registry.runs.active())
    assert started.is_alive()
    finish(session.next())
    started.join(120)
    costs = workbench.costs.of(run.id)
    claims = {one.name: one for one in costs.claims}
    assert costs.full.name == "mine full"
    assert claims["Trained parameters"].lora == run.details["trainable_parameters"]
    assert claims["Trained parameters"].full == costs.full.details["trainable_parameters"]
    assert 0 < claims["Trained parameters"].ratio < 0.2
    for name in ("Checkpoint", "Optimiser's state"):
        assert 0 < claims[name].ratio < 1, name
    for name in ("Peak memory", "Time of a step", "Validation loss"):
        assert claims[name].ratio > 0, name
    result = costs.latency.result
    assert (result["adapter"], [load["rows"] for load in result["loads"]]) == ("mine", [1, 8])
    for row in latency_rows(result):
        assert row["base_ms"] > 0
        for way in ("adapter", "merged"):
            assert row[f"{way}_ratio"] == pytest.approx(row[f"{way}_ms"] / row["base_ms"])
    again = workbench.costs.begin(run.id)
    assert (again.full, again.latency) == (None, None)  # all of it is there


def test_the_optimisers_state_is_as_large_as_in_a_checkpoint(workbench, session):
    options = TrainingOptions.parse({**OPTIONS, "save_steps": 3})
    queued = workbench.training.start("llama", "data", options, "mine")
    finish(session.next())
    claim = next(one for one in workbench.costs.of(queued.id).claims if one.name == "Optimiser's state")
    checkpoint = workbench.registry.checkpoints.of(queued.id)[-1]
    state = RunState.load(workbench.registry.blobs.path(checkpoint.state_digest))
    assert claim.lora == 4 * state.numbers


def test_the_command_says_it_with_the_same_figures(workbench, session, run, jobs_here, monkeypatch):
    monkeypatch.setattr("app.cli.baselines.open_workbench", lambda home: workbench)
    monkeypatch.setattr(workbench.baselines, "begin_full", lambda run: (None, "It does not fit."))
    said = CliRunner().invoke(app, ["costs", "--json"])
    found = json.loads(said.stdout)
    assert said.exit_code == 0
    assert {one["claim"] for one in found["claims"]} >= {"Checkpoint", "Peak memory"}
    assert [row["rows"] for row in found["latency"]] == [1, 1, 8, 8]
    assert "It does not fit." in said.stderr
    table = CliRunner().invoke(app, ["costs", str(run.id)]).stdout
    assert "10,000 times fewer" in table
    monkeypatch.setattr("app.cli.adapters.open_workbench", lambda home: workbench)
    speed = CliRunner().invoke(app, ["adapters", "speed", "mine"])
    assert "each further token" in speed.stdout


def test_what_cannot_be_said_is_refused(workbench, session, run):
    full = workbench.training.start("llama", "data", full_options(run), "all of it")
    finish(session.next())
    with pytest.raises(InvalidConfig, match="all of it is full fine-tuning; choose the run"):
        workbench.costs.of(full.id)
    assert workbench.costs.usual().id == run.id
    with pytest.raises(NotFound):
        workbench.costs.measure("another")
