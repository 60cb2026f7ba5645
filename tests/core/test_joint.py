"""Layers that are given the same input and computed as one in answers."""

import pytest
import torch

from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.joint import _joint_factors, find_joints, together
from core.lora.mixed_bank import loaded_bank
from core.lora.wrapping import wrap_linear_layers


def _model(**changes):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=64, num_hidden_layers=2, **sizes | changes)
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # transformers starts them at zero
    wrap_linear_layers(model)
    return model


def _logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5)[:, None], use_cache=False).logits


def test_q_k_v_and_gate_up_are_one_product_each_and_give_the_same():
    model = _model()
    before = _logits(model)
    stored = {name: one.clone() for name, one in model.state_dict().items()}
    joints = find_joints(model)
    calls = []
    linear = torch.nn.functional.linear

    def counting(x, weight, bias=None):
        calls.append(weight.shape[0])
        return linear(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch, together(joints):
        patch.setattr(torch.nn.functional, "linear", counting)
        found = _logits(model)
    assert calls[:-1] == [128 + 64 + 64, 128, 2 * 192, 128] * 2  # the last is the head
    torch.testing.assert_close(found, before)
    assert torch.equal(_logits(model), before)  # each by itself again
    assert all(torch.equal(one, stored[name]) for name, one in model.state_dict().items())


def test_weights_are_held_once():
    model = _model()
    find_joints(model)
    layers = [
        model.model.layers[0].self_attn.get_submodule(name).base for name in ("q_proj", "k_proj", "v_proj")
    ]
    memory = {one.weight.untyped_storage().data_ptr() for one in layers}
    assert len(memory) == 1
    assert layers[0].weight.untyped_storage().nbytes() == sum(one.weight.nbytes for one in layers)


def test_layers_of_sizes_that_the_kernels_do_not_take_stay_apart():
    model = _model(hidden_size=96, intermediate_size=128, num_attention_heads=3, num_key_value_heads=1)
    joints = find_joints(model)
    assert [one._sizes for one in joints] == [[128, 128]] * 2


def test_a_model_that_asks_in_another_order_than_it_has_them_is_computed_right():
    model = _model()
    for layer in model.model.layers:  # as where v_proj was registered first
        modules = layer.self_attn._modules
        modules["q_proj"] = modules.pop("q_proj")
    before = _logits(model)
    joints = find_joints(model)
    assert joints[0]._sizes == [64, 64, 128]
    with together(joints):
        torch.testing.assert_close(_logits(model), before)


def _bank(model, names, ranks=(4, 4)):
    layers = {path: one for path, one in model.named_modules() if path.endswith(names) and "base" not in path}
    return loaded_bank(layers, [AdapterWeights(rank, rank, 0.0, _factors(layers, rank)) for rank in ranks])


def _factors(layers, rank):
    return {
        path: LayerFactors(
            torch.randn(rank, one.in_features), torch.randn(one.out_features, rank), 0.5 + rank
        )
        for path, one in layers.items()
    }


def test_the_factors_of_layers_behind_each_other_are_one_view():
    model = _model()
    joint = find_joints(model)[0]
    bank = _bank(model, ("q_proj", "k_proj", "v_proj"), ranks=(4, 2))
    with bank.use(torch.tensor([0, 1])):
        stacks = [layer.factors for layer in joint._layers]
        A, B, scale = _joint_factors(stacks)
    assert torch.equal(A, torch.cat([one.work_A for one in stacks], dim=1))
    assert torch.equal(B, torch.cat([one.work_B for one in stacks], dim=1))
    assert torch.equal(scale, torch.stack([one.scale for one in stacks]))
    assert A.data_ptr() == stacks[0].work_A.data_ptr()


def test_layers_of_which_only_some_have_adapters_are_computed_by_themselves():
    model = _model()
    joints = find_joints(model)
    bank = _bank(model, ("q_proj", "v_proj"))
    slots = torch.tensor([0, 1, 0, 1, 0])
    with bank.use(slots):
        expected = _logits(model)
        with together(joints):
            torch.testing.assert_close(_logits(model), expected)
