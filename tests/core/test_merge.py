"""Merging: exact, byte for byte elsewhere, checked after reloading, and nothing half done."""

import copy
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.base_model.skeleton import skeleton
from core.errors import InvalidInput, OutOfSpace
from core.export.cards import Provenance, rounding_words
from core.export.check_process import check
from core.export.config import split_export_options
from core.export.duties import Exporting
from core.export.exporting import export
from core.files.safetensors_file import read_header
from core.gguf.modelfile import chat_parts
from core.lora.peft.files import save_adapter
from core.merge.verify import verify_merge
from core.reporting import silent
from tests.conftest import make_llama
from tests.core.helpers import load, logits, peft_from, plain_model, random_adapter

ABOUT = Provenance("base", "f" * 64, "mit", "my | adapter", "a" * 64, "data", {"rank": 4}, 1.5, None)


def _export(folder, adapter, target, report=silent, **options):
    what = Exporting(folder, skeleton(folder), adapter, ABOUT, *split_export_options(options))
    return export(what, target, report)


def test_the_merged_model_is_base_plus_adapter(any_model, tmp_path):
    adapter = random_adapter(load(any_model))
    _export(any_model, adapter, tmp_path / "merged")
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter)
    expected = logits(peft_from(any_model, tmp_path / "adapter"))
    torch.testing.assert_close(logits(plain_model(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


def test_a_place_that_cannot_be_written_is_named(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama))
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(InvalidInput, match=f"{target} cannot be written: .+ Choose another place"):
            _export(tiny_llama, adapter, target)


def test_untouched_tensors_are_copied_byte_for_byte(tiny_llama, tmp_path):
    base = load(tiny_llama)
    adapter = random_adapter(base)
    written = _export(tiny_llama, adapter, tmp_path / "merged")
    before, after = (
        load_file(tiny_llama / "model.safetensors"),
        load_file(tmp_path / "merged" / "model.safetensors"),
    )
    touched = {f"{path}.weight" for path in adapter.layers}
    assert before.keys() == after.keys()
    assert (written["merged_tensors"], written["copied_tensors"]) == (
        len(touched),
        len(before) - len(touched),
    )
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
    weights = _bf16(folder)
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


def _bf16(folder):
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return weights


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_rounding_loss_that_is_reported_is_the_one_there_is(tmp_path, tokenizer, tiny_gpt2, kind):
    folder = (
        make_llama(tmp_path / "bf16", tokenizer)
        if kind == "llama"
        else shutil.copytree(tiny_gpt2, tmp_path / "bf16")
    )
    weights, adapter = _bf16(folder), random_adapter(load(folder), size=0.01)
    written = _export(folder, adapter, tmp_path / "merged")
    after, transposed = load_file(tmp_path / "merged" / "model.safetensors"), skeleton(folder).transposed
    error = energy = worst = 0.0
    for path, factors in adapter.layers.items():
        name = f"{path}.weight" if f"{path}.weight" in weights else f"{path.partition('.')[2]}.weight"
        delta = factors.delta_weight().T if path in transposed else factors.delta_weight()
        lost = float((after[name].float() - (weights[name].float() + delta)).double().square().sum())
        size = float(delta.double().square().sum())
        error, energy, worst = error + lost, energy + size, max(worst, (lost / size) ** 0.5)
    assert written["rounding_loss"] == pytest.approx((error / energy) ** 0.5, rel=1e-4)
    assert written["worst_rounding_loss"] == pytest.approx(worst, rel=1e-4)
    assert 0.05 < written["rounding_loss"] < 2
    exact = _export(folder, adapter, tmp_path / "exact", dtype="float32")
    assert exact["rounding_loss"] == 0
    assert verify_merge(folder, adapter, tmp_path / "exact", silent).max_logit_difference < 1e-4
    assert json.loads((tmp_path / "exact" / "config.json").read_text())["dtype"] == "float32"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"| Rounding | {rounding_words(written['rounding_loss'], 'these weights')} |" in card


def test_shards_of_the_wanted_size(tmp_path, tiny_llama, monkeypatch):
    adapter = random_adapter(load(tiny_llama))
    written = _export(tiny_llama, adapter, tmp_path / "merged", shard_gigabytes=30_000 / 1e9)
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert written["merged_tensors"] == len(adapter.layers)
    assert verify_merge(tiny_llama, adapter, tmp_path / "merged", silent).passed
    whole = _export(tiny_llama, adapter, tmp_path / "whole", shard_gigabytes=1.0)
    assert whole["merged_tensors"] == len(adapter.layers)
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors")] == ["model.safetensors"]


def test_small_pieces_give_the_same_file(tmp_path, tiny_llama, monkeypatch):
    """Each tensor in several pieces, each piece in several blocks of rows."""
    adapter = random_adapter(load(tiny_llama))
    _export(tiny_llama, adapter, tmp_path / "whole")
    monkeypatch.setattr("core.merge.merge.PIECE_BYTES", 1024)
    monkeypatch.setattr("core.merge.merge._CACHED", 96)
    _export(tiny_llama, adapter, tmp_path / "pieces")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


def test_a_merge_killed_at_any_moment_leaves_no_half_model(tmp_path, tiny_llama):
    adapter, chance = random_adapter(load(tiny_llama)), random.Random(0)
    finished = 0
    for at in range(12):
        target = tmp_path / f"merged-{at}"
        child = os.fork()
        if not child:
            try:
                _export(tiny_llama, adapter, target, lambda progress: time.sleep(0.002))
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.exists():
            finished += 1
            assert set(load_file(target / "model.safetensors")) == set(
                load_file(tiny_llama / "model.safetensors")
            )
            assert (target / "README.md").exists()
    assert finished < 12
    for left in tmp_path.glob(".staging-*"):
        os.utime(left, (1, 1))
    _export(tiny_llama, adapter, tmp_path / "last")
    assert list(tmp_path.glob(".staging-*")) == []


# Ollama's Modelfile.

TEMPLATES = {
    "chatml with a default system": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ '### ' + m['role'] + ':\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
    ),
    "with braces": (
        "{% for m in messages %}{{ '{{' + m['role'] + '|' + m['content'] + '|' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '{{assistant|' }}{% endif %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_cut_into_what_ollama_needs(tokenizer, name):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATES[name]
    parts = chat_parts(tokenizer)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for messages in (turns, turns[:1], [{"role": "system", "content": "s"}, *turns]):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert parts.render(messages) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}",
        "{{ raise_exception('no') }}",
        (
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ "
            "m['content'] }}|{% endfor %}"
        ),
    ],
)
def test_a_template_that_does_more_is_left_to_ollama(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    assert chat_parts(tokenizer) is None


def test_an_ollama_bundle_holds_what_it_needs(tiny_llama, tmp_path):
    _export(tiny_llama, random_adapter(load(tiny_llama)), tmp_path / "bundle", format="ollama")
    text = (tmp_path / "bundle" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert 'TEMPLATE """{{ $before := "" }}{{ range' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 256" in text
    assert 'LICENSE """mit"""' in text
    assert (tmp_path / "bundle" / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_what_is_too_large_to_compute_is_read_back_tensor_by_tensor(tiny_llama, tmp_path, monkeypatch):
    adapter = random_adapter(load(tiny_llama))
    _export(tiny_llama, adapter, tmp_path / "merged")
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter)
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr("core.base_model.probes.psutil.virtual_memory", memory)
    question = {
        "base": str(tiny_llama),
        "adapter": str(tmp_path / "adapter"),
        "target": str(tmp_path / "merged"),
        "config": {},
        "template": "",
    }
    found = check(question, silent)
    assert found["verdict"] == "not checkable"
    assert "takes 0 GB of memory" in found["sentence"]
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        path = tmp_path / "merged" / "model.safetensors"
        whole = path.read_bytes()
        entry = next(one for one in read_header(path).tensors if one.name == name)
        path.write_bytes(whole[: entry.end - 1] + bytes([whole[entry.end - 1] ^ 0x40]) + whole[entry.end :])
        found = check(question, silent)
        assert (found["verdict"], name in found["sentence"]) == ("failed", True)
        path.write_bytes(whole)


def test_exports_name_the_template_s_end_of_turn_beside_the_base_s_eos(tokenizer, tmp_path):
    from tests.conftest import make_llama

    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    eos, end_of_turn = other.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    base = make_llama(tmp_path / "base", other)
    adapter = random_adapter(load(base))
    _export(base, adapter, tmp_path / "merged")
    stated = json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert stated == [eos, end_of_turn]
    assert load(tmp_path / "merged").end_token_ids() == {eos, end_of_turn}
    assert verify_merge(base, adapter, tmp_path / "merged", silent).passed
    _export(base, adapter, tmp_path / "ollama", format="ollama")
    fields = gguf.GGUFReader(tmp_path / "ollama" / "model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == eos
    assert fields["tokenizer.ggml.eot_token_id"].contents() == end_of_turn
    assert not fields["tokenizer.ggml.add_bos_token"].contents()
    modelfile = (tmp_path / "ollama" / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
