"""When a run of a group ends, and what that leaves to the others."""

import pytest
import torch

from core.events import EvalDone, MicroBatchDone, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from tests.core.helpers import load, request
from tests.core.test_group import SHARED, _follow, _rows

LORA = LoraConfig(rank=4, alpha=8)


def _request(base, key="run", count=20, **train):
    return request(base, _rows("hello", count), LORA, TrainConfig(**SHARED | train), key=key)


def _steps(events):
    return [event for event in events if isinstance(event, StepDone)]


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_a_plan_that_is_shortened_behind_what_is_done_ends_the_run_there(tiny_llama, scheduler):
    base = load(tiny_llama)
    group = TrainingGroup(base, [_request(base, max_steps=10, eval_steps=3, lr_scheduler=scheduler)])

    def shorten(key, event):
        if isinstance(event, StepDone) and event.step == 4:
            group.change(key, max_steps=2)

    _, events = _follow(group, shorten)
    assert [event.step for event in _steps(events["run"])] == [1, 2, 3, 4]
    assert min(event.learning_rate for event in _steps(events["run"])) > 0
    assert [event.step for event in events["run"] if isinstance(event, EvalDone)] == [0, 3, 4]
    assert isinstance(events["run"][-1], TrainingDone)


def test_a_step_under_way_when_its_plan_is_shortened_learns_no_more(tiny_llama):
    base = load(tiny_llama)
    group = TrainingGroup(base, [_request(base, max_steps=10, gradient_accumulation_steps=2)])

    def shorten(key, event):
        if isinstance(event, MicroBatchDone) and (group.runs[0].done, group.runs[0].place) == (4, 1):
            group.change(key, max_steps=2)

    _, events = _follow(group, shorten)
    rates = [event.learning_rate for event in _steps(events["run"])]
    assert len(rates) == 5
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_run_that_goes_on_from_its_last_step_is_over(tiny_llama):
    base, kept = load(tiny_llama), []
    group = TrainingGroup(base, [_request(base, max_steps=4, lr_scheduler="constant")])

    def keep(key, event):
        if isinstance(event, StepDone) and event.step == 4:
            kept.extend((group.adapter(key), group.state(key)))

    _follow(group, keep)
    about = _request(base, max_steps=4, lr_scheduler="constant")
    adapters, events = _follow(
        TrainingGroup(base, [RunRequest("run", about.rows, about.options, resume=tuple(kept))])
    )
    assert not _steps(events["run"])
    assert events["run"][-1].steps == 4
    for path, layer in kept[0].layers.items():
        assert torch.equal(adapters["run"].layers[path].B, layer.B)


def test_one_that_is_stopped_while_several_evaluate_leaves_the_others_theirs(tiny_llama):
    base = load(tiny_llama)
    requests = [_request(base, key, 60, max_steps=2, eval_steps=2) for key in ("stopped", "other")]
    group, evaluated = TrainingGroup(base, requests), []

    def stop(key, event):
        if isinstance(event, MicroBatchDone):
            evaluated.append(event)
            if len(evaluated) == 1:  # of the evaluation before the first step
                group.stop("stopped")

    _, events = _follow(group, stop)
    assert [event.step for event in events["other"] if isinstance(event, EvalDone)] == [0, 2]
    assert not any(isinstance(event, EvalDone) for event in events["stopped"])


def test_a_run_that_was_stopped_can_be_added_again(tiny_llama):
    base, kept = load(tiny_llama), []
    group = TrainingGroup(base, [_request(base, "it", max_steps=3), _request(base, "other", max_steps=6)])

    def stop_and_go_on(key, event):
        if key == "it" and isinstance(event, StepDone) and event.step == 1:
            group.stop("it")
        if key == "it" and isinstance(event, TrainingDone) and event.stopped:
            about = _request(base, "it", max_steps=3)
            kept.append(RunRequest("it", about.rows, about.options, (group.adapter("it"), group.state("it"))))
        if key == "other" and kept:
            group.add(kept.pop())

    _, events = _follow(group, stop_and_go_on)
    assert [event.step for event in _steps(events["it"])] == [1, 2, 3]
    assert not events["it"][-1].stopped
