"""LoRA on some parts of a layer that holds several in one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from core.base_model.skeleton import skeleton
from core.errors import InvalidConfig
from core.events import Prepared, RunFailed
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.config import LoraConfig
from core.lora.fused import fused_parts, parts_by_name
from core.lora.layer import is_linear, plain_weight
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import load_adapter, save_checked
from core.lora.targets import select_targets
from core.merge.merge import merge_into_base
from core.reporting import silent
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.schedule import rate_factor, warmup_steps
from core.train.training_options import TrainingOptions
from tests.core.helpers import load, logits, peft_from, peft_loss, token_rows
from tests.core.test_wholes import ROWS

Q_AND_V = "c_attn=q+v"
SMALL = {"vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
FAMILIES = {
    "gpt2 c_attn": {"vocab_size": 64, "n_layer": 1, "n_embd": 32, "n_head": 4},
    "gpt_bigcode c_attn": {"vocab_size": 64, "n_layer": 1, "n_embd": 32, "n_head": 4},
    "gpt_neox query_key_value": {**SMALL, "intermediate_size": 64},
    "persimmon query_key_value": {**SMALL, "intermediate_size": 64, "qk_layernorm": False},
    "falcon query_key_value": {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
    "phi3 qkv_proj": {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0},
}


def _options(**more):
    lora = {"target_modules": "c_attn", "rank": 3, "alpha": 6, "enable_lora": Q_AND_V, **more.pop("lora", {})}
    usual = {"micro_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 96, "max_grad_norm": 0.5}
    return TrainingOptions(
        LoraConfig(**lora), TrainConfig(**{**usual, "learning_rate": 5e-3, "max_steps": 6, **more})
    )


def _trained(base, options):
    """The adapter as it started, and as it ended."""
    group = TrainingGroup(base, [RunRequest("run", token_rows(base, ROWS, 96, 2), options)])
    start = found = None
    for _, event in group.run():
        assert not isinstance(event, RunFailed), event.error
        if isinstance(event, Prepared):
            start, parameters = group.adapter("run"), event.trainable_parameters
        if group.runs:
            found = group.adapter("run")
    return start, found, parameters


class _ThreeLinears(nn.Module):
    """What c_attn would be as three linear layers, with LoRA on q and on v."""

    def __init__(self, module, factors, scale):
        super().__init__()
        width = module.weight.shape[1] // 3
        self.weights = plain_weight(module).split(width)
        self.biases, self.scale = module.bias.split(width), scale
        rank = factors.A.shape[0] // 2
        self.A = nn.ParameterDict({"0": factors.A[:rank].clone(), "2": factors.A[rank:].clone()})
        self.B = nn.ParameterDict({key: torch.zeros(width, rank) for key in "02"})

    def forward(self, x):
        found = [nn.functional.linear(x, *pair) for pair in zip(self.weights, self.biases, strict=True)]
        for key in self.A:
            found[int(key)] = found[int(key)] + self.scale * (x @ self.A[key].T @ self.B[key].T)
        return torch.cat(found, -1)


def test_it_learns_what_three_linear_layers_with_lora_on_two_of_them_learn(tiny_gpt2):
    base, options = load(tiny_gpt2), _options()
    start, found, parameters = _trained(base, options)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32).eval().requires_grad_(False)
    layers = {}
    for path, factors in start.layers.items():
        parent = theirs.get_submodule(path.rpartition(".")[0])
        parent.c_attn = layers[path] = _ThreeLinears(parent.c_attn, factors, 2.0)
    learning = [one for layer in layers.values() for one in layer.parameters()]
    assert parameters == sum(one.numel() for one in learning)
    _train(theirs, learning, base, options)
    for path, layer in layers.items():
        own, rank = found.layers[path], 3
        width = own.B.shape[0] // 3
        for key, columns in (("0", slice(rank)), ("2", slice(rank, None))):
            rows = slice(int(key) * width, (int(key) + 1) * width)
            torch.testing.assert_close(own.A[columns], layer.A[key].detach(), atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(own.B[rows, columns], layer.B[key].detach(), atol=1e-4, rtol=1e-3)


def _train(model, parameters, base, options):
    """The same steps by a plain loop."""
    config = options.train
    optimiser = torch.optim.AdamW(parameters, weight_decay=config.weight_decay)
    warmup = warmup_steps(config.max_steps, config.warmup_ratio)
    steps = RunData(token_rows(base, ROWS, config.max_length, 2), config).steps()
    for number, step in zip(range(config.max_steps), steps, strict=False):
        optimiser.zero_grad()
        for part in step.micro_batches:
            (peft_loss(model, part) * part.weight).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        at = number + 1 if number < warmup else number
        factor = rate_factor(config.lr_scheduler, at, config.max_steps, warmup)
        optimiser.param_groups[0]["lr"] = config.learning_rate * factor
        optimiser.step()


@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_kept_as_a_lora_that_peft_loads_and_k_is_the_bases_to_the_bit(tiny_gpt2, tmp_path, rslora):
    base, made = load(tiny_gpt2), skeleton(tiny_gpt2)
    _, adapter, _ = _trained(base, _options(lora={"use_rslora": rslora}))
    (files := tmp_path / "files").mkdir()
    save_checked(files, adapter, base.layer_shapes, base.head, wholes=base.wholes)
    config = json.loads((files / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (6, {}, {})
    found = load_adapter(files, base.layer_shapes, base.head)
    with loaded_bank(base.layers, [found]).use():
        ours = logits(base.model)
    torch.testing.assert_close(ours, logits(peft_from(tiny_gpt2, files)), atol=1e-5, rtol=1e-5)
    assert (ours - logits(base.model)).abs().max() > 1e-3
    (merged := tmp_path / "merged").mkdir()
    merge_into_base(tiny_gpt2, found, made.transposed, merged, silent, {})
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_gpt2, merged))
    for name in (name for name in before if name.endswith("c_attn.weight")):
        q, k, v = (
            torch.equal(*pair) for pair in zip(before[name].chunk(3, 1), after[name].chunk(3, 1), strict=True)
        )
        assert (q, k, v) == (False, True, False)


def test_a_zero_with_a_sign_stays_one_in_rows_that_nothing_touches(tmp_path, tiny_qwen):
    tensors = load_file(tiny_qwen / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name][:4] = -0.0
    (changed := tmp_path / "base").mkdir()
    for path in tiny_qwen.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    base = load(changed)
    B = torch.ones(32, 2)
    B[:4] = 0
    factors = base.layers["model.layers.0.self_attn.o_proj"]
    layer = AdapterWeights(2, 2.0, 0.0, {name.removesuffix(".weight"): _factors(factors.in_features, B)})
    (merged := tmp_path / "merged").mkdir()
    merge_into_base(changed, layer, frozenset(), merged, silent, {})
    after = load_file(merged / "model.safetensors")[name]
    assert torch.signbit(after[:4]).all()
    assert not torch.equal(after[4:], tensors[name][4:])


def _factors(inputs, B):
    return LayerFactors(torch.ones(B.shape[1], inputs), B, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_those_that_the_model_itself_takes(family):
    """Without v nothing is attended to; without q as without k all are attended to alike."""
    kind, name = family.split()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[family])).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    path, layer = next(one for one in model.named_modules() if one[0].endswith(f".{name}"))
    shapes = {path: plain_weight(layer).shape[::-1]}
    rows = dict(
        zip("qkv", fused_parts(model.config.to_dict(), shapes, {name: tuple("qkv")})[path], strict=True)
    )
    assert sorted(row for part in rows.values() for one in part for row in range(*one)) == list(
        range(shapes[path][1])
    )
    siblings = model.get_submodule(path.rpartition(".")[0]).modules()
    behind = next(one for one in siblings if is_linear(one) and one is not layer)
    found = {part: _without(model, behind, layer, rows[part]) for part in ("q", "k", "v")}
    torch.testing.assert_close(found["q"], found["k"])
    assert not found["v"].any()
    assert (found["q"] - found["q"][:, :1]).abs().max() > 1e-2


@torch.no_grad()
def _without(model, behind, layer, rows):
    """What comes of attending, as the layer behind it is given, where these rows of W are zero."""
    kept, seen = {name: one.clone() for name, one in layer.named_parameters()}, []
    hook = behind.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for first, end in rows:
        plain_weight(layer)[first:end] = 0
        if layer.bias is not None:
            layer.bias[first:end] = 0
    model(input_ids=torch.arange(3, 11)[None], use_cache=False)
    hook.remove()
    for name, one in kept.items():
        getattr(layer, name).copy_(one)
    return seen[0]


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"enable_lora": "c_attn"}, "does not say which parts of which layer"),
        ({"enable_lora": "c_attn=q+x"}, "c_attn has the parts q, k, v, and not 'x'"),
        ({"enable_lora": "c_fc=up", "target_modules": "c_fc"}, r"how c_fc of this kind of model \(gpt2\)"),
        ({"enable_lora": "c_attn=q", "target_modules": "c_fc"}, "none of the targeted modules"),
        ({"enable_lora": Q_AND_V, "kind": "dora"}, "DoRA depends on the whole of W"),
        ({"enable_lora": Q_AND_V, "rank": 600}, "rank must be between 1 and 1,024"),
    ],
)
def test_parts_that_cannot_be_are_refused_with_the_reason(tiny_gpt2, lora, said):
    with pytest.raises(InvalidConfig, match=said):
        _parts(load(tiny_gpt2), {"target_modules": "c_attn", **lora})


def _parts(base, lora):
    config = LoraConfig(**lora)
    targets = select_targets(list(base.layers), config, base.head)
    return fused_parts(base.config, {path: base.layer_shapes[path] for path in targets}, config.parts)


def test_a_choice_of_parts_is_read_as_people_write_it():
    assert parts_by_name(" c_attn = v + q ,gate_up_proj=up") == {
        "c_attn": ("v", "q"),
        "gate_up_proj": ("up",),
    }
