"""Grids of options: what is understood, what is refused, and that every combination is there."""

import pytest

from core.errors import InvalidConfig
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.sweep import MOST_RUNS, combinations, parse_grid
from core.train.training_options import TrainingOptions


def test_every_combination_is_there_with_the_options_around_it():
    grid = parse_grid(["rank=4,8", "learning_rate=1e-4, 3e-4"])
    found = combinations(TrainingOptions.parse({"epochs": 2}), grid)
    assert [label for label, _ in found] == [
        "rank=4 learning_rate=1e-4",
        "rank=4 learning_rate=3e-4",
        "rank=8 learning_rate=1e-4",
        "rank=8 learning_rate=3e-4",
    ]
    assert found[0][1] == TrainingOptions(LoraConfig(rank=4), TrainConfig(epochs=2.0, learning_rate=1e-4))
    assert [options.lora.rank for _, options in found] == [4, 4, 8, 8]


def test_values_with_commas_are_parted_by_bars():
    assert parse_grid(["target_modules=q_proj|q_proj,v_proj"]) == {
        "target_modules": ["q_proj", "q_proj,v_proj"]
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rank"], "'rank' is no sweep"),
        (["rank=4,,8"], "is no sweep"),
        (["rnk=4,8"], "Did you mean rank"),
        (["rank=4", "rank=8"], "swept twice"),
    ],
)
def test_a_sweep_that_is_not_one_says_what_to_write(texts, message):
    with pytest.raises(InvalidConfig, match=message):
        parse_grid(texts)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "at least one option"),
        ({"rank": ["4", "0"]}, "rank must be between"),
        (
            {"rank": [str(n) for n in range(1, 10)], "seed": [str(n) for n in range(8)]},
            f"72 combinations; at most {MOST_RUNS}",
        ),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused(grid, message):
    with pytest.raises(InvalidConfig, match=message):
        combinations(TrainingOptions(), grid)
