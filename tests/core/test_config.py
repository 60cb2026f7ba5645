"""Options: parsing, ranges, and messages that help."""

import pytest

from core.combine.config import require_weights
from core.errors import InvalidConfig
from core.generate.config import GenerationConfig
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.training_options import SUBJECTS, TrainingOptions, all_options, by_subject


def test_options_from_text_are_typed_and_sorted():
    given = {"rank": "8", "learning_rate": "5e-4", "target_modules": "q_proj, v_proj"}
    options = TrainingOptions.parse(given)
    assert (options.lora.rank, options.train.learning_rate) == (8, 5e-4)
    assert TrainingOptions.parse({"rank": "1e1"}).lora.rank == TrainingOptions.parse({"rank": 10.0}).lora.rank
    assert options.lora.target_names == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rnk": 8}, "Did you mean rank"),
        ({"rank": 0}, "between 1 and 1,024"),
        ({"rank": "abc"}, "a whole number"),
        ({"rank": 2.5}, "a whole number"),
        ({"rank": True}, "a whole number"),
        ({"rank": None}, "rank is empty; it must be a whole number"),
        ({"learning_rate": ""}, "learning_rate is empty; it must be a number"),
        ({"learning_rate": "nan"}, "a number"),
        ({"learning_rate": float("inf")}, "a number"),
        ({"lr_scheduler": "cosin"}, "cosine, linear, constant"),
        ({"target_modules": " , "}, "target_modules is empty"),
        ({"dropout": 1}, "between 0 and 0.95"),
        ({"dropout": 10**400}, "dropout must be a number of at most 308 digits, not 1000"),
        ({"rank": 10**400}, "rank must be between 1 and 1,024, not 10{79}.$"),
        ({"rank": "9" * 400}, "rank must be between 1 and 1,024, not 9{80}.$"),
        ({"rank": 2**53 + 1}, "rank must be between 1 and 1,024, not 9007199254740993.$"),
        ({"rank": "9007199254740993"}, "rank must be between 1 and 1,024, not 9007199254740993.$"),
    ],
)
def test_bad_options_say_what_was_expected(given, said):
    with pytest.raises(InvalidConfig, match=said):
        TrainingOptions.parse(given)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30, -1001])
def test_a_weight_that_is_no_usable_number_is_refused(weight):
    require_weights([0.5, -2, 1000])
    with pytest.raises(InvalidConfig, match="The weight of an adapter must be from -1,000 to 1,000"):
        require_weights([0.5, weight])


def test_construction_is_validated_too():
    with pytest.raises(InvalidConfig, match="temperature"):
        GenerationConfig(temperature=-1)


def test_every_option_is_described_and_its_default_is_valid():
    for config in (LoraConfig, TrainConfig, GenerationConfig):
        for option in config.options():
            assert option.label
            assert option.help
            assert option.parse(option.default) == option.default


def test_defaults_are_the_documented_ones():
    lora, train = LoraConfig(), TrainConfig()
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (16, 32, 0, "all-linear")
    assert (train.learning_rate, train.lr_scheduler, train.warmup_ratio, train.epochs) == (
        2e-4,
        "cosine",
        0.03,
        3,
    )
    assert train.micro_batch_size * train.gradient_accumulation_steps == 16
    assert (train.max_length, train.over_length, train.max_grad_norm) == (2048, "truncate", 1.0)


def test_every_training_option_is_under_exactly_one_subject():
    found = by_subject()
    names = [option.name for options in found.values() for option in options]
    assert sorted(names) == sorted(all_options())
    assert list(found) == [subject for subject in SUBJECTS if subject in found]
    without = [
        one.name for one in (*LoraConfig.options(), *TrainConfig.options()) if one.subject not in SUBJECTS
    ]
    assert without == []
    assert sum(option.common for option in all_options().values()) == 8
