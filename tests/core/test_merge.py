"""Merging: exact, byte for byte elsewhere, checked after reloading, and nothing half done."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.base_model.skeleton import skeleton
from core.config import ExportConfig
from core.errors import InvalidInput, OutOfSpace
from core.merge.cards import Provenance
from core.merge.export import Exporting, export
from core.merge.verify import verify_merge
from core.reporting import silent
from core.safetensors_file import read_header
from tests.conftest import make_llama
from tests.core.helpers import load, logits, peft_from, plain_model, random_adapter

ABOUT = Provenance("base", "f" * 64, "mit", "my | adapter", "a" * 64, "data", {"rank": 4}, 1.5, None)


def _export(folder, adapter, target, report=silent, **options):
    return export(Exporting(folder, skeleton(folder), adapter, ABOUT, ExportConfig(**options)), target, report)


def test_the_merged_model_is_base_plus_adapter(any_model, tmp_path):
    from core.lora.peft_format import save_adapter

    adapter = random_adapter(load(any_model))
    _export(any_model, adapter, tmp_path / "merged")
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter)
    expected = logits(peft_from(any_model, tmp_path / "adapter"))
    torch.testing.assert_close(logits(plain_model(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


def test_untouched_tensors_are_copied_byte_for_byte(tiny_llama, tmp_path):
    base = load(tiny_llama)
    adapter = random_adapter(base)
    written = _export(tiny_llama, adapter, tmp_path / "merged")
    before, after = load_file(tiny_llama / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    touched = {f"{path}.weight" for path in adapter.layers}
    assert before.keys() == after.keys()
    assert (written["merged_tensors"], written["copied_tensors"]) == (len(touched), len(before) - len(touched))
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in touched), name


def test_shards_keep_their_layout(tmp_path, tokenizer):
    folder = make_llama(tmp_path / "sharded", tokenizer, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").exists()
    adapter = random_adapter(load(folder))
    _export(folder, adapter, tmp_path / "merged")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == shards
    assert len(shards) > 1
    assert verify_merge(folder, adapter, tmp_path / "merged", silent).passed


def test_addition_is_in_float32_and_cast_once(tmp_path, tokenizer):
    folder = make_llama(tmp_path / "bf16", tokenizer)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    adapter = random_adapter(load(folder))
    _export(folder, adapter, tmp_path / "merged")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    for path, factors in adapter.layers.items():
        expected = (weights[f"{path}.weight"].float() + factors.scale * factors.B @ factors.A).bfloat16()
        assert torch.equal(after[f"{path}.weight"], expected)
    check = verify_merge(folder, adapter, tmp_path / "merged", silent)
    assert check.passed
    assert 0 < check.relative_difference < check.tolerance == 0.05 < check.adapter_effect


def test_the_check_fails_for_a_model_that_is_not_the_merge(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama))
    _export(tiny_llama, adapter, tmp_path / "merged")
    good = verify_merge(tiny_llama, adapter, tmp_path / "merged", silent)
    assert good.passed
    assert good.sentence().startswith("Passed")
    weights = tmp_path / "merged" / "model.safetensors"
    weights.write_bytes((tiny_llama / "model.safetensors").read_bytes())
    bad = verify_merge(tiny_llama, adapter, tmp_path / "merged", silent)
    assert not bad.passed
    assert bad.sentence().startswith("FAILED")


def test_the_check_notices_a_lost_template_and_end_token(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama))
    merged = tmp_path / "merged"
    _export(tiny_llama, adapter, merged)
    (merged / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    generation = json.loads((merged / "generation_config.json").read_text()) | {"eos_token_id": 7}
    (merged / "generation_config.json").write_text(json.dumps(generation))
    problems = " ".join(verify_merge(tiny_llama, adapter, merged, silent).problems)
    assert "chat template" in problems
    assert "end tokens" in problems


def test_the_card_and_the_headers_say_what_it_is(tiny_llama, tmp_path):
    _export(tiny_llama, random_adapter(load(tiny_llama)), tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    for expected in ("license: mit", "f" * 64, "a" * 64, "my   adapter", "train 1.5000", '"rank": 4'):
        assert expected in card
    metadata = read_header(tmp_path / "merged" / "model.safetensors").metadata
    assert metadata["merged_adapter"] == "a" * 64


def test_an_occupied_folder_is_refused_and_left_alone(tiny_llama, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="not empty"):
        _export(tiny_llama, random_adapter(load(tiny_llama)), tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_noticed_before_anything_is_written(tiny_llama, tmp_path, monkeypatch):
    import shutil

    full = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutOfSpace, match="0 MB are free"):
        _export(tiny_llama, random_adapter(load(tiny_llama)), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_nothing(tiny_llama, tmp_path, monkeypatch):
    adapter = random_adapter(load(tiny_llama))

    def report(progress):
        if "layers.1" in progress.message:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        _export(tiny_llama, adapter, tmp_path / "merged", report)
    assert list(tmp_path.iterdir()) == []
