"""Layers that PEFT takes for experts by their names are told when an adapter is exported for it."""

import pytest
import torch

from core.lora.mixed_bank import loaded_bank
from tests.conftest import _save
from tests.core.families import QUICK, tiny_model
from tests.core.helpers import load, logits, peft_from, random_adapter
from tests.core.test_export_companions import exported


@pytest.mark.filterwarnings("ignore:The following", "ignore:Found missing adapter keys")
@pytest.mark.parametrize(("family", "is_right"), [("glm4_moe", False), ("qwen2_moe", True)])
def test_whether_peft_computes_the_same_is_told(tokenizer, tmp_path, family, is_right):
    folder = _save(tiny_model(family, **QUICK[family]), tokenizer, tmp_path / family)
    base = load(folder)
    adapter = random_adapter(base, rank=2)
    facts = exported(folder, adapter, tmp_path / "out", format="peft")
    assert any("for experts by the name" in one for one in facts["warnings"]) is not is_right
    with torch.no_grad(), loaded_bank(base.layers, [adapter]).use():
        wanted = logits(base.model)
    assert torch.allclose(logits(peft_from(folder, tmp_path / "out")), wanted, atol=1e-3) is is_right
