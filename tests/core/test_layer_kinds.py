"""What target_modules can name in a model, what each kind of layer costs, and the usual choices of it."""

import pytest

from core.errors import InvalidConfig
from core.lora.config import LoraConfig
from core.lora.fused import fused_parts
from core.lora.targets import (
    layer_kinds,
    select_targets,
    target_choices,
    targeted_kinds,
    trainable_parameter_count,
    usual_targets,
)

LLAMA = {
    **{
        f"model.layers.{at}.{name}": shape
        for at in range(3)
        for name, shape in {
            "self_attn.q_proj": (8, 8),
            "self_attn.v_proj": (8, 4),
            "self_attn.o_proj": (8, 8),
            "mlp.up_proj": (8, 16),
            "mlp.down_proj": (16, 8),
        }.items()
    },
    "lm_head": (8, 100),
}


def test_kinds_of_layers_are_counted_with_what_they_cost():
    config = LoraConfig(rank=4, alpha=8.0)
    kinds = {kind.name: kind for kind in layer_kinds(LLAMA, "lm_head", config)}
    assert list(kinds) == ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"]
    assert (kinds["v_proj"].layers, kinds["v_proj"].parameters) == (3, 3 * 4 * (8 + 4))
    assert [name for name, kind in kinds.items() if kind.attends] == ["q_proj", "v_proj", "o_proj"]
    assert [name for name, kind in kinds.items() if kind.is_head] == ["lm_head"]
    every = select_targets(list(LLAMA), config, "lm_head")
    assert sum(kind.parameters for kind in kinds.values() if not kind.is_head) == trainable_parameter_count(
        LLAMA, every, config
    )


def test_usual_choices_name_what_the_model_has():
    config = LoraConfig()
    assert target_choices(layer_kinds(LLAMA, "lm_head", config)) == {
        "All linear": "all-linear",
        "Attention": "q_proj,v_proj,o_proj",
        "Feed-forward": "up_proj,down_proj",
        "Query and value": "q_proj,v_proj",
    }
    fused = {"h.0.attn.c_attn": (8, 24), "h.0.attn.c_proj": (8, 8), "h.0.mlp.c_proj": (32, 8)}
    kinds = layer_kinds(fused, None, config)
    choices = target_choices(kinds)
    assert [kind.name for kind in kinds] == ["c_attn", "attn.c_proj", "mlp.c_proj"]
    assert choices == {
        "All linear": "all-linear",
        "Attention": "c_attn,attn.c_proj",
        "Feed-forward": "mlp.c_proj",
    }
    chosen = select_targets(list(fused), LoraConfig(target_modules=choices["Attention"]), None)
    assert chosen == ["h.0.attn.c_attn", "h.0.attn.c_proj"]


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("attention", "q_proj,v_proj,o_proj"),
        ("feed-forward", "up_proj,down_proj"),
        ("query-value", "q_proj,v_proj"),
        ("query-value,down_proj", "q_proj,v_proj,down_proj"),
    ],
)
def test_words_mean_the_layers_of_any_base(word, names):
    one, other = (
        select_targets(list(LLAMA), LoraConfig(target_modules=text), "lm_head") for text in (word, names)
    )
    assert one == other
    counts = targeted_kinds(LLAMA, one, LoraConfig(rank=2))
    assert {name: count for name, (count, _) in counts.items()} == dict.fromkeys(names.split(","), 3)
    assert sum(numbers for _, numbers in counts.values()) == trainable_parameter_count(
        LLAMA, one, LoraConfig(rank=2)
    )


def test_usual_choices_tell_what_they_hit_before_a_run():
    found = usual_targets(LLAMA, "lm_head", LoraConfig(rank=2, target_modules="up_proj"))
    assert {label: one.layers for label, one in found.items()} == {
        "All linear": dict.fromkeys(("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"), 3),
        "Attention": dict.fromkeys(("q_proj", "v_proj", "o_proj"), 3),
        "Feed-forward": dict.fromkeys(("up_proj", "down_proj"), 3),
        "Query and value": dict.fromkeys(("q_proj", "v_proj"), 3),
    }
    assert found["Query and value"].sentence == "q_proj × 3, v_proj × 3 · 168 trainable"


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["h.0.attn.c_attn"], r"target_modules=c_attn and enable_lora=c_attn=q\+v"),
        (["h.0.attn.theirs"], "name them. It has: theirs"),
    ],
)
def test_query_and_value_of_one_layer_are_told_how_to_be_chosen(paths, said):
    with pytest.raises(InvalidConfig, match=said):
        select_targets(paths, LoraConfig(target_modules="query-value"), None)


def test_a_part_of_a_fused_layer_costs_its_own_block():
    paths = {"h.0.attn.c_attn": (8, 24)}
    config = LoraConfig(rank=2, target_modules="c_attn", enable_lora="c_attn=q+v")
    parts = fused_parts({"model_type": "gpt2"}, paths, config.parts)
    assert targeted_kinds(paths, list(paths), config, None, parts) == {"c_attn": (1, 2 * 2 * (8 + 8))}


def test_the_layers_of_experts_are_one_kind():
    experts = {f"layers.0.mlp.experts.{at}.up.w1": (8, 4) for at in range(2)}
    assert [(kind.name, kind.layers) for kind in layer_kinds(experts, None, LoraConfig())] == [("w1", 2)]
