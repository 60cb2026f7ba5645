"""Adapters on the experts of a mixture, beside PEFT's target_parameters."""

import json
import re
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from core.base_model.general_agreement import difference
from core.base_model.sink_attention import NAME as SINKS
from core.base_model.skeleton import skeleton
from core.base_model.way import Way
from core.combine.blending import blended
from core.combine.combining import Part, combine, resize
from core.combine.config import CombineConfig
from core.errors import InvalidAdapter, InvalidConfig, InvalidModel
from core.events import StepDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora import expert_products
from core.lora.adapter import LayerFactors
from core.lora.anatomy import anatomy
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.expert_factors import together
from core.lora.expert_wrapping import experts_of, wrapped_experts
from core.lora.foreign.fit import fit
from core.lora.foreign.look import look
from core.lora.foreign.take import take
from core.lora.kinds.lora import LoraOptions
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.expert_names import taken_for_experts
from core.lora.peft.files import differing_layers, load_adapter, save_adapter, save_checked
from core.lora.wholes import require_no_wholes
from core.merge.verify import differing_tensors, verify_merge
from core.reporting import silent
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.run_state import RunState
from tests.conftest import _save
from tests.core.families import GENERAL, QUICK, tiny_model
from tests.core.helpers import (
    PROBE,
    load,
    logits,
    peft_from,
    plain_model,
    random_adapter,
    request,
    train_alone,
)
from tests.core.test_general_way import _figures, _rows
from tests.core.test_merge import _export

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss")
"""Of two ways, with and without biases, and with files that keep experts in two ways."""
OTHERS = (
    *("afmoe", "deepseek_v2", "ernie4_5_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "granitemoe"),
    *("granitemoehybrid", "hunyuan_v1_moe", "jamba", "minimax", "minimax_m2", "nemotron_h", "olmoe"),
    *("phimoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_next"),
)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tokenizer, tmp_path_factory):
    return made(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


def made(family, tokenizer, folder):
    model = tiny_model(family, **{**QUICK, **GENERAL}[family])
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():  # so large that tokens go to different experts
        if parameter.dim() > 1 and "conv" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return _save(model, tokenizer, folder / family)


@pytest.fixture(scope="module")
def base(folder):
    return load(folder)


def adapter_on(base, seed=0, rank=3, only="", experts=True):
    """On attention and on every expert, or of those on one of the two parameters."""
    generator = torch.Generator().manual_seed(seed)
    plain = random_adapter(base, rank, 2.0 * rank, seed)
    own = {
        path: LayerFactors(
            torch.randn(shape.experts, rank, shape[0], generator=generator) * 0.3,
            torch.randn(shape.experts, shape[1], rank, generator=generator) * 0.3,
            2.0,
        )
        for path, shape in base.wholes.experts.items()
        if path.endswith(only) and experts
    }
    return replace(plain, layers={**plain.layers, **own})


def near(wanted, found):
    assert difference(wanted.flatten(0, 1)[None], found.flatten(0, 1)[None]) <= 1e-5


@pytest.mark.parametrize("only", ["", "down_proj", "gate_up_proj"])
def test_logits_are_those_of_pefts_target_parameters(base, folder, tmp_path, only):
    adapter = adapter_on(base, only=only)
    save_checked(tmp_path, adapter, base.layer_shapes, base.head, wholes=base.wholes)
    wanted, plain = logits(peft_from(folder, tmp_path)), logits(base.model)
    with loaded_bank(base.layers, [adapter]).use():
        near(wanted, logits(base.model))
    without = logits(peft_from(folder, _saved(tmp_path / "plain", adapter_on(base, experts=False), base)))
    assert difference(wanted, without) > 0.05, "the experts' part is too small to be tested"
    assert difference(wanted, plain) > 0.05


def test_what_is_found_in_files_names_the_experts_by_their_module(base, tmp_path):
    adapter = adapter_on(base)
    _saved(tmp_path / "theirs", adapter, base)
    modules = look(tmp_path / "theirs").evidence.modules
    assert modules["experts"] == len(adapter.experts)
    assert "base_layer" not in modules


@pytest.mark.parametrize("family", OTHERS)
def test_so_are_those_of_other_families_and_of_what_is_merged(tokenizer, tmp_path, family):
    folder = made(family, tokenizer, tmp_path)
    base = load(folder)
    adapter = adapter_on(base)
    taken = taken_for_experts(base.model.config.model_type, base.layer_shapes)  # PEFT leaves these out
    kept = {path: one for path, one in adapter.layers.items() if path not in taken}
    adapter = replace(adapter, layers=kept)
    assert adapter.experts
    with loaded_bank(base.layers, [adapter]).use():
        found = logits(base.model)
    near(logits(peft_from(folder, _saved(tmp_path / "saved", adapter, base))), found)
    _export(folder, adapter, tmp_path / "merged")
    near(logits(plain_model(tmp_path / "merged")), found)


def test_experts_in_a_way_that_is_not_known_are_refused(tokenizer, tmp_path):
    base = load(made("llama4_text", tokenizer, tmp_path))
    with pytest.raises(InvalidConfig, match="computed in a way on which adapters are not known here"):
        train_alone(base, _rows("hello", 6), LoraConfig(**ON_EXPERTS), TrainConfig(**SHARED))


@pytest.mark.parametrize("order", ["rounded", "turned"])
def test_experts_that_are_not_given_the_tokens_in_order_are_refused(order):
    """Rounding may send a token of a row to other experts where the row has company: it is still in order."""
    model = tiny_model("mixtral", num_hidden_layers=2)
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def given(_, inputs):
        x, *others = inputs
        if len(x) == 10 and order == "rounded":
            x = x + 0.3 * x.std() * noise * (torch.arange(10) == 2)[:, None]
        return (x if order == "rounded" else x.flip(0), *others)

    found = experts_of(model)
    path = "model.layers.1.mlp.experts"
    assert path in found
    found[path].register_forward_pre_hook(given)
    if order == "rounded":
        assert wrapped_experts(model, path)
    else:
        with pytest.raises(InvalidModel, match=rf"gives {path} \(1 such modules\) other things"):
            wrapped_experts(model, path)


def _saved(folder, adapter, base):
    folder.mkdir()
    save_adapter(folder, adapter, None, base.layer_shapes, base.wholes.experts)
    return folder


def test_each_row_has_the_experts_of_its_own_adapter(base):
    """Of other ranks, on other parameters, and none at all."""
    adapters = [adapter_on(base, 1), adapter_on(base, 2, rank=5, only="down_proj"), None]
    ids = torch.cat([PROBE, PROBE + 3, PROBE + 1])[:, :7]
    bank = loaded_bank(base.layers, adapters)
    with torch.no_grad():
        with bank.use():
            found = base.model(input_ids=ids).logits
        with bank.use(torch.tensor([2, 0, 1, 1, 0, 2])):
            mixed = base.model(input_ids=ids).logits
        with bank.use(torch.tensor([2, 0, 1, 1, 0, 2])):
            one_token = base.model(input_ids=ids[:, :1]).logits
    for at, adapter in enumerate(adapters):
        for rows, got in ((slice(2 * at, 2 * at + 2), found), (_places(at), mixed)):
            with loaded_bank(base.layers, [adapter]).use(), torch.no_grad():
                near(base.model(input_ids=ids[rows]).logits, got[rows])
                near(
                    base.model(input_ids=ids[rows][:, :1]).logits, one_token[_places(at)]
                ) if got is mixed else None


def _places(slot):
    return [place for place, one in enumerate([2, 0, 1, 1, 0, 2]) if one == slot]


def test_gradients_are_pefts(base, folder, tmp_path):
    adapters = [adapter_on(base, 1), adapter_on(base, 2, only="down_proj")]
    ids = torch.cat([PROBE, PROBE + 2])
    bank = AdapterBank(base.layers, list(adapters[0].layers), 2, 3, trainable=True)
    for slot, adapter in enumerate(adapters):
        bank.load(slot, adapter)
    with bank.use():
        base.model(input_ids=ids).logits.square().mean().backward()
    found = bank.layout.of(bank.grad)
    for slot, adapter in enumerate(adapters):
        saved = _saved(tmp_path / str(slot), adapter, base)
        model = peft_from(folder, saved)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        (model(input_ids=ids[2 * slot : 2 * slot + 2]).logits.square().mean() / 2).backward()
        theirs = _gradients(model, tmp_path / f"of {slot}", adapter, base)
        for path, factors in theirs.layers.items():
            for name, wanted in factors.tensors.items():
                torch.testing.assert_close(found[path][name][slot], wanted, atol=1e-5, rtol=1e-3)
                assert wanted.any()


def _gradients(model, folder, adapter, base):
    """PEFT's gradients, read as if they were an adapter."""
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.save_pretrained(folder, save_embedding_layers=False)
    return load_adapter(folder, base.layer_shapes, base.head, base.wholes)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT heeds them, and says it does not
def test_an_adapter_of_peft_is_read(base, folder, tmp_path):
    names = sorted({path.rpartition(".")[2] for path in base.wholes.experts})
    config = PeftConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "o_proj"],
        target_parameters=[f"experts.{name}" for name in names],
        rank_pattern={r"experts\.down_proj": 4},
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = get_peft_model(plain_model(folder), config).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter = load_adapter(tmp_path, base.layer_shapes, base.head, base.wholes)
    assert {one.rank for path, one in adapter.layers.items() if path.endswith("experts.down_proj")} == {4}
    assert set(adapter.experts) == set(base.wholes.experts)
    with loaded_bank(base.layers, [adapter]).use():
        near(logits(model), logits(base.model))


ON_EXPERTS = {"target_modules": "q_proj,v_proj", "target_parameters": "experts"}
SHARED = {"micro_batch_size": 2, "max_length": 96, "learning_rate": 5e-3, "max_steps": 3}


def test_runs_learn_together_what_each_learns_alone(base):
    """One has no experts, one another rank, and one is computed in another way."""
    runs = {
        "experts": (_rows("hello", 8), LoraConfig(rank=4, **ON_EXPERTS), TrainConfig(seed=1, **SHARED)),
        "down": (
            _rows("the lazy fox", 7),
            LoraConfig(rank=2, target_parameters="down_proj"),
            TrainConfig(seed=2, **SHARED),
        ),
        "none": (_rows("world", 6), LoraConfig(rank=2), TrainConfig(seed=3, **SHARED)),
        "dora": (_rows("a", 6), LoraConfig(rank=2, kind="dora"), TrainConfig(seed=4, **SHARED)),
    }
    group = TrainingGroup(base, [request(base, *parts, key=key) for key, parts in runs.items()])
    events = {key: [] for key in runs}
    for key, event in group.run():
        events[key].append(event)
    for key, parts in runs.items():
        adapter, alone = train_alone(base, *parts)
        assert _figures(events[key]) == pytest.approx(_figures(alone), rel=1e-4)
        assert _figures(alone)[-1] < _figures(alone)[0]
        assert bool(adapter.experts) == bool(parts[1].target_parameters)
        assert all(bool(adapter.layers[path].tensors["B"].any()) for path in adapter.experts)


def _until(group, step):
    """Adapter and state behind a step, and in the end the adapter."""
    found = {}
    for event in alone(group):
        if isinstance(event, StepDone) and event.step == step and group.told("run", step):
            found["then"] = group.adapter("run"), group.state("run")
        if group.runs:
            found["end"] = group.adapter("run")
    return found


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(base, tmp_path):
    wanted = request(
        base,
        _rows("hello", 8),
        LoraConfig(rank=2, **ON_EXPERTS),
        TrainConfig(seed=1, **SHARED | {"max_steps": 5}),
    )
    whole = _until(TrainingGroup(base, [wanted]), 2)
    adapter, state = whole["then"]
    folder = _saved(tmp_path / "adapter", adapter, base)
    state.save(tmp_path)
    there = load_adapter(folder, base.layer_shapes, base.head, base.wholes), RunState.load(tmp_path)
    went_on = _until(TrainingGroup(base, [replace(wanted, resume=there)]), 0)["end"]
    assert went_on.experts
    for path, layer in whole["end"].layers.items():
        assert layer.equals(went_on.layers[path])


def test_answers_are_those_that_transformers_gives_with_pefts_adapter(base, folder, tmp_path):
    """Two adapters and the plain base in one batch."""
    adapters = [None, adapter_on(base, 1), adapter_on(base, 2, only="down_proj")]
    prompts = [list(range(3, 9)), list(range(7, 19)), list(range(5, 8))]
    config = GenerationConfig(temperature=0.0, max_tokens=6)
    rows = [RowRequest(ids, slot, config) for slot, ids in enumerate(prompts)]
    decoder = Decoder(base, loaded_bank(base.layers, adapters), rows, ends=())
    kept = list(decoder._rows)
    for _ in decoder.steps():
        pass
    for slot, (ids, row) in enumerate(zip(prompts, kept, strict=True)):
        saved = _saved(tmp_path / str(slot), adapters[slot], base) if slot else None
        model = peft_from(folder, saved) if saved else plain_model(folder)
        model.generation_config.eos_token_id = None
        found = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=6, do_sample=False)
        assert row.ids == found[0, len(ids) :].tolist()


def test_a_merged_model_is_base_plus_adapter(base, folder, tmp_path, monkeypatch):
    """The files of Mixtral and Qwen hold each expert by itself, those of gpt-oss all in one tensor."""
    adapter = adapter_on(base)
    _export(folder, adapter, tmp_path / "merged")
    found = verify_merge(folder, adapter, tmp_path / "merged", silent)
    assert found.passed, found.sentence()
    assert found.relative_difference < 1e-5
    with loaded_bank(base.layers, [adapter]).use():
        near(logits(base.model), logits(plain_model(tmp_path / "merged")))
    transposed = skeleton(folder).transposed
    assert not differing_tensors(folder, adapter, transposed, tmp_path / "merged", {})
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "merged"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    others = set(before) - same
    assert all("expert" in name or "self_attn" in name for name in others)
    assert {name for name in before if "expert" in name and "bias" not in name} <= others
    monkeypatch.setattr("core.merge.merge.PIECE_BYTES", 64)
    _export(folder, adapter, tmp_path / "pieces")
    pieces = load_file(tmp_path / "pieces" / "model.safetensors")
    for name, tensor in after.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-6, atol=1e-6)


def test_a_part_of_the_experts_is_merged_alone(base, folder, tmp_path):
    adapter = adapter_on(base, only="down_proj")
    _export(folder, adapter, tmp_path / "merged")
    assert verify_merge(folder, adapter, tmp_path / "merged", silent).passed


def test_a_stranger_brings_an_adapter_on_experts(base, tmp_path):
    adapter = adapter_on(base)
    found = look(take(_saved(tmp_path / "one", adapter, base), _empty(tmp_path / "taken")))
    assert found.evidence.ranks == (3,)
    fitted = fit(found, base.layer_shapes, base.head, wholes=base.wholes)
    assert not differing_layers(adapter, fitted)


def _empty(folder):
    folder.mkdir()
    return folder


def test_a_blend_of_two_is_the_sum_of_both(base):
    one, other = adapter_on(base, 1), adapter_on(base, 2, rank=2, only="down_proj")
    blend = blended([Part("a", one, 0.7), Part("b", other, -0.4)])
    summed = combine([Part("a", one, 0.7), Part("b", other, -0.4)], CombineConfig(method="cat"), silent)
    for path in base.wholes.experts:
        wanted = 0.7 * one.layers[path].delta_weight()
        if path in other.layers:
            wanted = wanted - 0.4 * other.layers[path].delta_weight()
        for made in (blend, summed.adapter):
            torch.testing.assert_close(made.layers[path].delta_weight(), wanted, atol=1e-5, rtol=1e-5)


def test_a_cut_is_the_best_of_each_expert(base):
    adapter = adapter_on(base)
    cut = resize(adapter, 1).adapter
    path = adapter.experts[0]
    for number, delta in enumerate(adapter.layers[path].delta_weight()):
        U, S, V = torch.linalg.svd(delta)
        best = S[0] * torch.outer(U[:, 0], V[0])
        torch.testing.assert_close(
            cut.layers[path].of_expert(number).delta_weight(), best, atol=1e-4, rtol=1e-4
        )


def test_experts_of_lower_rank_are_filled_up():
    ranks = {"a.experts.down_proj.0": 1, "a.experts.down_proj.1": 3}
    own = {
        name: LayerFactors(torch.randn(rank, 4), torch.randn(2, rank), 0.5) for name, rank in ranks.items()
    }
    found = together(own, {"a.experts.down_proj"})["a.experts.down_proj"]
    torch.testing.assert_close(
        found.delta_weight(), torch.stack([one.delta_weight() for one in own.values()])
    )


def test_the_anatomy_of_experts_is_that_of_all_together(base):
    adapter = adapter_on(base)
    found = {one.path: one for one in anatomy(adapter)}
    path = adapter.experts[0]
    assert found[path].delta_norm == pytest.approx(
        float(adapter.layers[path].delta_weight().norm()), rel=1e-5
    )
    assert found[path].rank == 3 * base.wholes.experts[path].experts
    assert len(found[path].singular_values) == found[path].rank


def test_a_server_that_does_not_know_target_parameters_is_refused(base, folder, tmp_path):
    with pytest.raises(InvalidAdapter, match=r"factors on experts .* export it merged"):
        _export(folder, adapter_on(base), tmp_path / "out", format="vllm")


def test_an_export_for_peft_says_who_reads_it(base, folder, tmp_path):
    facts = _export(folder, adapter_on(base), tmp_path / "out", format="peft")
    assert any("target_parameters" in one for one in facts["warnings"])
    with loaded_bank(base.layers, [adapter_on(base)]).use():
        near(logits(base.model), logits(peft_from(folder, tmp_path / "out")))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dropout": 0.1}, "no dropout on experts, as in PEFT"),
        ({"kind": "dora"}, "DoRA cannot be on experts"),
        ({"enable_lora": "gate_up_proj=up"}, "enable_lora chooses parts"),
        ({"on_top_of": "other"}, "no learning on top"),
    ],
)
def test_what_experts_cannot_have_is_refused_before_anything_starts(options, why):
    with pytest.raises(InvalidConfig, match=why):
        LoraConfig(target_parameters="experts", **options)


def test_a_bias_on_b_and_a_classifier_are_refused_on_experts(base):
    lora = LoraConfig(**ON_EXPERTS)
    with pytest.raises(InvalidConfig, match="no bias on B of experts"):
        base.wholes.targetable(base.layer_shapes, lora, LoraOptions(lora_bias=True))
    with pytest.raises(InvalidConfig, match="leave target_parameters empty"):
        require_no_wholes(lora, LoraOptions())


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"lora_dropout": 0.1}, "does not go with lora_dropout"),
        ({"target_parameters": ["experts.other"]}, "names experts.other; in this base there are experts"),
        ({"target_parameters": ["experts.down_proj"]}, "The base has no layer .*base_layer"),
        ({"target_parameters": "experts"}, "must be a list"),
    ],
)
def test_files_that_cannot_be_right_are_refused(base, tmp_path, setting, why):
    folder = _saved(tmp_path / "one", adapter_on(base), base)
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | setting))
    with pytest.raises(InvalidAdapter, match=why):
        load_adapter(folder, base.layer_shapes, base.head, base.wholes)


@pytest.mark.parametrize("width", [8, 3])
def test_one_grouped_product_is_that_of_each_group(monkeypatch, width):
    """Also where a group is empty, and in widths that no kernel reads."""
    torch.manual_seed(0)
    x, matrices = torch.randn(9, 16, requires_grad=True), torch.randn(4, width, 16, requires_grad=True)
    ends, found = torch.tensor([0, 4, 4, 9], dtype=torch.int32), []
    for kernels in ({}, expert_products._KERNELS):
        monkeypatch.setattr(expert_products, "_KERNELS", kernels)
        y = expert_products.grouped_product(x, matrices.transpose(1, 2), ends)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, matrices))))
    by_hand = torch.cat([x[:4] @ matrices[1].T, x[4:] @ matrices[3].T])
    torch.testing.assert_close(found[0][0], by_hand)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_sinks_are_computed_by_a_fused_kernel(tokenizer, tmp_path):
    base = load(made("gpt_oss", tokenizer, tmp_path))
    assert base.way == Way(False, SINKS, experts="grouped_mm")
    plain, found = plain_model(base.folder), {}
    plain.set_attn_implementation("eager")
    plain.set_experts_implementation("eager")
    ids = torch.arange(3, 73).reshape(2, 35)
    for model in (plain, base.model):
        states = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits_ = model(inputs_embeds=states, use_cache=False).logits
        found[model] = logits_, torch.autograd.grad(logits_.square().sum(), states)[0]
    for wanted, one in zip(found[plain], found[base.model], strict=True):
        near(wanted.detach(), one.detach())
    with torch.no_grad():
        base.model.model.layers[0].self_attn.sinks += 3.0
        assert difference(found[plain][0].detach(), base.model(input_ids=ids).logits) > 0.01


@pytest.mark.parametrize("damage", ["", "rows", "scale"])
def test_a_merge_in_16_bits_is_compared_with_the_same_experts(tokenizer, tmp_path, damage):
    """By themselves both models send a hundredth of the tokens elsewhere, where scores are nearly equal."""
    folder = made("mixtral", tokenizer, tmp_path)
    file, config = folder / "model.safetensors", folder / "config.json"
    save_file({name: one.bfloat16() for name, one in load_file(file).items()}, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    base = load(folder)
    adapter, merged = adapter_on(base), tmp_path / "merged"
    _export(folder, adapter, merged)
    weights = load_file(merged / "model.safetensors")
    for name in [one for one in weights if ".gate.weight" in one]:
        weights[name] = {"rows": weights[name].flip(0), "scale": weights[name] * 1.5}.get(
            damage, weights[name]
        )
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    found = verify_merge(folder, adapter, merged, silent)
    if damage:
        wanted = {"rows": "of the tokens go to the same experts", "scale": "experts count .* more or less"}
        assert not found.passed
        assert re.search(wanted[damage], found.sentence())
        return
    assert found.passed, found.sentence()
    assert 0.95 < found.expert_agreement < 1
    assert found.relative_difference < 0.02
    assert "by themselves" in found.sentence()
