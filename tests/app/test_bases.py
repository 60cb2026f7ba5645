"""Base models in the registry: what is refused when one is added, and what came in before it was."""

import json
import shutil
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from app.service.doctor import _unsound as ask_process
from app.service.doctor import examine_deeply
from app.shared.bases import base_for, experts_of, source_of
from core.base_model.describe import describe
from core.base_model.source import check_unchanged
from core.errors import InvalidConfig, WrongBase
from core.lora.config import LoraConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base
from tests.conftest import VOCABULARY, _save, make_llama
from tests.workbenches import do_job


@pytest.fixture
def incomplete(tiny_llama, tmp_path):
    """A base with a layer missing."""
    folder = shutil.copytree(tiny_llama, tmp_path / "incomplete")
    kept = {name: one for name, one in load_file(folder / "model.safetensors").items() if "rs.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _row(workbench, name, folder):
    """A row as an earlier version of the workbench made it, which compared nothing."""
    info = describe(folder)
    about = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "manifest"}
    like = workbench.registry.find(Base, "llama").model_dump(exclude={"id"})
    return workbench.registry.add(Base(**like | about | {"name": name, "folder": str(folder), "files": {}}))


def test_a_base_with_a_layer_missing_is_refused_when_it_is_added(workbench, incomplete):
    job = do_job(workbench, "add_model", {"origin": str(incomplete), "name": "incomplete"})
    assert job.state == "failed"
    assert "tensors are missing: model.layers.1.input_layernorm.weight" in job.message
    assert [base.name for base in workbench.registry.all(Base)] == ["llama"]


def test_the_doctor_finds_what_came_in_earlier(workbench, incomplete):
    found = {one.what: one for one in examine_deeply(workbench)}
    assert found["Their architectures"].level == "fine"
    _row(workbench, "incomplete", incomplete)
    found = {one.what: one for one in examine_deeply(workbench)}
    assert found["Base models"].level == "fine"
    assert found["Their architectures"].level == "fault"
    assert "The weights of incomplete are not those of the model" in found["Their architectures"].found


def test_the_doctor_asks_a_process_that_has_torch(incomplete, tiny_llama):
    (said,) = ask_process([str(tiny_llama), str(incomplete)])
    assert "The weights of incomplete are not those of the model" in said
    assert ask_process([]) == []


def test_an_adapter_is_used_with_the_twin_that_it_was_trained_on(workbench, tiny_llama, tmp_path):
    """Of two bases with equal weights the one with its template, wherever a base is looked up for it."""
    folder = shutil.copytree(tiny_llama, tmp_path / "twin")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert do_job(workbench, "add_model", {"origin": str(folder), "name": "twin"}).state == "finished"
    for name in ("twin", "llama"):
        base = workbench.registry.find(Base, name)
        adapter = Adapter(
            name=f"of {name}",
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            tokenizer_hash=base.tokenizer_hash,
            template_hash=base.template_hash,
            source="trained",
            rank=1,
            alpha=1.0,
            target_modules="q_proj",
            parameters=1,
            digest="d" * 64,
            size_bytes=1,
        )
        assert base_for(workbench.registry, adapter).name == name


def test_another_template_is_no_moved_base(workbench, tmp_path, tokenizer):
    """Where a base has lost its files, only the same files take its place."""
    first = make_llama(tmp_path / "first", tokenizer, seed=5)
    assert do_job(workbench, "add_model", {"origin": str(first), "name": "first"}).state == "finished"
    second = shutil.move(first, tmp_path / "second")
    (tmp_path / "second" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    job = do_job(workbench, "add_model", {"origin": str(second), "name": "second"})
    assert json.loads(json.dumps(job.result))["name"] == "second"
    assert {base.name for base in workbench.registry.all(Base)} == {"llama", "first", "second"}


def test_experts_that_get_no_adapters_are_told_in_numbers(workbench, tmp_path, tokenizer):
    """Where targets are chosen and shown: the plan of a run, its log, and the base's own page and command."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    model = MixtralForCausalLM(
        MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    )
    folder = _save(model, tokenizer, tmp_path / "mixture")
    assert do_job(workbench, "add_model", {"origin": str(folder), "name": "mixture"}).state == "finished"
    fused, whole = 3 * 4 * 3 * 32 * 48, sum(one.numel() for one in model.parameters())
    plan = workbench.training.estimate("mixture", "data", TrainingOptions())
    assert "experts of 3 layers" in plan.experts
    assert f"unless Experts (target_parameters) is chosen: {fused:,} of {whole:,} parameters" in plan.experts
    assert experts_of(workbench.registry, workbench.registry.find(Base, "mixture")) == plan.experts
    assert workbench.training.estimate("llama", "data", TrainingOptions()).experts == ""
    chosen = TrainingOptions(LoraConfig(rank=2, target_parameters="experts"))
    planned = workbench.training.estimate("mixture", "data", chosen)
    of_experts = 3 * 4 * 2 * ((32 + 2 * 48) + (48 + 32))
    plain = workbench.training.estimate("mixture", "data", TrainingOptions(LoraConfig(rank=2)))
    assert planned.trainable_parameters == plain.trainable_parameters + of_experts
    assert planned.targets["experts.gate_up_proj"] == (3, 3 * 4 * 2 * (32 + 2 * 48))
    assert planned.memory_bytes > plain.memory_bytes
    assert "Each of the 4 experts of 3 layers gets factors of its own" in planned.experts
    with pytest.raises(InvalidConfig, match="No experts of this model have a parameter called 'experts'"):
        workbench.training.estimate("llama", "data", chosen)


def test_a_configuration_that_was_edited_is_refused_until_it_is_accepted(workbench, tiny_llama, tmp_path):
    """Also where the field that was edited is in no fingerprint."""
    folder = shutil.copytree(tiny_llama, tmp_path / "mine")
    assert do_job(workbench, "add_model", {"origin": str(folder), "name": "mine"}).state == "finished"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_multiplier": 2.0}))

    def check():
        check_unchanged(source_of(workbench.registry, workbench.registry.find(Base, "mine")))

    with pytest.raises(WrongBase, match=r"config.json in .* not as it was .* models verify --accept"):
        check()
    workbench.models.verify("mine", accept=True)
    check()
