"""A merge onto the weights that a quantised base computes with, or onto the original ones."""

import pytest
import torch
from safetensors.torch import load_file

from core.base_model.skeleton import skeleton
from core.export.cards import Provenance, quantised_rows
from core.export.config import split_export_options
from core.export.duties import FAILED, PASSED, Exported, Exporting
from core.export.exporting import export
from core.lora.layer import plain_weight
from core.lora.mixed_bank import loaded_bank
from core.merge.held import held_tensors
from core.merge.verify import differing_tensors
from core.reporting import silent
from tests.core.helpers import load, logits, plain_model, random_adapter

ABOUT = Provenance(
    "base", "f" * 64, "mit", "mine", "a" * 64, "data", {"train": {"quantisation": "nf4"}}, None, None
)


def exported(folder, adapter, target, **options):
    """What was written, and the facts of it."""
    config, own = split_export_options({"format": "safetensors", **options})
    what = Exporting(folder, skeleton(folder), adapter, ABOUT, config, own)
    facts = export(what, target, silent)
    return Exported(target, folder, what.skeleton, adapter, config, own, ""), facts


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_the_merge_is_the_quantised_base_with_the_adapter(any_model, tmp_path, how):
    base = load(any_model, quantisation=how)
    adapter = random_adapter(base)
    made, facts = exported(any_model, adapter, tmp_path / "merged", merge_onto=how)
    with torch.no_grad(), loaded_bank(base.layers, [adapter]).use():
        expected = logits(base.model)
    torch.testing.assert_close(logits(plain_model(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)
    assert made.config.kind.check(made, silent).verdict == PASSED
    held = held_tensors(any_model, made.skeleton, how)
    assert differing_tensors(any_model, adapter, made.skeleton.transposed, made.folder, held) == []
    assert differing_tensors(any_model, adapter, made.skeleton.transposed, made.folder) != []
    assert facts["energy_kept"] == 1
    held, plain = (_weights(one) for one in (base, load(any_model)))
    assert facts["base_difference"] == pytest.approx(float((held - plain).norm() / plain.norm()), rel=1e-4)


def _weights(base):
    """Of all layers but the head, as [out, in], one after another."""
    layers = [layer for path, layer in base.layers.items() if path != base.head]
    return torch.cat([plain_weight(layer.base).flatten() for layer in layers])


def test_a_merge_that_was_made_onto_other_weights_does_not_pass(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama), size=0.02)
    made, _ = exported(tiny_llama, adapter, tmp_path / "merged", dtype="float32")
    _, own = split_export_options({"format": "safetensors", "merge_onto": "nf4"})
    found = Exported(made.folder, tiny_llama, made.skeleton, adapter, made.config, own, "")
    assert made.config.kind.check(found, silent).verdict == FAILED


def test_a_small_adapter_beside_rounded_weights_is_no_share_of_what_is_stored(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama), size=1e-3)
    _, facts = exported(tiny_llama, adapter, tmp_path / "merged", dtype="bfloat16", merge_onto="int8")
    assert facts["rounding_loss"] > 1
    assert [name for name, _ in quantised_rows(facts)] == ["Merged onto", "These weights differ"]


def test_a_gguf_model_says_beside_which_weights_its_adapter_was_trained(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama))
    _, facts = exported(tiny_llama, adapter, tmp_path / "merged", format="gguf")
    assert "NF4" in dict(quantised_rows(facts))["These weights differ"]
    assert "trained beside" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize("onto", ["original", "nf4"])
def test_the_energy_that_is_told_is_what_the_files_keep(tiny_llama, tmp_path, onto):
    """Of ΔW, in 16 bits: what is stored less what it was added to."""
    base = load(tiny_llama, quantisation="nf4" if onto == "nf4" else "none")
    adapter = random_adapter(base, size=0.05)
    _, facts = exported(tiny_llama, adapter, tmp_path / "merged", dtype="bfloat16", merge_onto=onto)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    lost = whole = 0.0
    for path, layer in adapter.layers.items():
        delta = layer.scale * layer.B @ layer.A
        kept = stored[f"{path}.weight"].float() - base.layers[path].weight
        lost, whole = lost + float((kept - delta).square().sum()), whole + float(delta.square().sum())
    assert facts["energy_kept"] == pytest.approx(1 - lost / whole, abs=1e-5)
    assert facts["energy_kept"] > 0.95
    rows = dict(quantised_rows(facts))
    assert ("NF4" in rows["Merged onto"]) == (onto == "nf4")
    assert "trained" in rows["These weights differ"] or onto == "nf4"
    assert rows["Of ΔW's energy kept"] in (tmp_path / "merged" / "README.md").read_text()
