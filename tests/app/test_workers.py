"""Runs that several processes train: started, watched and ended by the engine; a lost one interrupts the
run.
"""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engine.runs_apart import RunsApart
from app.engine.workers import told_of
from core.base_model.load import load_base
from core.errors import BaseTooLarge, InvalidConfig
from core.lora.peft.files import load_adapter
from core.train.accelerators import Card, all_named, require_cards
from core.train.training_options import TrainingOptions
from storage.tables import FAILED, FINISHED, INTERRUPTED, PAUSED, Adapter, Base, Run
from tests.workbenches import QUICK, wait_for

TWO = {
    "devices": 2,
    "micro_batch_size": 2,
    "max_steps": 40,
    "save_steps": 1,
    "eval_steps": 20,
    "dropout": 0.2,
    "packing": "off",
}


def _go(session, moments=-1, joined=True):
    """Train as the engine's main loop does: to the end, or to what ended it. A worker is killed when so many
    moments have gone by since it was started, or has joined. Returns whether one was.
    """
    killed = False
    try:
        while session.advance():
            if session._cards._workers is not None and (session._group is not None or not joined):
                moments -= 1
                if moments == 0:
                    os.kill(session._cards._workers.pids[1], signal.SIGKILL)
                    killed = True
        session.close()
    except Exception as error:  # noqa: BLE001  (as the engine's own boundary)
        session.fail(error)
    return killed


def _factors(workbench, name):
    row = workbench.registry.find(Adapter, name)
    adapter = load_adapter(workbench.registry.blobs.path(row.digest), *_shapes(workbench))
    return torch.cat([one.flatten() for layer in adapter.layers.values() for one in (layer.A, layer.B)])


def _shapes(workbench):
    base = workbench.registry.find(Base, "llama")
    loaded = load_base(
        Path(base.folder), fingerprint=base.fingerprint, name="llama", device=torch.device("cpu")
    )
    return loaded.layer_shapes, loaded.head


def test_a_worker_that_is_killed_interrupts_the_run_which_goes_on(workbench, session):
    """At ten random moments, of the start and of the training."""
    chance = random.Random(7)
    _, begun = session("alone", **TWO | {"devices": 1})
    _go(begun)
    run_id, begun = session("together", **TWO)
    killed = 0
    while workbench.registry.get(Run, run_id).state != FINISHED:
        if not _go(begun, chance.randrange(1, 30) if killed < 10 else -1, joined=killed % 3 > 0):
            break
        killed += 1
        run = workbench.registry.get(Run, run_id)
        assert run.state == INTERRUPTED, run.reason
        assert "Worker 1 of 1 was killed (SIGKILL" in run.reason
        workbench.runs.resume(run_id)
        begun = session.next()
    assert workbench.registry.get(Run, run_id).state == FINISHED
    assert killed == 10
    torch.testing.assert_close(
        _factors(workbench, "together"), _factors(workbench, "alone"), atol=1e-5, rtol=0
    )


def test_a_run_is_saved_asked_and_paused_as_on_one_card_and_goes_on_with_one(workbench, session):
    run_id, begun = session("run", **TWO, sample_prompts="hello")
    for _ in range(10_000):
        begun.advance()
        if workbench.registry.checkpoints.of(run_id):
            break
    workbench.runs.pause(run_id)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == PAUSED, run.reason
    assert any(
        "1 more card has the base" in note.text for note in workbench.registry.measurements.notes(run_id)
    )
    steps = [one.step for one in workbench.registry.measurements.points(run_id) if one.loss is not None]
    assert steps == sorted(set(steps))
    workbench.runs.resume(run_id)
    _go(session.next())
    assert workbench.registry.get(Run, run_id).state == FINISHED


@pytest.mark.parametrize(
    ("other", "state", "said"),
    [
        ({"folder": "/nowhere"}, INTERRUPTED, "Worker 1 of 1 cannot join: The files of llama are gone"),
        ({"fingerprint": "0" * 64}, FAILED, "Process 1 of 2 does not have the first one's base"),
    ],
)
def test_a_worker_without_the_same_base_keeps_the_run_from_beginning(
    workbench, session, monkeypatch, other, state, said
):
    monkeypatch.setattr("app.engine.workers.told_of", lambda source: {**told_of(source), **other})
    run_id, begun = session("run", **TWO)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == state
    assert said in run.reason
    assert not [one for one in workbench.registry.measurements.points(run_id) if one.loss is not None]


def test_too_few_cards_and_a_busy_one_are_refused_in_a_sentence():
    here = [Card(0, "H100", 70 << 30, 80 << 30), Card(1, "H100", 3 << 30, 80 << 30)]
    with pytest.raises(InvalidConfig, match=r"asks for 4 cards, and this machine has 2: H100, H100\. Choose"):
        require_cards(here, 4, 1 << 30)
    with pytest.raises(
        BaseTooLarge, match=r"Card 1 \(H100\) has 3\.0 of 80\.0 GiB free, and the base takes 15\.0"
    ):
        require_cards(here, 2, 15 << 30)
    with pytest.raises(InvalidConfig, match=r"no card here, and the processor has \d+ cores"):
        require_cards([], 1000, 0)
    require_cards(here, 2, 1 << 30)


def test_all_cards_are_named():
    assert all_named("H100", ["H100", "H100"]) == "2 × H100"
    assert all_named("H100", ["H100", "L4"]) == "H100, L4"
    assert all_named("Intel", []) == "Intel"


def test_the_engine_takes_such_a_run_and_lets_its_workers_go(workbench):
    run = workbench.training.start("llama", "data", TrainingOptions.parse({**QUICK, **TWO}), "both")
    assert workbench.runs.wait(run.id).state == FINISHED
    assert workbench.registry.find(Adapter, "both").steps == 40
    wait_for(lambda: not list(workbench.settings.cache.glob("workers-*")))


def test_runs_that_wait_together_are_spread_over_cards_and_learn_the_same_bits(workbench):
    own = TrainingOptions.parse({**QUICK, "max_steps": 8, "dropout": 0.2})
    alone = [
        workbench.training.start("llama", "data", _seeded(own, seed), f"alone-{seed}") for seed in (1, 2)
    ]
    assert [run.state for run in workbench.runs.wait_all([run.id for run in alone])] == [FINISHED] * 2
    workbench.preferences.change({"spread": 2})
    both = workbench.training.sweep("llama", "data", own, {"seed": ["1", "2"]}, "swept")
    assert [run.state for run in workbench.runs.wait_all([run.id for run in both])] == [FINISHED] * 2
    assert (workbench.settings.logs / "card-1.log").exists()
    digests = {one.name: one.digest for one in workbench.registry.all(Adapter)}
    assert [digests[run.name] for run in both] == [digests["alone-1"], digests["alone-2"]]


def _seeded(options, seed):
    return replace(options, train=replace(options.train, seed=seed))


def test_a_process_beside_the_engine_that_dies_interrupts_its_runs(workbench, monkeypatch):
    class Ended:
        code = None

        def poll(self):
            return self.code

    started = []
    monkeypatch.setattr(
        "app.engine.runs_apart.start_detached", lambda *about: started.append(about) or Ended()
    )
    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    workbench.preferences.change({"spread": 2})
    own = TrainingOptions.parse({**QUICK, "max_steps": 8})
    workbench.training.sweep("llama", "data", own, {"seed": ["1", "2", "3"]}, "swept")
    apart = RunsApart(workbench.settings, workbench.registry)
    here = apart.spread(workbench.registry.queue.next())
    (there,) = apart.run_ids
    assert len(here) == 2
    assert there not in [run.id for run in here]
    assert str(there) in started[0][1]
    assert apart.spread(here) == here  # no card is free
    workbench.registry.queue.claim(there)
    monkeypatch.setattr(Ended, "code", -9)
    apart.look()
    lost = workbench.registry.get(Run, there)
    assert lost.state == INTERRUPTED
    assert "on card 1 was killed (SIGKILL" in lost.reason
    assert not apart.run_ids
