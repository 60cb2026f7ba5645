"""Several runs at once: each learns exactly what it would learn alone."""

import pytest
import torch

from core.data.formats import Example
from core.errors import InvalidConfig, TrainingDiverged
from core.events import EvalDone, RunFailed, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from tests.conftest import _save
from tests.core.families import tiny_model
from tests.core.helpers import CLOSE, load, load_float64, request, train_alone


def _rows(word, count):
    return [
        Example(
            i,
            (
                {"role": "user", "content": f"{word} {i}"},
                {"role": "assistant", "content": f"{word} fine " * (1 + i % 5)},
            ),
        )
        for i in range(count)
    ]


SHARED = {"micro_batch_size": 2, "max_length": 96, "learning_rate": 5e-3}
RUNS = {
    "plain": (_rows("hello", 20), LoraConfig(rank=4, alpha=8), TrainConfig(max_steps=6, seed=1, **SHARED)),
    "small": (
        _rows("world", 30),
        LoraConfig(rank=2, alpha=8, use_rslora=True, target_modules="q_proj,v_proj"),
        TrainConfig(max_steps=4, gradient_accumulation_steps=2, lr_scheduler="linear", seed=2, **SHARED),
    ),
    "large": (
        _rows("fox", 25),
        LoraConfig(rank=7, alpha=3, rank_pattern="k_proj=3"),
        TrainConfig(
            max_steps=8,
            gradient_accumulation_steps=3,
            weight_decay=0.1,
            max_grad_norm=0.1,
            seed=3,
            loraplus_lr_ratio=4,
            **SHARED,
        ),
    ),
}


def _with(lora_changes=None, **train_changes):
    """The three runs, changed alike."""
    return {
        key: (
            rows,
            LoraConfig(**{**lora.to_dict(), **(lora_changes or {})}),
            TrainConfig(**{**train.to_dict(), **train_changes}),
        )
        for key, (rows, lora, train) in RUNS.items()
    }


def _train(base, runs, **options):
    """All runs in one group: their adapters, losses by step, and last events."""
    group = TrainingGroup(base, [request(base, *parts, key=key) for key, parts in runs.items()], **options)
    return _follow(group)


def _follow(group, at=lambda key, event: None):
    adapters, events = {}, {}
    for key, event in group.run():
        events.setdefault(key, []).append(event)
        if isinstance(event, TrainingDone):
            adapters[key] = group.adapter(key)
        at(key, event)
    return adapters, events


def _assert_same(found, expected):
    """Both trained in float64; see load_float64()."""
    assert list(found.layers) == list(expected.layers)
    for path, factors in expected.layers.items():
        assert factors.A.dtype == factors.B.dtype == torch.float64
        torch.testing.assert_close(found.layers[path].A, factors.A, **CLOSE)
        torch.testing.assert_close(found.layers[path].B, factors.B, **CLOSE)
        assert found.layers[path].scale == factors.scale


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_together_equals_each_alone(tiny_llama, dropout, packing):
    base, runs = load_float64(tiny_llama), _with({"dropout": dropout}, packing=packing)
    together, events = _train(base, runs)
    for key, parts in runs.items():
        alone, its_events = train_alone(base, *parts)
        _assert_same(together[key], alone)
        _assert_same_figures(events[key], its_events, rel=1e-6)  # losses are added up in float32


def _assert_same_figures(found, expected, rel):
    for kind, field in ((StepDone, "loss"), (StepDone, "grad_norm"), (EvalDone, "loss")):
        figures = [
            [getattr(event, field) for event in events if isinstance(event, kind)]
            for events in (found, expected)
        ]
        assert figures[0] == pytest.approx(figures[1], rel=rel)


def test_dropout_of_layers_that_are_given_tokens_in_a_row_is_each_runs_own(tmp_path, tokenizer):
    """OPT's fc1 and fc2; beside longer rows their tokens stand elsewhere."""
    torch.manual_seed(0)
    base = load_float64(_save(tiny_model("opt"), tokenizer, tmp_path / "opt"))
    lora, train = LoraConfig(rank=4, alpha=8, dropout=0.3), TrainConfig(max_steps=3, packing="off", **SHARED)
    runs = {"short": (_rows("hello", 9)[:4], lora, train), "long": (_rows("world", 9)[4:], lora, train)}
    together, _ = _train(base, runs)
    for key, parts in runs.items():
        _assert_same(together[key], train_alone(base, *parts)[0])


def test_together_equals_each_alone_in_float32(tiny_llama):
    """Losses and gradients of every step, which rounding moves by little, and of each factor what it cannot
    exceed: where a gradient is nearly zero, it may go up in one run and down in the other, by the rate, in
    every step.
    """
    base, runs = load(tiny_llama), _with({"dropout": 0.3})
    together, events = _train(base, runs)
    for key, parts in runs.items():
        alone, its_events = train_alone(base, *parts)
        _assert_same_figures(events[key], its_events, rel=1e-4)
        # In the first ten steps one of Adam's is at most 1.05 times the rate: by Cauchy and Schwarz, since
        # the weights in its two means are nearly even.
        furthest = 1.05 * 2 * sum(event.learning_rate for event in its_events if isinstance(event, StepDone))
        for path, factors in alone.layers.items():
            assert (together[key].layers[path].A - factors.A).abs().max() < furthest
            assert (together[key].layers[path].B - factors.B).abs().max() < (
                furthest * parts[2].loraplus_lr_ratio
            )


@pytest.mark.parametrize("name", ["tiny_qwen", "tiny_gpt2"])
def test_together_equals_each_alone_on_other_architectures(request, name):
    base = load_float64(request.getfixturevalue(name))
    runs = {
        key: (rows, LoraConfig(rank=rank, dropout=0.2), TrainConfig(max_steps=4, seed=rank, **SHARED))
        for rank, (key, (rows, _, _)) in enumerate(RUNS.items(), start=2)
    }
    together, _ = _train(base, runs)
    for key, parts in runs.items():
        _assert_same(together[key], train_alone(base, *parts)[0])


def test_a_run_that_joins_later_learns_the_same(tiny_llama):
    base, runs = load_float64(tiny_llama), _with({"dropout": 0.3})
    late = request(base, *runs["large"], key="large")
    group = TrainingGroup(base, [request(base, *runs[key], key=key) for key in ("plain", "small")])

    def at(key, event):
        if key == "plain" and isinstance(event, StepDone) and event.step == 3:
            group.add(late)

    adapters, _ = _follow(group, at)
    assert set(adapters) == set(runs)
    for key, parts in runs.items():
        _assert_same(adapters[key], train_alone(base, *parts)[0])


def test_runs_wait_for_room_in_the_group(tiny_llama):
    base, runs = load_float64(tiny_llama), _with()
    adapters, _ = _train(base, runs, most_runs=2)
    for key, parts in runs.items():
        _assert_same(adapters[key], train_alone(base, *parts)[0])


def test_stopping_one_run_leaves_the_others_as_they_are(tiny_llama):
    base, runs = load_float64(tiny_llama), _with()
    group = TrainingGroup(base, [request(base, *parts, key=key) for key, parts in runs.items()])

    def at(key, event):
        if key == "large" and isinstance(event, StepDone) and event.step == 2:
            group.stop("large")

    adapters, events = _follow(group, at)
    last = events["large"][-1]
    assert (last.steps, last.stopped) == (2, True)
    assert adapters["large"].is_trained()
    for key in ("plain", "small"):
        _assert_same(adapters[key], train_alone(base, *runs[key])[0])


def test_a_run_that_diverges_fails_alone(tiny_llama):
    base, runs = load_float64(tiny_llama), _with()
    group = TrainingGroup(base, [request(base, *parts, key=key) for key, parts in runs.items()])

    def at(key, event):
        if key == "small" and isinstance(event, StepDone) and event.step == 1:
            with torch.no_grad():
                group.bank.flat[1].fill_(float("nan"))

    adapters, events = _follow(group, at)
    failed = events["small"][-1]
    assert isinstance(failed, RunFailed)
    assert isinstance(failed.error, TrainingDiverged)
    for key in ("plain", "large"):
        _assert_same(adapters[key], train_alone(base, *runs[key])[0])


def test_a_run_that_cannot_share_a_batch_fails_with_the_difference(tiny_llama):
    base, runs = load(tiny_llama), _with()
    rows, lora, train = runs["large"]
    runs["large"] = (rows, lora, TrainConfig(**{**train.to_dict(), "micro_batch_size": 3}))
    adapters, events = _train(base, runs)
    assert set(adapters) == {"plain", "small"}
    error = events["large"][-1].error
    assert isinstance(error, InvalidConfig)
    assert "3 rows" in str(error)
    assert "2 rows" in str(error)


def test_a_run_with_a_fault_of_its_own_fails_before_it_starts(tiny_llama):
    base, runs = load(tiny_llama), _with()
    runs["small"] = (runs["small"][0], LoraConfig(target_modules="nope"), runs["small"][2])
    adapters, events = _train(base, runs)
    assert set(adapters) == {"plain", "large"}
    assert "'nope'" in str(events["small"][-1].error)
