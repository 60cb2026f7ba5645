"""What a run is said to take: the arithmetic behind a trial, and that it counts what a run then does."""

from dataclasses import replace

import pytest

from core.data.formats import Example
from core.events import EvalDone
from core.lora.config import LoraConfig
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.pace import Timed, TrialTimes, checkpoints, training_seconds
from core.train.preflight import planned_time
from core.train.step_count import evaluations
from tests.core.helpers import CPU, load, request

TIMES = TrialTimes(
    starting=2.0,
    warming=0.5,
    warm_after=4,
    longest=Timed(1000, 1.0),
    usual=Timed(400, 0.5),
    evaluated=Timed(100, 0.1),
    saving=3.0,
)
ROWS = [
    Example(
        i, ({"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "fine " * (i % 7)})
    )
    for i in range(23)
]


@pytest.mark.parametrize(("tokens", "seconds"), [(1000, 1.0), (400, 0.5), (700, 0.75), (0, 0.5 - 400 / 1200)])
def test_a_micro_batch_of_another_size_lies_on_the_line_through_the_two_that_were_timed(tokens, seconds):
    assert TIMES.of_micro_batch(tokens) == pytest.approx(seconds)


def test_where_size_does_not_matter_the_usual_time_counts():
    noisy = replace(TIMES, longest=Timed(1000, 0.45))
    assert noisy.of_micro_batch(10) == noisy.of_micro_batch(1000) == 0.5


def test_a_size_is_warmed_up_once_and_less_if_it_is_rare():
    plain = 8 * 1.0 + 2 * 0.5
    assert training_seconds(TIMES, [1000] * 8 + [400] * 2) == pytest.approx(plain + 0.5 + 0.25)
    assert training_seconds(TIMES, [1000] * 8 + [400] * 2, 10) == pytest.approx(10 * plain + 0.5 + 0.5)


@pytest.mark.parametrize(
    ("options", "validates", "count"),
    [
        ({"save_minutes": 0}, True, 1 + 10),  # each evaluation but that before the first step, and the end
        ({"save_minutes": 0, "save_best": False}, True, 1),
        ({"save_minutes": 0}, False, 1),
        ({"save_minutes": 0, "save_steps": 8}, False, 1 + 12),
        ({"save_minutes": 5}, False, 1 + 4),
    ],
)
def test_checkpoints_are_counted_as_they_are_made(options, validates, count):
    assert checkpoints(100, 20 * 60, validates, TrainConfig(**options)) == count


@pytest.mark.parametrize(("steps", "every"), [(8, 0), (8, 3), (9, 3), (25, 0), (4, 50)])
def test_as_many_evaluations_are_counted_as_a_run_makes(tiny_llama, steps, every):
    base = load(tiny_llama)
    train = TrainConfig(
        max_steps=steps, eval_steps=every, micro_batch_size=4, gradient_accumulation_steps=1, max_length=64
    )
    group = TrainingGroup(base, [request(base, ROWS, LoraConfig(rank=2), train, validation_rows=4)])
    made = sum(isinstance(event, EvalDone) for event in alone(group))
    assert evaluations(steps, train) == made


def test_the_whole_of_a_run_is_its_start_its_steps_its_evaluations_and_its_checkpoints(tiny_llama):
    base = load(tiny_llama)
    train = TrainConfig(max_steps=6, micro_batch_size=4, gradient_accumulation_steps=2, eval_steps=3)
    one = request(base, ROWS, LoraConfig(rank=2), train, validation_rows=6)
    data = RunData(one.rows, train)
    taken = [part for _, step in zip(range(6), data.steps(), strict=False) for part in step.micro_batches]
    sizes = [len(part.blocks) * part.longest for part in taken]
    validation = sum(len(part.blocks) * part.longest for part in data.validation())
    found = planned_time(TIMES, [data], [train], CPU)
    assert found.training == pytest.approx(training_seconds(TIMES, sizes))
    assert found.evaluating == pytest.approx(3 * validation * 0.001)
    assert found.saving == 3 * 3.0
    assert found.total == pytest.approx(2.0 + found.training + found.evaluating + found.saving)
