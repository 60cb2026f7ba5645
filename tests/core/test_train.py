"""Training: steps and schedules, accumulation, stopping, divergence, and the resident base."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from core.config import LoraConfig, TrainConfig
from core.data.formats import Example
from core.errors import InvalidConfig, TrainingDiverged
from core.events import EvalDone, MicroBatchDone, Prepared, StepDone, TrainingDone
from core.train.batches import collate, plan_steps, split_rows
from core.train.schedule import rate_factor, warmup_steps
from core.train.trainer import Trainer
from tests.core.helpers import load, logits

ROWS = [
    Example(i, ({"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "fine thanks " * (1 + i % 5)}))
    for i in range(30)
]
LORA = LoraConfig(rank=4, alpha=8)


def _run(folder, lora=LORA, **options):
    trainer = Trainer(load(folder), iter(ROWS), lora, TrainConfig(**options))
    return trainer, list(trainer.run())


def _factors(trainer):
    return torch.cat([factors.flatten() for layer in trainer.bank.factors.values() for factors in (layer.A, layer.B)]).detach()


def test_a_run_tells_its_story_in_order(tiny_llama):
    _, events = _run(tiny_llama, max_steps=10, micro_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert isinstance(events[0], Prepared)
    assert (events[0].train_rows, events[0].validation_rows, events[0].total_steps) == (28, 2, 10)
    assert [event.step for event in steps] == list(range(1, 11))
    assert [event.step for event in events if isinstance(event, EvalDone)] == list(range(11))
    assert sum(isinstance(event, MicroBatchDone) for event in events) >= 20
    assert isinstance(events[-1], TrainingDone)
    assert events[-1].train_loss == steps[-1].loss < steps[0].loss


def test_epochs_see_every_row_once(tiny_llama):
    trainer, _ = _run(tiny_llama, max_steps=1, validation_share=0)
    config = TrainConfig(micro_batch_size=4, gradient_accumulation_steps=2)
    steps = plan_steps(trainer.split.train, config)
    epoch = [id(row) for _ in range(4) for batch in next(steps) for row in batch]
    assert sorted(epoch) == sorted(id(row) for row in trainer.split.train)


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_accumulation_is_weighted_by_tokens(tiny_llama, size, accumulation):
    options = {"max_steps": 3, "learning_rate": 1e-2, "validation_share": 0}
    expected, _ = _run(tiny_llama, micro_batch_size=8, gradient_accumulation_steps=1, **options)
    found, _ = _run(tiny_llama, micro_batch_size=size, gradient_accumulation_steps=accumulation, **options)
    torch.testing.assert_close(_factors(found), _factors(expected), atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_adapter(tiny_llama):
    options = {"max_steps": 4, "learning_rate": 1e-2, "seed": 7}
    dropping = LoraConfig(rank=4, dropout=0.3)
    first, second = (_run(tiny_llama, dropping, **options)[0] for _ in range(2))
    assert torch.equal(_factors(first), _factors(second))


def test_stopping_keeps_what_was_learnt(tiny_llama):
    trainer = Trainer(load(tiny_llama), iter(ROWS), LORA, TrainConfig(max_steps=50, learning_rate=1e-2))
    events = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            trainer.stop()
    assert (events[-1].steps, events[-1].stopped) == (3, True)
    assert trainer.adapter().is_trained()


def test_training_leaves_the_resident_base_untouched(any_model):
    base = load(any_model)
    before = logits(base.model)
    list(Trainer(base, iter(ROWS), LORA, TrainConfig(max_steps=3, learning_rate=1e-2)).run())
    assert torch.equal(logits(base.model), before)


def test_between_two_events_the_base_answers_as_itself(tiny_llama):
    base = load(tiny_llama)
    before = logits(base.model)
    for event in Trainer(base, iter(ROWS), LORA, TrainConfig(max_steps=2, learning_rate=1e-2)).run():
        assert torch.equal(logits(base.model), before), event


def test_every_factor_moves_within_two_steps(any_model):
    trainer = Trainer(load(any_model), iter(ROWS), LORA, TrainConfig(max_steps=2, learning_rate=1e-2))
    before = {path: (f.A.detach().clone(), f.B.detach().clone()) for path, f in trainer.bank.factors.items()}
    list(trainer.run())
    for path, factors in trainer.bank.factors.items():
        assert not torch.equal(factors.A, before[path][0]), path
        assert not torch.equal(factors.B, before[path][1]), path


def test_a_diverged_training_says_so(tiny_llama):
    trainer = Trainer(load(tiny_llama), iter(ROWS), LORA, TrainConfig(max_steps=3))
    with torch.no_grad():
        next(iter(trainer.bank.factors.values())).B[0, 0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"step 1.*learning rate"):
        list(trainer.run())


def test_unknown_targets_are_refused_before_anything_starts(tiny_llama):
    with pytest.raises(InvalidConfig, match="'nope'"):
        Trainer(load(tiny_llama), iter(ROWS), LoraConfig(target_modules="nope"), TrainConfig())


def test_rows_longer_than_the_context_are_cut_to_it(tiny_gpt2):
    row = Example(1, ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "long " * 400}))
    trainer = Trainer(load(tiny_gpt2), iter([row]), LORA, TrainConfig(max_steps=1, validation_share=0))
    prepared = next(trainer.run())
    assert (prepared.max_length, prepared.truncated_rows) == (256, 1)


def test_padding_changes_no_loss(tiny_llama):
    """A long row beside a short one gives the same summed loss as each alone."""
    from core.train.loss import summed_loss

    trainer, _ = _run(tiny_llama, max_steps=1)
    rows = sorted(trainer.data.rows, key=lambda row: len(row.ids))
    pair, cpu = [rows[0], rows[-1]], torch.device("cpu")
    model = trainer.base.model
    together = summed_loss(model, collate(pair, 0, cpu))
    apart = sum(summed_loss(model, collate([row], 0, cpu)) for row in pair)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "oracle"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_schedules_are_transformers(kind, oracle):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = oracle(optimiser, num_warmup_steps=10, num_training_steps=100)
    for step in range(100):
        assert rate_factor(kind, step, 100, 10) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_warm_up_never_exceeds_a_tenth_of_the_run():
    assert (warmup_steps(1000, 0.03), warmup_steps(1000, 0.5), warmup_steps(5, 0.5)) == (30, 100, 0)


def test_the_validation_rows_are_the_same_for_the_same_seed():
    rows = list(range(100))
    assert split_rows(rows, 0.05, 1).validation == split_rows(rows, 0.05, 1).validation
    assert len(split_rows(rows, 0.05, 1).validation) == 5
    assert len(split_rows(rows[:12], 0.01, 1).validation) == 1
    assert split_rows(rows[:3], 0.05, 1).validation == []
