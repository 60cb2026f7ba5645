"""An adapter that learns on top of another one: what it learns is what it would learn on the merged base."""

from dataclasses import replace

import pytest
import torch

from core.errors import InvalidAdapter, InvalidConfig
from core.events import Prepared, StepDone
from core.lora.adapter import LayerFactors
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import TrainingRun
from core.train.training_options import TrainingOptions
from tests.core.helpers import CLOSE, load, load_float64, random_adapter, request
from tests.core.test_group import _follow, _rows

ROWS = _rows("hello", 12)
TRAIN = TrainConfig(max_steps=4, micro_batch_size=2, max_length=96, learning_rate=5e-3, seed=1)
LORA = LoraConfig(rank=2, alpha=8, target_modules="q_proj,k_proj", on_top_of="style")


def _style(base):
    """An adapter on q_proj, which the new one is on too, and on down_proj, which it is not."""
    whole = random_adapter(base, rank=3, alpha=3.0)  # a quarter of the new scale: exact in float32
    layers = {path: one for path, one in whole.layers.items() if path.endswith(("q_proj", "down_proj"))}
    return replace(whole, layers=layers)


def _merged(folder, style):
    base = load_float64(folder)
    for path, one in style.layers.items():
        weight = base.layers[path].base.weight
        delta = one.scale * one.B.double() @ one.A.double()
        weight += delta.T if base.layers[path].transposed else delta
    return base


def _learnt(base, lora, below=None, others=(), **more):
    run = replace(request(base, ROWS, lora, TRAIN, validation_rows=2), below=below, **more)
    adapters, events = _follow(TrainingGroup(base, [run, *others]))
    return adapters["run"], events["run"]


def _losses(events):
    return [event.loss for event in events if isinstance(event, StepDone)]


def test_it_learns_what_it_would_on_the_merged_base_and_the_other_stays(tiny_llama):
    base = load_float64(tiny_llama)
    style = _style(base)
    found, events = _learnt(base, LORA, style)
    expected, theirs = _learnt(_merged(tiny_llama, style), replace(LORA, on_top_of=""))
    assert _losses(events) == pytest.approx(_losses(theirs), rel=1e-6)
    assert set(found.layers) == {*style.layers, *expected.layers}
    for path, one in found.layers.items():
        new, old = expected.layers.get(path), style.layers.get(path)
        rank = 2 if new else 0
        if new:
            torch.testing.assert_close(one.A[:rank], new.A, **CLOSE)
            torch.testing.assert_close(one.B[:, :rank], new.B, **CLOSE)
        if old:
            assert one.A[rank:].equal(old.A.double())
            torch.testing.assert_close(
                one.scale * one.B[:, rank:], old.scale * old.B.double(), atol=1e-7, rtol=1e-6
            )
    (prepared,) = [event for event in events if isinstance(event, Prepared)]
    assert prepared.start_change == 0.0  # of its own part
    assert prepared.trainable_parameters == sum(
        one.A.numel() + one.B.numel() for one in expected.layers.values()
    )


def test_beside_others_it_learns_the_same(tiny_llama):
    base = load_float64(tiny_llama)
    style = _style(base)
    alone, _ = _learnt(base, LORA, style)
    other = request(base, _rows("fox", 12), LoraConfig(rank=5, alpha=3), TRAIN, key="other")
    beside, _ = _learnt(base, LORA, style, [other])
    for path, one in alone.layers.items():
        torch.testing.assert_close(beside.layers[path].A, one.A, **CLOSE)
        torch.testing.assert_close(beside.layers[path].B, one.B, **CLOSE)


def test_after_a_break_it_goes_on_to_the_same_bits(tiny_llama):
    base = load(tiny_llama)
    style, kept = _style(base), []
    alone, _ = _learnt(base, LORA, style)
    group = TrainingGroup(base, [replace(request(base, ROWS, LORA, TRAIN, validation_rows=2), below=style)])
    _follow(
        group,
        lambda key, event: (
            kept.append((group.adapter(key), group.state(key)))
            if isinstance(event, StepDone) and event.step == 2
            else None
        ),
    )
    resumed, _ = _learnt(base, LORA, resume=kept[0])
    for path, one in alone.layers.items():
        assert resumed.layers[path].A.equal(one.A)
        assert resumed.layers[path].B.equal(one.B)


def test_what_cannot_be_learnt_on_is_refused(tiny_llama):
    base = load(tiny_llama)
    style = _style(base)
    head = replace(style, head={"lm_head.weight": torch.zeros(1)})
    with pytest.raises(InvalidAdapter, match="whole parameters of its own"):
        TrainingRun(base, replace(request(base, ROWS, LORA, TRAIN), below=head))
    stray = replace(style, layers={"model.norm": LayerFactors(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    with pytest.raises(InvalidConfig, match=r"factors on model\.norm"):
        TrainingRun(base, replace(request(base, ROWS, LORA, TRAIN), below=stray))
    for changes, said in (({"kind": "dora"}, "plain LoRA alone"), ({"dropout": 0.1}, "dropout")):
        with pytest.raises(InvalidConfig, match=said):
            replace(LORA, **changes)
    for changes, said in (({"weight_decay": 0.1}, "weight decay"), ({"objective": "classification"}, "head")):
        with pytest.raises(InvalidConfig, match=said):
            TrainingOptions(LORA, replace(TRAIN, **changes))
