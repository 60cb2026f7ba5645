"""The checklist before a training: each point's state follows from what will be trained."""

from dataclasses import replace

import pytest

from core.errors import InvalidConfig
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS
from core.lora.wholes import Wholes
from core.train.checklist import BAD, GOOD, MIND, OPEN, Surroundings, checklist, started
from core.train.config import TrainConfig
from core.train.estimate import Estimate
from core.train.training_options import TrainingOptions

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
SHAPES = {f"model.layers.{at}.{name}": (32, 32) for at in range(2) for name in PROJECTIONS}
AROUND = Surroundings(
    layer_shapes=SHAPES,
    head="lm_head",
    tensors=(),
    base_parameters=100_000,
    base_name="tiny",
    fingerprint="f" * 64,
    untouched=True,
    others=3,
    train_rows=1000,
    room=8 << 30,
)
PLAN = Estimate(4096, 8, 100, 1000, 2 << 30, None)


def _states(around=AROUND, plan=PLAN, **lora) -> dict[str, str]:
    return {one.name: one.state for one in _list(around, plan, **lora)}


def _list(around=AROUND, plan=PLAN, **lora):
    return checklist(around, TrainingOptions(LoraConfig(**{"alpha": 16.0, **lora}), TrainConfig()), plan)


def test_a_usual_run_has_all_points_and_only_the_start_is_not_known_yet():
    states = _states()
    assert len(states) == 9
    assert [name for name, state in states.items() if state != GOOD] == ["start"]
    assert all(one.reason.endswith(".") for one in _list())


@pytest.mark.parametrize(
    ("lora", "point", "state", "said"),
    [
        ({"target_modules": "q_proj"}, "attention", BAD, "Queries alone"),
        ({"target_modules": "v_proj"}, "attention", MIND, "The queries of the attention"),
        ({"target_modules": "q_proj,up_proj"}, "attention", MIND, "The values of the attention"),
        ({"target_modules": "up_proj"}, "attention", MIND, "queries and values"),
        ({"target_modules": "q_proj,v_proj"}, "attention", GOOD, "q_proj and v_proj are trained"),
        ({"rank": 4, "alpha": 8}, "rank", MIND, "below 8"),
        ({"rank": 128, "alpha": 128}, "rank", MIND, "above 64"),
        ({"rank_pattern": "q_proj=2"}, "rank", MIND, "2 to 16"),
        ({"alpha": 64}, "alpha", MIND, "4 times the rank"),
        ({"alpha": 8}, "alpha", MIND, "0.5 times the rank"),
        ({"use_rslora": True}, "alpha", GOOD, "√rank"),
        ({"kind": "miss"}, "alpha", GOOD, "MiSS has none"),
        ({"rank": 64, "alpha": 64}, "rows", GOOD, "15.6 for each rank"),
        ({"kind": "full"}, "base", MIND, "may be lost"),
        ({"kind": "full"}, "attention", GOOD, "are trained"),
    ],
)
def test_a_point_follows_from_the_options(lora, point, state, said):
    found = next(one for one in _list(**lora) if one.name == point)
    assert (found.state, said in found.reason) == (state, True), found


@pytest.mark.parametrize(
    ("around", "point", "state", "said"),
    [
        ({"room": 1 << 30}, "memory", MIND, "2.0 GiB of 1.0 GiB"),
        ({"room": None}, "memory", OPEN, "the engine says"),
        ({"untouched": False}, "base-pinned", MIND, "hashed anew"),
        ({"fingerprint": ""}, "base-pinned", MIND, "no fingerprint"),
        ({"train_rows": 24}, "rows", MIND, "take rank 2, or more rows"),
        ({"others": 0}, "base", GOOD, "4.10% as many"),
    ],
)
def test_a_point_follows_from_what_is_around(around, point, state, said):
    found = next(one for one in _list(replace(AROUND, **around)) if one.name == point)
    assert (found.state, said in found.reason) == (state, True), found


def test_fused_projections_hold_queries_and_values():
    fused = replace(AROUND, layer_shapes={"h.0.attn.c_attn": (32, 96)})
    assert _states(fused)["attention"] == GOOD
    parts = {"target_modules": "c_attn", "enable_lora": "c_attn=q+v"}
    assert _states(fused, **parts)["attention"] == GOOD
    assert _states(fused, **{**parts, "enable_lora": "c_attn=q"})["attention"] == BAD


def test_whole_weights_have_no_rank_and_no_alpha():
    assert set(_states()) - set(_states(kind="full")) == {"rank", "alpha", "rows"}


def test_an_adapter_that_cannot_be_merged_says_so(monkeypatch):
    from core.lora.kinds import AdapterKind

    kind = type(ADAPTER_KINDS.get("miss"))
    monkeypatch.setattr(kind, "low_rank", AdapterKind.low_rank)
    found = next(one for one in _list(kind="miss") if one.name == "use")
    assert (found.state, "cannot be merged" in found.reason) == (MIND, True)


def test_what_the_device_found_takes_the_place_of_what_was_not_known():
    for change, state in ((0.0, GOOD), (3e-7, MIND)):
        found = next(one for one in started(_list(), change) if one.name == "start")
        assert found.state == state


def test_an_embedding_beside_the_layers_has_its_place_in_the_list():
    wholes = Wholes("model.embed_tokens", "lm_head", False, {"model.embed_tokens.weight": (100, 8)})
    states = _states(replace(AROUND, wholes=wholes), target_modules="q_proj,v_proj,embed_tokens")
    assert states["attention"] == GOOD
    with pytest.raises(InvalidConfig, match="No layer of this model is called 'embed_tokens'"):
        _states(target_modules="embed_tokens")


def test_rows_longer_than_the_base_was_built_for_are_said_to_be_cut():
    long = replace(AROUND, row_characters=5000)
    found = {
        length: [one for one in _list(replace(long, context_length=length)) if one.name == "length"]
        for length in (0, 1024, 2048)
    }
    short = _list(replace(AROUND, context_length=1024, row_characters=1000))
    assert not [one for one in short if one.name == "length"]
    assert not found[0] + found[2048]
    assert found[1024][0].state == MIND
    assert "cut at 1,024 tokens, for which tiny was built, not at 2,048" in found[1024][0].reason


def test_what_does_not_fit_whole_is_said_to_fit_with_less_kept():
    plan = replace(PLAN, memory_bytes=100 << 30, least_bytes=6 << 30)
    (found,) = [one for one in _list(plan=plan) if one.name == "memory"]
    assert found.state == MIND
    assert "100.0 GiB of 8.0 GiB. Layers are computed again" in found.reason
    assert found.reason.endswith("down to about 6.0 GiB.")
    (found,) = [one for one in _list(plan=replace(plan, least_bytes=9 << 30)) if one.name == "memory"]
    assert "take less" in found.reason
