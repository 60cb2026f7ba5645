"""What PEFT's configurations speak of: our rules against PEFT's own functions, our matcher against re."""

import random
import re
import time

import pytest
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from core.errors import InvalidAdapter
from core.lora.peft.patterns import fully_matches
from core.lora.peft.targeting import exceptions, naming, stated_for, targeted_paths

PATHS = [
    *[
        f"model.layers.{layer}.{module}"
        for layer in (0, 1, 10, 11)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.1.up_proj")
    ],
    "h.1.attn.c_attn",
    "lm_head",
]
ATOMS = [*"ab.", "[ab]", "[^a]", r"\w", r"\.", "^", "$", r"\b", "(?=a)", "(?!b)", "(?<=a)", "(?<!b)"]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?", "+?", "{,2}"]


def expression(chance, depth):
    kind = chance.random() if depth else 0
    if kind < 0.4:
        return chance.choice(ATOMS)
    inner = expression(chance, depth - 1)
    if kind < 0.6:
        return inner + expression(chance, depth - 1)
    if kind < 0.75:
        return f"(?:{inner}|{expression(chance, depth - 1)})"
    return f"({inner}){chance.choice(REPEATS)}"


def test_expressions_match_what_re_matches():
    chance = random.Random(0)
    for _ in range(4000):
        pattern = expression(chance, chance.randint(1, 5))
        text = "".join(chance.choice("ab.") for _ in range(chance.randint(0, 7)))
        assert fully_matches(pattern, text) == bool(re.fullmatch(pattern, text)), (pattern, text)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a?)+b", "((.*)*)*b", "(((a{999}){999}){999})", ".*" * 40 + "b"]
)
def test_expressions_that_keep_re_busy_end_soon(pattern):
    start = time.process_time()
    assert not fully_matches(pattern, "a" * 60)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "no regular expression"),
        (r"(a)\1", "not understood"),
        ("(?>a)", "not understood"),
        ("a++", "not understood"),
        ("(?i)a", "not understood"),
        ("(.*)" * 900, "takes too long"),
        ("a" * 5000, "more than 4,000"),
        ("(" * 900 + "a" + ")" * 900, "regular expression"),
    ],
)
def test_expressions_that_cannot_be_matched_are_named(pattern, said):
    with pytest.raises(InvalidAdapter, match=said):
        fully_matches(pattern, "a" * 200)


KEYS = [
    "q_proj",
    "self_attn.q_proj",
    "layers.1.mlp.up_proj",
    "layers.1",
    "self.attn",
    "model.layers.1.self.attn.q.proj",
    "^model.layers.1.*",
    r".*\.1\..*proj",
    "(q|k)_proj",
    "lm.head",
    "roj",
    r"experts\.\d\.up_proj",
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_patterns_speak_of_what_they_speak_of_in_peft(key):
    for path in PATHS:
        pattern = {"nothing": 1, key: 2}
        assert stated_for(pattern, path, 0) == pattern.get(get_pattern_key(list(pattern), path), 0)


@pytest.mark.parametrize("first", KEYS)
def test_of_several_keys_the_first_that_fits_counts_as_in_peft(first):
    for second in KEYS:
        for path in PATHS:
            pattern = {first: 1} | {second: 2}
            assert stated_for(pattern, path, 0) == pattern.get(get_pattern_key(list(pattern), path), 0)


TARGETS = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1, 10]},
    {"target_modules": ["q_proj", "model.layers.0.mlp.up_proj"], "layers_to_transform": 1},
    {"target_modules": ["up_proj", "c_attn"], "layers_to_transform": [1]},
    {"target_modules": ["up_proj", "c_attn"], "layers_to_transform": []},
    {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "experts"]},
    {"target_modules": r".*\.(q_proj|up_proj)"},
    {"target_modules": r"^(?!.*experts).*layers\.1\d.*_proj$"},
    {
        "target_modules": ["up_proj", "q_proj"],
        "exclude_modules": ["experts.1.up_proj", "layers.0.self_attn.q_proj"],
    },
    {"target_modules": ["up_proj", "q_proj"], "exclude_modules": r".*\.1[01]\..*"},
    {"target_modules": ["q_proj"], "exclude_modules": "q_proj"},
]


@pytest.mark.parametrize("settings", TARGETS)
def test_configurations_target_what_they_target_in_peft(settings):
    theirs = PeftConfig(**settings)
    wanted = [path for path in PATHS if check_target_module_exists(theirs, path)]
    assert targeted_paths(settings, PATHS, "lm_head") == wanted


def test_exactly_the_layers_that_are_held_are_named():
    chance = random.Random(0)
    for _ in range(200):
        held = chance.sample(PATHS, chance.randint(1, len(PATHS)))
        settings = naming(held, PATHS)
        theirs = PeftConfig(**settings)
        assert {path for path in PATHS if check_target_module_exists(theirs, path)} == set(held)
        assert naming(held, ())["target_modules"] == sorted(held)


def test_short_names_stand_where_they_mean_no_others():
    queries = [path for path in PATHS if path.endswith("q_proj")]
    assert naming(queries, PATHS) == {"target_modules": ["q_proj"], "layers_to_transform": None}
    assert naming(queries[1:3], PATHS) == {"target_modules": ["q_proj"], "layers_to_transform": [1, 10]}
    uneven = [queries[0], "model.layers.1.self_attn.k_proj"]
    assert naming(uneven, PATHS)["target_modules"] == sorted(uneven)


def test_patterns_give_each_layer_its_own_number_in_peft():
    chance = random.Random(0)
    paths = [*PATHS, "head", "h", "other.lm_head", "model.lm_head"]
    for _ in range(100):
        ranks = {path: chance.choice([4, 4, 8, 2]) for path in paths}
        pattern = exceptions(ranks, 4)
        assert {path: pattern.get(get_pattern_key(list(pattern), path), 4) for path in paths} == ranks
