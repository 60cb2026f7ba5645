"""The LoRA layer and banks: formulas, the frozen base, slots."""

import pytest
import torch
from torch import nn

from core.errors import InvalidConfig
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.kinds.lora import KIND as LORA
from core.lora.layer import LoraLinear
from core.lora.module_names import by_pattern, ends_with
from core.lora.scaling import alpha_of, scaling
from core.lora.targets import select_targets, trainable_parameter_count
from core.options import NoOptions
from tests.core.helpers import PROBE, load, logits, random_adapter


def _targets(base):
    return [path for path in base.layers if path != base.head]


def _bank(base, slots=1, rank=4, dropout=()):
    return AdapterBank(base.layers, _targets(base), slots, rank, dropout=dropout, trainable=True)


def test_layer_computes_the_papers_equation():
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(6, 5))
    bank = AdapterBank({"only": layer}, ["only"], slots=1, rank=2)
    A, B = torch.randn(2, 6), torch.randn(5, 2)
    bank.load(0, AdapterWeights(2, 3.0, 0.0, {"only": LayerFactors(A, B, 1.5)}))
    x = torch.randn(3, 4, 6)
    expected = x @ layer.weight.T + layer.bias + 1.5 * (x @ A.T @ B.T)
    with bank.use():
        torch.testing.assert_close(layer(x), expected)


def test_a_fresh_adapter_changes_nothing_at_all(any_model):
    base = load(any_model)
    before = logits(base.model)
    bank = _bank(base)
    bank.initialise(0, LoraConfig(rank=4), NoOptions(), _targets(base), seed=3)
    with bank.use():
        assert torch.equal(logits(base.model), before)


def test_the_base_is_frozen_and_only_factors_train(any_model):
    base = load(any_model)
    bank = _bank(base)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    counted = sum(parameter.numel() for parameter in bank.parameters() if parameter.requires_grad)
    assert counted == trainable_parameter_count(base.layer_shapes, _targets(base), LoraConfig(rank=4))
    assert sum(row.numel() for row in bank.parameters_of(0).values()) == counted


def test_using_a_bank_leaves_the_base_as_it_was(tiny_llama):
    base = load(tiny_llama)
    before = logits(base.model)
    bank = _bank(base)
    bank.load(0, random_adapter(base))
    with bank.use():
        assert not torch.allclose(logits(base.model), before)
    assert torch.equal(logits(base.model), before)


def test_adapters_of_different_rank_share_a_batch_with_the_plain_base(any_model):
    base = load(any_model)
    small, large = random_adapter(base, rank=2, seed=1), random_adapter(base, rank=5, alpha=5, seed=2)
    bank = _bank(base, slots=3, rank=5)
    bank.load(1, small)
    bank.load(2, large)
    row = PROBE[:1]
    with torch.no_grad(), bank.use(torch.tensor([2, 0, 1])):
        together = base.model(input_ids=row.repeat(3, 1)).logits
    for position, adapter in enumerate((large, None, small)):
        alone = _bank(base, rank=5)
        if adapter:
            alone.load(0, adapter)
        with torch.no_grad(), alone.use():
            torch.testing.assert_close(
                together[position], base.model(input_ids=row).logits[0], atol=1e-5, rtol=1e-5
            )


def test_the_same_seed_starts_the_same_adapter(tiny_llama):
    base = load(tiny_llama)
    first, second, other = _bank(base), _bank(base), _bank(base)
    for bank, seed in ((first, 5), (second, 5), (other, 6)):
        bank.initialise(0, LoraConfig(rank=4), NoOptions(), _targets(base), seed)
    path = next(iter(first.factors))
    assert torch.equal(first.factors[path].A, second.factors[path].A)
    assert not torch.equal(first.factors[path].A, other.factors[path].A)


def test_dropout_is_active_in_training_only(tiny_llama):
    base = load(tiny_llama)
    bank = _bank(base, dropout=[0.5])
    bank.load(0, random_adapter(base))
    with bank.use():
        bank.eval()
        assert torch.equal(logits(base.model), logits(base.model))
        plain = logits(base.model)
        bank.train()
        dropped = logits(base.model)
        bank.dropout.keys.fill_(1)
        assert not torch.equal(dropped, plain)
        assert not torch.equal(logits(base.model), dropped)


def test_all_linear_leaves_the_head_out(tiny_qwen):
    base = load(tiny_qwen)
    assert base.head == "lm_head"
    assert "lm_head" not in select_targets(list(base.layers), LoraConfig(), base.head)
    assert select_targets(list(base.layers), LoraConfig(target_modules="lm_head"), base.head) == ["lm_head"]


def test_a_tied_head_cannot_be_targeted(tiny_llama):
    base = load(tiny_llama)
    with pytest.raises(InvalidConfig, match="lm_head"):
        select_targets(list(base.layers), LoraConfig(target_modules="lm_head"), base.head)


def test_a_target_that_matches_nothing_lists_what_there_is(tiny_llama):
    base = load(tiny_llama)
    with pytest.raises(InvalidConfig, match=r"'qproj'.*down_proj, gate_proj, k_proj.*all-linear"):
        select_targets(list(base.layers), LoraConfig(target_modules="q_proj,qproj"), base.head)


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 0.5), (True, 2.0)])
def test_the_scale_is_alpha_by_the_rank_or_its_root(use_rslora, scale):
    assert scaling(8, 16, use_rslora) == scale
    assert alpha_of(scale, 16, use_rslora) == 8
    assert LoraConfig(rank=16, alpha=8, use_rslora=use_rslora).scaling == scale


@pytest.mark.parametrize(
    ("name", "speaks"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("model.q_proj", False),
        ("proj", False),
        ("x.q_proj", False),
    ],
)
def test_a_name_speaks_of_the_modules_whose_path_ends_with_it(name, speaks):
    path = "model.layers.0.self_attn.q_proj"
    assert ends_with(path, name) is speaks
    assert by_pattern({"other": 1, name: 2}, path, 3) == (2 if speaks else 3)


def test_a_trained_number_takes_a_copy_more_where_the_base_has_fewer_bits():
    layers, whole, fixed = [(30, 20, 2)], LORA.options(), LORA.options(freeze_a=True)
    assert [LORA.training_bytes(layers, whole, width) / 100 for width in (8, 4, 2)] == [32, 16, 18]
    trained, staying = 2 * 20, 2 * 30  # LoRA-FA: a gradient and moments for B alone
    assert LORA.parameter_count(layers, fixed) == trained
    assert LORA.training_bytes(layers, fixed, 2) == 18 * trained + 6 * staying
