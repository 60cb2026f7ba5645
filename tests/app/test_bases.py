"""Base models in the registry: what is refused when one is added, and what came in before it was."""

import json
import shutil
from dataclasses import fields

import pytest
from safetensors.torch import load_file, save_file

from app.service.doctor import examine_deeply
from app.shared.bases import base_for
from core.base_model.describe import describe
from storage.tables import Adapter, Base
from tests.conftest import make_llama
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
    return workbench.registry.add(Base(**like | about | {"name": name, "folder": str(folder)}))


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
