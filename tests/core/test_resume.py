"""A run that goes on from a checkpoint is the run that was never stopped, bit for bit."""

import dataclasses
import functools

import pytest
import torch

from core.data.formats import Example
from core.errors import InvalidInput
from core.events import EvalDone, StepDone
from core.lora.adapter import LayerFactors
from core.lora.config import LoraConfig
from core.lora.peft.files import load_adapter, save_adapter
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.run_state import STATE_NAME, RunState
from tests.core.helpers import load, poison, request

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


def _train_config(**options):
    return TrainConfig(
        max_steps=17,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.01,
        **options,
    )


def _flat(adapter):
    return torch.cat([factor.flatten() for layer in adapter.layers.values() for factor in (layer.A, layer.B)])


def _losses(events):
    return [(event.step, event.loss) for event in events if isinstance(event, (StepDone, EvalDone))]


def _run(base, train, resume=None, save_at=None, folder=None):
    """Train to the end, or to the checkpoint that is written after `save_at` steps. Factors and losses."""
    group = TrainingGroup(base, [dataclasses.replace(request(base, ROWS, LORA, train), resume=resume)])
    events, adapter = [], None
    for event in alone(group):
        events.append(event)
        if group.runs:
            adapter = group.adapter("run")
        reached = save_at is not None and isinstance(event, (StepDone, EvalDone)) and event.step == save_at
        if reached and group.told("run", save_at):
            state = group.state("run")
            (folder / "adapter").mkdir()
            save_adapter(folder / "adapter", group.adapter("run"))
            state.save(folder)
            group.stop("run")
    return adapter, events


def test_a_step_that_was_left_out_counts_after_resuming_as_before(tiny_llama, tmp_path, monkeypatch):
    train = _train_config(stop_on="")
    whole, _ = _poisoned_run(monkeypatch, load(tiny_llama), train)
    _poisoned_run(monkeypatch, load(tiny_llama), train, save_at=6, folder=tmp_path)
    base = load(tiny_llama)
    adapter, _ = _run(base, train, resume=_restored(base, tmp_path))
    assert torch.equal(_flat(adapter), _flat(whole))


def _poisoned_run(monkeypatch, base, train, **options):
    """_run() with gradients that are no numbers in the third step."""
    with monkeypatch.context() as patch:
        poison(patch, at_call=5)
        return _run(base, train, **options)


@pytest.fixture(scope="module")
def uninterrupted():
    """A function that trains a base of a folder to the end: its factors and losses, found once for each."""

    @functools.cache
    def whole(folder, train):
        adapter, events = _run(load(folder), train)
        return _flat(adapter), _losses(events)

    return whole


@pytest.fixture(scope="module")
def stopped_at_6(tiny_llama, tmp_path_factory):
    """The folder of a checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    _run(load(tiny_llama), _train_config(), save_at=6, folder=folder)
    return folder


def _restored(base, folder):
    return load_adapter(folder / "adapter", base.layer_shapes, base.head), RunState.load(folder)


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("save_at", [1, 5, 12])
def test_a_resumed_run_ends_bit_for_bit_like_the_uninterrupted_one(
    any_model, uninterrupted, tmp_path, packing, save_at
):
    base, train = load(any_model), _train_config(packing=packing, max_length=64)
    whole, losses = uninterrupted(any_model, train)
    _, before = _run(base, train, save_at=save_at, folder=tmp_path)
    resumed, after = _run(base, train, resume=_restored(base, tmp_path))
    assert _flat(resumed).equal(whole)
    steps = [one for one in _losses(before) if one[0] <= save_at] + _losses(after)
    assert sorted(set(steps)) == sorted(set(losses))
    assert [event.step for event in after if isinstance(event, StepDone)] == list(range(save_at + 1, 18))


@pytest.mark.parametrize("lost", ["mean", "square", "steps", "micro_batches", "factors"])
def test_each_part_of_the_state_is_needed(tiny_llama, uninterrupted, stopped_at_6, lost):
    """Left out, any of them gives another adapter: Adam's moments, schedule and place in the data, dropout's
    count, factors.
    """
    base, train = load(tiny_llama), _train_config()
    adapter, state = _restored(base, stopped_at_6)
    zeros = {
        path: {name: torch.zeros_like(tensor) for name, tensor in layer.items()}
        for path, layer in state.mean.items()
    }
    if lost in ("mean", "square"):
        state = dataclasses.replace(state, **{lost: zeros})
    elif lost == "factors":
        layers = {
            path: LayerFactors(layer.A * 1.001, layer.B, layer.scale)
            for path, layer in adapter.layers.items()
        }
        adapter = dataclasses.replace(adapter, layers=layers)
    else:
        state = dataclasses.replace(state, position=dataclasses.replace(state.position, **{lost: 0}))
    resumed, _ = _run(base, train, resume=(adapter, state))
    assert not _flat(resumed).equal(uninterrupted(tiny_llama, train)[0])


def test_a_checkpoint_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / STATE_NAME).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(InvalidInput, match="cannot be read"):
        RunState.load(tmp_path)
