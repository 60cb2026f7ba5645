"""Memory that runs out in mid-run, measuring beforehand, steps that are not finite, and changes while a run
is under way.
"""

import functools
import math

import pytest
import torch

from core.data.formats import Example
from core.events import EvalDone, Notice, StepDone
from core.lora.config import LoraConfig
from core.train.changes import Change
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.memory import ran_out_of_memory
from core.train.preflight import measure
from core.train.step import MicroBatchStep
from tests.core.helpers import CLOSE, load, load_float64, poison, request

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 5)},
        ),
    )
    for i in range(23)
]
LORA = LoraConfig(rank=4, alpha=8, dropout=0.2)
TRAIN = TrainConfig(
    max_steps=8, micro_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-3, eval_steps=4
)


def _flat(adapter):
    return torch.cat([one.flatten() for layer in adapter.layers.values() for one in layer.tensors.values()])


def _train(base, *configs, between=None):
    """Train runs at once; their adapters and events by number. `between` is called after each event."""
    requests = [request(base, ROWS, LORA, config, key=number) for number, config in enumerate(configs)]
    group, adapters, events = (
        TrainingGroup(base, requests),
        {},
        {number: [] for number in range(len(configs))},
    )
    for key, event in group.run():
        if key is not None:
            events[key].append(event)
        for run in group.runs:
            adapters[run.key] = group.adapter(run.key)
        if between:
            between(group, key, event)
    return adapters, events


def _losses(events):
    return [event.loss for event in events if isinstance(event, (StepDone, EvalDone))]


class _Limited:
    """Makes the step fail as the allocator does where a batch has more rows than there is memory for."""

    def __init__(self, monkeypatch, rows, from_call=0, backward=False):
        self.failed = self.calls = 0
        real = MicroBatchStep._plain

        def plain(step, batch):
            self.calls += 1
            if self.calls > from_call and batch.ids.shape[0] > rows:
                self.failed += 1
                if backward:  # gradients of this micro-batch are half there when it happens
                    step.bank.grad.add_(1.0)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(step, batch)

        monkeypatch.setattr(MicroBatchStep, "_plain", plain)


@pytest.fixture(scope="module")
def with_enough():
    """A function that trains a base of a folder: its adapters and losses, found once for each."""

    @functools.cache
    def whole(folder, *configs):
        adapters, events = _train(load_float64(folder), *configs)
        return [_flat(one) for one in adapters.values()], [_losses(one) for one in events.values()]

    return whole


@pytest.mark.parametrize("from_call", [0, 5])
@pytest.mark.parametrize("runs", [1, 3])
def test_a_step_is_done_again_in_smaller_pieces_with_the_same_result(
    any_model, with_enough, monkeypatch, from_call, runs
):
    base = load_float64(any_model)
    # Four steps are more than an epoch, with two evaluations.
    shorter = {**TRAIN.to_dict(), "max_steps": 4, "eval_steps": 2}
    configs = [TrainConfig(**{**shorter, "seed": seed}) for seed in range(runs)]
    whole, losses = with_enough(any_model, *configs)
    limited = _Limited(monkeypatch, rows=runs, from_call=from_call, backward=True)
    pieces, smaller = _train(base, *configs)
    assert limited.failed
    for number in range(runs):
        torch.testing.assert_close(_flat(pieces[number]), whole[number], **CLOSE)
        assert _losses(smaller[number]) == pytest.approx(losses[number], rel=1e-6)
        told = [event.text for event in smaller[number] if isinstance(event, Notice)]
        assert any("in 4 pieces" in text for text in told), told


def test_where_nothing_helps_the_error_comes_out(tiny_llama, monkeypatch):
    _Limited(monkeypatch, rows=0, from_call=5)
    with pytest.raises(torch.OutOfMemoryError):
        _train(load(tiny_llama), TRAIN)


_CPU = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError(_CPU)])
def test_every_way_to_run_out_of_memory_is_known(error):
    assert ran_out_of_memory(error)
    assert not ran_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_evaluations_go_on_in_pieces_too(tiny_llama, monkeypatch):
    base, real = load(tiny_llama), MicroBatchStep.evaluate
    requests = [request(base, ROWS, LORA, TRAIN, validation_rows=6)]
    expected = _losses(
        [event for event in alone(TrainingGroup(base, requests)) if isinstance(event, EvalDone)]
    )

    def evaluate(step, batch):
        if batch.ids.shape[0] > 2:
            raise torch.OutOfMemoryError("no")
        return real(step, batch)

    monkeypatch.setattr(MicroBatchStep, "evaluate", evaluate)
    found = _losses([event for event in alone(TrainingGroup(base, requests)) if isinstance(event, EvalDone)])
    assert found == pytest.approx(expected, rel=1e-5)


def test_measuring_leaves_the_base_as_it_was_and_tells_what_a_run_takes(tiny_llama):
    base = load(tiny_llama)
    before = base.model(torch.arange(3, 13)[None]).logits
    saved = []
    *paused, found = measure(base, [request(base, ROWS, LORA, TRAIN)], lambda *state: saved.append(state))
    assert len(saved) == 1
    shares = [one.share for one in paused]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    assert (found.fits, found.squeezed, found.steps, found.together) == (True, False, 8, 1)
    assert 0 < found.peak_bytes < found.total_bytes
    assert found.seconds > 8 * found.seconds_a_step > 0
    assert torch.equal(base.model(torch.arange(3, 13)[None]).logits, before)


def _forget(*state):
    """A checkpoint that is not written."""


def test_measuring_says_what_does_not_fit(tiny_llama, monkeypatch):
    base = load(tiny_llama)
    _Limited(monkeypatch, rows=1)
    *_, squeezed = measure(base, [request(base, ROWS, LORA, TRAIN)], _forget)
    assert (squeezed.fits, squeezed.squeezed) == (True, True)
    _Limited(monkeypatch, rows=0)
    *_, nothing = measure(base, [request(base, ROWS, LORA, TRAIN)], _forget)
    assert not nothing.fits
    assert "one block at a time" in nothing.notices[-1]


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_one_step_that_is_no_number_is_left_out_where_it_only_tells(tiny_llama, monkeypatch, kind):
    """It changes nothing; what AdaLoRA leaves of its ranks follows its schedule."""
    poison(monkeypatch, at_call=5)
    train = TrainConfig(**{**TRAIN.to_dict(), "stop_on": ""})
    base = load(tiny_llama)
    group = TrainingGroup(base, [request(base, ROWS, LoraConfig(kind, rank=4), train, key=0)])
    losses, factors, moments = [], [], []
    for _, event in group.run():
        if isinstance(event, StepDone):
            losses.append(event.loss)
            factors.append(_flat(group.adapter(0)))
            moments.append(torch.cat([one.flatten() for one in _leaves(group.state(0).mean)]))
    assert [math.isnan(one) for one in losses] == [False, False, True] + [False] * 5
    assert kind == "adalora" or torch.equal(factors[2], factors[1])
    assert torch.equal(moments[2], moments[1])
    assert not torch.equal(factors[3], factors[2])
    assert all(torch.isfinite(one).all() for one in factors)


def _leaves(by_layer):
    return [one for tensors in by_layer.values() for one in tensors.values()]


def test_a_change_on_the_way_counts_from_the_next_step_and_can_be_repeated(tiny_llama):
    base, made = load(tiny_llama), []

    def change(group, key, event):
        if isinstance(event, StepDone) and event.step == 3:
            made.append(group.change(0, learning_rate=5e-4, max_steps=6))

    adapters, events = _train(base, TRAIN, between=change)
    steps = [event for event in events[0] if isinstance(event, StepDone)]
    assert len(steps) == 6
    assert steps[2].learning_rate > 5e-4 >= steps[3].learning_rate
    assert made == [Change(3, {"learning_rate": 5e-4, "max_steps": 6})]
    import dataclasses

    again = dataclasses.replace(request(base, ROWS, LORA, TRAIN, key=0), changes=made)
    group = TrainingGroup(base, [again])
    for _ in alone(group):
        if group.runs:
            repeated = group.adapter(0)
    assert _flat(repeated).equal(_flat(adapters[0]))
