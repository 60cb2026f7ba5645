"""What a run's measurements give cause for, changes on the way, and smaller plans."""

import math
from dataclasses import replace

import pytest

from core.errors import InvalidConfig
from core.train.alerts import Watch
from core.train.changes import ChangingConfig
from core.train.config import TrainConfig
from core.train.memory import ExecutionPlan, Tier
from core.train.step_count import smaller_plans


def _kinds(alerts):
    return [one.kind for one in alerts]


def test_a_spike_is_told_once_and_ordinary_noise_is_not():
    watch, told = Watch(patience=3), []
    for step in range(1, 100):
        noise = 0.2 * math.sin(step * 12.9898)
        told += watch.step(step, 2.0 + noise + (9.0 if step in (60, 61) else 0.0), 1.0)
    assert _kinds(told) == ["spike"]
    assert "Step 60" in told[0].text
    assert "11" in told[0].text


def test_a_falling_curve_and_a_flat_one_are_no_spikes():
    for loss in (
        lambda step: 5.0 / step,
        lambda step: 1.0 + 1e-9 * (step % 3),
        lambda step: 1.0 + 0.3 * (step % 2),
    ):
        watch = Watch(patience=3)
        assert [watch.step(step, loss(step), 1.0) for step in range(1, 200)] == [[]] * 199


def test_nan_and_dead_gradients_are_told():
    watch = Watch(patience=3)
    assert _kinds(watch.step(1, math.nan, 1.0)) == ["nan"]
    assert _kinds(watch.step(2, 1.0, math.inf)) == ["nan"]
    told = [_kinds(watch.step(step, 1.0, 0.0)) for step in range(3, 8)]
    assert told == [[], [], ["zero-gradient"], [], []]


def test_overfitting_and_no_improvement_wait_for_the_patience():
    watch, told = Watch(patience=2), []
    for step, loss in enumerate([3.0, 2.0, 2.5, 2.6, 2.7, 1.9, 2.0, 1.95]):
        told += [(step, kind) for kind in _kinds(watch.evaluation(step, loss))]
    assert told == [(3, "overfitting"), (3, "no-improvement"), (7, "no-improvement")]


def test_a_validation_loss_that_is_no_number_is_told_and_not_compared_with():
    watch, told = Watch(patience=2), []
    for step, loss in enumerate([math.nan, 3.0, math.inf, 2.0, math.nan, 2.5, 2.6]):
        told += [(step, kind) for kind in _kinds(watch.evaluation(step, loss))]
    assert told == [(0, "nan"), (2, "nan"), (4, "nan"), (6, "overfitting"), (6, "no-improvement")]


def test_changes_count_from_their_step_on_and_repeat():
    config = ChangingConfig(TrainConfig(learning_rate=1e-3, epochs=2.0))
    done = [config.change(10, {"learning_rate": "5e-4"}), config.change(20, {"epochs": 5})]
    again = ChangingConfig(TrainConfig(learning_rate=1e-3, epochs=2.0), done)
    for one in (config, again):
        assert [one.at(step).learning_rate for step in (-1, 0, 9, 10, 25)] == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4]
        assert [one.at(step).epochs for step in (0, 19, 20)] == [2.0, 2.0, 5.0]


def test_planning_by_epochs_ends_planning_by_steps():
    config = ChangingConfig(TrainConfig(max_steps=100))
    config.change(5, {"epochs": 2})
    assert config.at(5).max_steps == 0
    assert config.at(4).max_steps == 100


_REFUSED = [
    ({}, "Nothing to change"),
    ({"rank": 4}, "rank cannot change"),
    ({"learning_rate": 7}, "learning_rate must be"),
    ({"epochs": "x"}, "a number"),
]


@pytest.mark.parametrize(("values", "said"), _REFUSED)
def test_changes_that_cannot_be_are_refused(values, said):
    with pytest.raises(InvalidConfig, match=said):
        ChangingConfig(TrainConfig()).change(1, values)


def test_an_alert_that_does_not_exist_is_refused():
    with pytest.raises(InvalidConfig, match="no alert 'nann'"):
        TrainConfig(stop_on="nann")


def test_smaller_plans_go_down_to_one_block_with_everything_recomputed():
    plan, seen = ExecutionPlan(Tier.KEEP, compiled=False), []
    while (smaller := plan.smaller(blocks=8, tokens=8 * 1024)) is not None:
        plan = smaller
        seen.append((plan.tier, plan.pieces))
    assert seen == [(Tier.KEEP, 2), (Tier.KEEP, 4), (Tier.FULL, 4), (Tier.FULL, 8)]
    assert "in 8 pieces" in plan.sentence


def test_offered_plans_keep_the_effective_batch():
    config = TrainConfig(micro_batch_size=6, gradient_accumulation_steps=4, max_length=1024)
    offered = dict(smaller_plans(config))
    assert offered["Micro-batch 3, accumulation 8"] == {
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 8,
    }
    assert offered["Gradient checkpointing"] == {"gradient_checkpointing": "on"}
    assert offered["Max length 512"] == {"max_length": 512}
    smallest = TrainConfig(micro_batch_size=1, max_length=64, gradient_checkpointing="on")
    assert [change for _, change in smaller_plans(smallest)] == [{"quantisation": "nf4"}]
    assert smaller_plans(replace(smallest, quantisation="nf4")) == []
