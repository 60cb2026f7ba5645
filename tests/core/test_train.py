"""Training one adapter: steps and schedules, accumulation, packing, stopping, divergence, and the resident
base.
"""

import dataclasses

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from core.base_model.attention import Packed, attend
from core.data.formats import Example
from core.errors import InvalidConfig, InvalidData, TrainingDiverged
from core.events import EvalDone, MicroBatchDone, Prepared, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.schedule import rate_factor, warmup_steps
from tests.core.helpers import CLOSE, load, load_float64, logits, request, token_rows, train_alone

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 5)},
        ),
    )
    for i in range(30)
]
LORA = LoraConfig(rank=4, alpha=8)


def _flat(adapter):
    return torch.cat([factor.flatten() for layer in adapter.layers.values() for factor in (layer.A, layer.B)])


def _run(folder, lora=LORA, **options):
    adapter, events = train_alone(load(folder), ROWS, lora, TrainConfig(**options))
    return _flat(adapter), events


def test_a_run_tells_its_story_in_order(tiny_llama):
    _, events = _run(
        tiny_llama, max_steps=10, micro_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2
    )
    steps = [event for event in events if isinstance(event, StepDone)]
    assert isinstance(events[0], Prepared)
    assert (events[0].train_rows, events[0].validation_rows, events[0].total_steps) == (28, 2, 10)
    assert [event.step for event in steps] == list(range(1, 11))
    assert [event.step for event in events if isinstance(event, EvalDone)] == list(range(11))
    assert sum(isinstance(event, MicroBatchDone) for event in events) >= 20
    assert isinstance(events[-1], TrainingDone)
    assert events[-1].train_loss == steps[-1].loss < steps[0].loss


@pytest.mark.parametrize("packing", ["on", "off"])
def test_epochs_see_every_row_once(tiny_llama, packing):
    config = TrainConfig(micro_batch_size=4, gradient_accumulation_steps=2, packing=packing, max_length=96)
    data = RunData(token_rows(load(tiny_llama), ROWS, 96, validation_rows=0), config)
    steps, blocks = data.steps(), len(data.blocks)
    for _ in range(2):
        epoch = []
        while len(epoch) < len(ROWS):
            epoch += [row for part in next(steps).micro_batches for block in part.blocks for row in block]
        assert sorted(epoch) == list(range(len(ROWS)))
    assert (blocks < len(ROWS)) == (packing == "on")


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_accumulation_is_weighted_by_tokens(tiny_llama, size, accumulation, packing):
    options = {"max_steps": 3, "learning_rate": 1e-2, "packing": packing, "max_length": 64}
    base = load_float64(tiny_llama)
    found, expected = (
        train_alone(
            base, ROWS, LORA, TrainConfig(micro_batch_size=rows, gradient_accumulation_steps=times, **options)
        )[0]
        for rows, times in ((size, accumulation), (8, 1))
    )
    torch.testing.assert_close(_flat(found), _flat(expected), **CLOSE)


def test_packed_rows_train_as_they_do_apart(any_model):
    """All rows in every step, once in blocks and once one by one: the same losses and the same adapter."""
    rows, options = ROWS[:12], {"max_steps": 4, "learning_rate": 1e-2, "gradient_accumulation_steps": 1}
    apart, events = train_alone(
        load_float64(any_model), rows, LORA, TrainConfig(micro_batch_size=12, packing="off", **options), 0
    )
    packed, others = train_alone(
        load_float64(any_model),
        rows,
        LORA,
        TrainConfig(micro_batch_size=12, packing="on", max_length=150, **options),
        0,
    )
    assert 0 < others[0].blocks < len(rows)
    losses = [[event.loss for event in one if isinstance(event, StepDone)] for one in (events, others)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(_flat(packed), _flat(apart), **CLOSE)


def test_a_mask_stands_in_where_the_kernel_takes_no_such_dtype(tiny_llama):
    """The accelerator's segments as a tensor, in float32, against one call for each segment."""
    base = load(tiny_llama)
    ids, positions = torch.arange(3, 35).view(2, 16), torch.tensor([[*range(5), *range(11)], [*range(16)]])
    found = []
    for how in (Packed([0, 5, 16, 32]), Packed((), torch.tensor([0, 5, 16, 32, 32], dtype=torch.int32), 16)):
        with torch.no_grad(), attend(base.attention, [how] * 2):
            found.append(base.model(input_ids=ids, position_ids=positions, use_cache=False).logits)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    alone = base.model(input_ids=ids[:1, 5:], use_cache=False).logits
    torch.testing.assert_close(found[0][:1, 5:], alone, atol=1e-5, rtol=1e-5)


def test_auto_packs_only_where_enough_steps_remain(tiny_llama):
    rows = token_rows(load(tiny_llama), ROWS, 128)
    long = TrainConfig(epochs=1000, max_length=128)
    assert RunData(rows, long).packed
    assert not RunData(rows, dataclasses.replace(long, epochs=1)).packed


def test_the_same_seed_gives_the_same_adapter(tiny_llama):
    options = {"max_steps": 4, "learning_rate": 1e-2, "seed": 7}
    dropping = LoraConfig(rank=4, dropout=0.3)
    first, second = (_run(tiny_llama, dropping, **options)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, _run(tiny_llama, LoraConfig(rank=4), **options)[0])


def test_stopping_keeps_what_was_learnt(tiny_llama):
    base = load(tiny_llama)
    group = TrainingGroup(base, [request(base, ROWS, LORA, TrainConfig(max_steps=50, learning_rate=1e-2))])
    for event in alone(group):
        if isinstance(event, StepDone) and event.step == 3:
            group.stop("run")
        if isinstance(event, TrainingDone):
            assert (event.steps, event.stopped) == (3, True)
            assert group.adapter("run").is_trained()
    assert isinstance(event, TrainingDone)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_training_leaves_the_resident_base_untouched(any_model, packing):
    base = load(any_model)
    before = logits(base.model)
    train_alone(
        base, ROWS, LORA, TrainConfig(max_steps=3, learning_rate=1e-2, packing=packing, max_length=128)
    )
    assert torch.equal(logits(base.model), before)


def test_between_two_events_the_base_answers_as_itself(tiny_llama):
    base = load(tiny_llama)
    before = logits(base.model)
    group = TrainingGroup(base, [request(base, ROWS, LORA, TrainConfig(max_steps=2, learning_rate=1e-2))])
    for event in alone(group):
        assert torch.equal(logits(base.model), before), event


def test_every_factor_moves_within_two_steps(any_model):
    base = load(any_model)
    group = TrainingGroup(base, [request(base, ROWS, LORA, TrainConfig(max_steps=2, learning_rate=1e-2))])
    for event in alone(group):
        if isinstance(event, StepDone):
            adapter = group.adapter("run")
            if event.step == 1:
                before = adapter
    for path, factors in adapter.layers.items():
        assert not torch.equal(factors.A, before.layers[path].A), path
        assert factors.B.any(), path


def test_a_diverged_training_says_so(tiny_llama):
    base = load(tiny_llama)
    group = TrainingGroup(base, [request(base, ROWS, LORA, TrainConfig(max_steps=3))])
    events = alone(group)
    while not isinstance(next(events), EvalDone):
        pass
    with torch.no_grad():
        group.bank.flat[0, -1] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"step 1.*learning rate"):
        list(events)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(target_modules="nope"), "'nope'"),
        (LoraConfig(rank_pattern="nope=3"), "'nope'.*q_proj"),
        (LoraConfig(layers_to_transform="1-9"), "layer 2; this model's layers are 0 to 1"),
    ],
)
def test_targets_that_do_not_exist_are_refused_before_anything_starts(tiny_llama, lora, message):
    with pytest.raises(InvalidConfig, match=message):
        train_alone(load(tiny_llama), ROWS, lora, TrainConfig())


def test_patterns_and_layers_shape_the_adapter(tiny_llama):
    lora = LoraConfig(
        rank=4, rank_pattern="q_proj=2", alpha_pattern="v_proj=16", layers_to_transform="1", use_rslora=True
    )
    adapter, events = train_alone(load(tiny_llama), ROWS, lora, TrainConfig(max_steps=2))
    by_name = {path.rpartition(".")[2]: factors for path, factors in adapter.layers.items()}
    assert {path.split(".")[2] for path in adapter.layers} == {"1"}
    assert (by_name["q_proj"].rank, by_name["k_proj"].rank) == (2, 4)
    assert by_name["v_proj"].scale == pytest.approx(16 / 4**0.5)
    assert by_name["q_proj"].scale == pytest.approx(32 / 2**0.5)
    assert events[0].trainable_parameters == adapter.parameter_count


def test_lora_plus_moves_b_faster(tiny_llama):
    """With AdamW the first step of B is its learning rate, times the ratio (arXiv 2402.12354)."""
    sizes = []
    for ratio in (1.0, 16.0):
        train = TrainConfig(max_steps=1, learning_rate=1e-4, loraplus_lr_ratio=ratio, warmup_ratio=0)
        adapter, _ = train_alone(load(tiny_llama), ROWS, LORA, train)
        sizes.append(max(float(layer.B.abs().max()) for layer in adapter.layers.values()))
    assert sizes == pytest.approx([1e-4, 16e-4], rel=1e-2)


def test_rows_longer_than_the_context_are_cut_to_it(tiny_gpt2):
    row = Example(1, ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "long " * 400}))
    _, events = train_alone(load(tiny_gpt2), [row], LORA, TrainConfig(max_steps=1))
    assert (events[0].max_length, events[0].truncated_rows) == (256, 1)


def test_rows_without_an_answer_within_the_length_are_skipped_and_counted(tiny_llama):
    long = Example(1, ({"role": "user", "content": "long " * 100}, {"role": "assistant", "content": "yes"}))
    _, events = train_alone(load(tiny_llama), [long, *ROWS], LORA, TrainConfig(max_steps=1, max_length=64))
    assert (events[0].skipped_rows, events[0].truncated_rows) == (1, 1)
    with pytest.raises(InvalidData, match="raise max_length"):
        train_alone(load(tiny_llama), [long], LORA, TrainConfig(max_steps=1, max_length=64))


def test_long_plain_text_becomes_several_rows(tiny_llama):
    rows = token_rows(load(tiny_llama), [Example(1, (), "the quick brown fox " * 100)], 64)
    assert len(rows) > 1
    assert set(rows.lengths[:-1]) == {64}
    assert (rows.truncated, rows.skipped) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
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


def test_rows_for_validation_are_not_trained_on(tiny_llama):
    data = RunData(token_rows(load(tiny_llama), ROWS, validation_rows=6), TrainConfig(packing="off"))
    assert (data.train_rows, data.validation_rows) == (len(ROWS) - 6, 6)
    assert sorted(row for block in data.validation_blocks for row in block) == list(range(6))
    assert sorted(row for block in data.blocks for row in block) == list(range(6, len(ROWS)))


def test_only_rows_for_validation_are_refused(tiny_llama):
    with pytest.raises(InvalidData, match="none is left to train on"):
        RunData(token_rows(load(tiny_llama), ROWS[:3], validation_rows=3), TrainConfig())
