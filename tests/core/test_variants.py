"""The adapter kinds beside plain LoRA: PEFT as the oracle, together as alone, resumed as never stopped."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from core.data.formats import Example
from core.events import Prepared, RunFailed, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS
from core.lora.peft.files import load_adapter, save_adapter
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.training_options import TrainingOptions
from tests.core.helpers import load, load_float64, peft_from, peft_loss, token_rows

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 4)},
        ),
    )
    for i in range(24)
]
TRAIN: dict[str, Any] = {"micro_batch_size": 2, "max_length": 96, "learning_rate": 5e-3, "weight_decay": 0.01}


@dataclass(frozen=True)
class Case:
    """A kind with options of its own."""

    kind: str
    own: dict[str, Any] = dataclasses.field(default_factory=dict)
    lora: dict[str, Any] = dataclasses.field(default_factory=dict)

    def options(self, rank: int = 4, lora: Any = (), **train: Any) -> TrainingOptions:
        config = LoraConfig(**{"kind": self.kind, "rank": rank, "alpha": 8, **self.lora, **dict(lora)})
        own = ADAPTER_KINDS.get(self.kind).options(**self.own)
        return TrainingOptions(config, TrainConfig(**{**TRAIN, **train}), own)


CASES = {"lora-fa": Case("lora", {"freeze_a": True})}
PLAIN = Case("lora")


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def _request(base, options, key="run", validation_rows=0, **about) -> RunRequest:
    rows = token_rows(base, ROWS, options.train.max_length, validation_rows)
    return RunRequest(key, rows, options, **about)


@dataclass
class Trained:
    """What came of runs, by key."""

    start: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapters: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: dict[str, list[StepDone]] = dataclasses.field(default_factory=dict)

    def losses(self, key="run"):
        return [one.loss for one in self.steps[key]]


def _train(base, requests, save_at=None, folder=None) -> Trained:
    """Train to the end; what a checkpoint holds is written after step `save_at`."""
    group, found = TrainingGroup(base, requests), Trained()
    for key, event in group.run():
        assert not isinstance(event, RunFailed), event.error
        if isinstance(event, Prepared):
            found.start[key] = group.adapter(key)
        if isinstance(event, StepDone):
            found.steps.setdefault(key, []).append(event)
            if event.step == save_at:
                save_adapter(folder, group.adapter(key))
                group.state(key).save(folder)
        if isinstance(event, TrainingDone):
            found.adapters[key] = group.adapter(key)
    return found


def _same(one, other, **tolerance) -> None:
    assert list(one.layers) == list(other.layers)
    for path, layer in one.layers.items():
        assert layer.scale == pytest.approx(other.layers[path].scale)
        for name, tensor in layer.tensors.items():
            torch.testing.assert_close(tensor, other.layers[path].tensors[name], **tolerance)


def test_together_and_beside_plain_lora_it_learns_what_it_learns_alone(tiny_llama, case):
    base = load_float64(tiny_llama)
    runs = {
        "first": case.options(max_steps=6),
        "plain": PLAIN.options(rank=3, max_steps=4, seed=5),
        "second": case.options(2, {"target_modules": "q_proj,down_proj"}, max_steps=5, seed=7),
    }
    together = _train(base, [_request(base, options, key) for key, options in runs.items()])
    for key, options in runs.items():
        alone = _train(base, [_request(base, options, key)])
        assert together.losses(key) == pytest.approx(alone.losses(key), rel=1e-5)
        _same(together.adapters[key], alone.adapters[key], atol=1e-5, rtol=1e-5)
        assert together.losses(key)[-1] < together.losses(key)[0]


def test_it_goes_on_from_a_checkpoint_bit_for_bit(any_model, case, tmp_path):
    base = load(any_model)
    options = case.options(max_steps=7, gradient_accumulation_steps=2)
    whole = _train(base, [_request(base, options)], save_at=3, folder=tmp_path).adapters["run"]
    resume = load_adapter(tmp_path, base.layer_shapes, base.head), RunState.load(tmp_path)
    _same(_train(base, [_request(base, options, resume=resume)]).adapters["run"], whole, atol=0, rtol=0)


def _peft_losses(model, base, options, steps, trained):
    """A plain PEFT training loop over the same batches at the same rates; `trained` says what learns."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=options.train.weight_decay)
    rows, losses = token_rows(base, ROWS, options.train.max_length, 0), []
    for done, step in zip(steps, RunData(rows, options.train).steps(), strict=False):
        optimiser.zero_grad()
        total = 0.0
        for part in step.micro_batches:
            loss = peft_loss(model, part)
            (loss * part.weight).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, options.train.max_grad_norm)
        optimiser.param_groups[0]["lr"] = done.learning_rate
        optimiser.step()
        losses.append(total / step.supervised)
    return losses


@pytest.mark.parametrize(("name", "trained"), [("lora-fa", ["lora_B"])])
def test_twenty_steps_from_the_same_start_give_pefts_losses(any_model, name, trained, tmp_path):
    base, options = load(any_model), CASES[name].options(max_steps=20)
    found = _train(base, [_request(base, options)])
    save_adapter(tmp_path, found.start["run"])
    theirs = _peft_losses(peft_from(any_model, tmp_path), base, options, found.steps["run"], trained)
    assert found.losses() == pytest.approx(theirs, abs=1e-4)
    assert found.losses()[-1] < found.losses()[0] - 0.1


def test_lora_fa_leaves_a_as_it_was_drawn(tiny_llama):
    base = load(tiny_llama)
    found = _train(base, [_request(base, CASES["lora-fa"].options(max_steps=3))])
    for path, layer in found.adapters["run"].layers.items():
        assert layer.A.equal(found.start["run"].layers[path].A)
        assert layer.B.any()
