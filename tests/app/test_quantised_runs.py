"""Runs on a base that is held in few bits: what is stored, resumed, refused and told."""

import pytest

from app.service.doctor import _bitsandbytes
from app.shared.bases import told_to_answer
from core.errors import InvalidConfig
from core.train.step_count import smaller_plans
from core.train.sweep import parse_grid
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Run
from tests.workbenches import STEADY, finish

SMALL = TrainingOptions.parse({**STEADY, "quantisation": "nf4"})


def test_a_run_goes_on_in_another_engine_and_ends_bit_for_bit_the_same(workbench, session):
    _, whole = session("whole", quantisation="nf4")
    finish(whole)
    digest = workbench.registry.find(Adapter, "whole").digest
    run_id, training = session("mine", quantisation="nf4")
    while not workbench.registry.checkpoints.of(run_id):
        training.advance()
    assert session.engine.base.quantisation == "nf4"
    workbench.runs.pause(run_id)
    finish(training)
    session.engine.base = session.engine._key = None  # as after a restart
    workbench.runs.resume(run_id)
    finish(session.next())
    assert workbench.registry.find(Adapter, "mine").digest == digest
    notes = [one.text for one in workbench.registry.measurements.notes(run_id)]
    assert any("its linear layers held in 4 bits (NF4)" in one for one in notes)
    assert not any("approximately" in one for one in notes)


def test_runs_for_which_the_base_is_held_otherwise_take_turns(workbench, session):
    options = TrainingOptions.parse({**STEADY, "max_steps": 2})
    runs = workbench.training.sweep("llama", "data", options, parse_grid(["quantisation=none,int8"]), "both")
    finish(session.next())
    assert [workbench.registry.get(Run, run.id).state for run in runs] == ["finished", "queued"]
    finish(session.next())
    assert workbench.registry.get(Run, runs[1].id).state == "finished"
    assert session.engine.base.quantisation == "int8"


def test_what_cannot_be_held_so_is_refused_before_it_is_queued(workbench, with_encoder, monkeypatch):
    classify = TrainingOptions.parse({"objective": "classification", "quantisation": "nf4"})
    with pytest.raises(InvalidConfig, match="choose quantisation=none"):
        workbench.training.start("bert", "moods", classify)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match=r"pip install 'lora-workbench\[qlora\]'"):
        workbench.training.start("llama", "data", SMALL)
    assert _bitsandbytes().level == "note"


def test_the_estimate_counts_the_base_as_it_is_held_and_less_is_offered(workbench):
    plain, small = (
        workbench.training.estimate("llama", "data", TrainingOptions.parse({**STEADY, "quantisation": how}))
        for how in ("none", "nf4")
    )
    assert small.memory_bytes < plain.memory_bytes
    changes = [change for _, change in smaller_plans(TrainingOptions.parse(STEADY).train)]
    assert {"quantisation": "nf4"} in changes
    assert not any("quantisation" in change for _, change in smaller_plans(SMALL.train))
    assert _bitsandbytes().level == "fine"


def test_answers_are_given_on_the_base_as_it_is_set(workbench):
    base = workbench.registry.find(Base, "llama")
    assert told_to_answer(base, workbench.preferences)["quantisation"] == "none"
    workbench.preferences.change({"quantisation": "int8"})
    assert told_to_answer(base, workbench.preferences)["quantisation"] == "int8"
    with pytest.raises(InvalidConfig, match="none, nf4, int8"):
        workbench.preferences.change({"quantisation": "gptq"})
