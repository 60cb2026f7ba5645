"""Layers' inputs that wait in the host's memory, and what grows with the row computed in slices: both change
nothing that is learnt.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.data.formats import Example
from core.lora.config import LoraConfig
from core.train import memory
from core.train.batches import RunData, Shape
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.memory import ExecutionPlan, Tier, first_plan, keeping, needed
from core.train.offloading import HostStash
from core.train.slicing import in_slices, token_wise
from core.train.step import MicroBatchStep
from tests.core.helpers import load, load_float64, request

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 5)},
        ),
    )
    for i in range(12)
]
FULL = ExecutionPlan(Tier.FULL, compiled=False, captures=False)
OFFLOADED, SLICED = FULL.offloading(), FULL.slicing()
BOTH = OFFLOADED.slicing()


@pytest.fixture
def short_slices(monkeypatch):
    """A few tokens of all rows at a time, so that even short rows are several slices."""
    monkeypatch.setattr(
        "core.train.step.in_slices", lambda modules, begin: in_slices(modules, begin, tokens=13)
    )


def _learnt(monkeypatch, base, plan, runs=1, kind="lora", lora=None, **train):
    """The losses and gradients of a few micro-batches of runs that train under `plan`, from factors none of
    which is zero.
    """
    real, found = MicroBatchStep.train, []

    def watched(step, batch):
        if not found:
            torch.manual_seed(0)
            step.bank.flat.normal_(std=0.3)
            step.bank.refresh()
        before = step.bank.grad.clone()
        figures = real(step, batch)
        found.append((figures[:, 0].double(), (step.bank.grad - before).double()))
        return figures

    config = TrainConfig(
        **{"max_steps": 3, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-8, **train}
    )
    options = LoraConfig(kind=kind, rank=4, alpha=8, **(lora or {}))
    requests = [
        request(base, ROWS, replace(options, rank=4 - number), replace(config, seed=number), key=number)
        for number in range(runs)
    ]
    with monkeypatch.context() as patched:
        patched.setattr("core.train.executing.first_plan", lambda *about, **more: plan)
        patched.setattr(MicroBatchStep, "train", watched)
        for _, event in TrainingGroup(base, requests, most_runs=runs).run():
            if (error := getattr(event, "error", None)) is not None:
                raise error
    assert len(found) == 3
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("packing", "runs"), [("off", 1), ("on", 1), ("off", 3), ("on", 3)])
def test_offloading_is_bit_for_bit_what_recomputing_is(any_model, monkeypatch, packing, runs, dropout):
    base = load(any_model)
    how = {"runs": runs, "packing": packing, "max_length": 64, "lora": {"dropout": dropout}}
    wanted, offloaded = (_learnt(monkeypatch, base, plan, **how) for plan in (FULL, OFFLOADED))
    for one, other in zip(wanted, offloaded, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("packing", "runs"), [("off", 1), ("on", 1), ("off", 3), ("on", 3)])
@pytest.mark.usefixtures("short_slices")
def test_slices_give_the_losses_and_the_adapter_of_whole_rows(any_model, monkeypatch, packing, runs, dropout):
    base = load_float64(any_model)
    how = {"runs": runs, "packing": packing, "max_length": 64, "lora": {"dropout": dropout}}
    wanted, sliced = (_learnt(monkeypatch, base, plan, **how) for plan in (FULL, BOTH))
    has_float32_norms = type(base.model).__name__ != "GPT2LMHeadModel"  # of whatever dtype the rest is
    _assert_close(wanted, sliced, 1e-5 if has_float32_norms else 1e-12)


def _assert_close(wanted, found, tolerance):
    for one, other in zip(wanted, found, strict=True):
        for numbers, others in zip(one, other, strict=True):
            far, largest = float((numbers - others).abs().max()), float(numbers.abs().max())
            assert far <= tolerance * largest
