"""What belongs to what: every way a base can be the wrong one, against every place where that matters."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine.checkpoints import load_checkpoint
from app.engine.preparing import base_source
from app.shared.bases import source_of
from core.base_model.fingerprint import stat_key
from core.engine import Engine
from core.errors import InvalidInput, WrongBase
from storage.tables import Adapter, Base, Run
from tests.conftest import make_llama
from tests.workbenches import QUICK, do_job, finish


def flipped(folder, tokenizer):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def another_revision(folder, tokenizer):
    _replace(folder, tokenizer, seed=1)


def fewer_layers(folder, tokenizer):
    _replace(folder, tokenizer, layers=1)


def _replace(folder, tokenizer, **how):
    shutil.rmtree(folder)
    make_llama(folder, tokenizer, **how)


def quantised(folder, tokenizer):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = (tensors[name] * 100).to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )


def other_tokenizer(folder, tokenizer):
    about = json.loads((folder / "tokenizer.json").read_text())
    about["model"]["merges"] = about["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(about))


def other_template(folder, tokenizer):
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )


def resharded(folder, tokenizer):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = (sorted(tensors)[::2], sorted(tensors)[1::2])
    for at, names in enumerate(halves):
        save_file(
            {name: tensors[name] for name in names},
            folder / f"model-{at}.safetensors",
            metadata={"format": "pt"},
        )
    where = {name: f"model-{at}.safetensors" for at, names in enumerate(halves) for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def nothing(folder, tokenizer):
    """The same files."""


WEIGHTS = {
    flipped: "same shapes but other weights in 1 of 20 tensors",
    another_revision: "same shapes but other weights in 15 of 20",
    fewer_layers: "num_hidden_layers is 1 instead of 2",
    quantised: "q_proj.weight is I8 [32, 32] instead of F32 [32, 32]",
}


@pytest.fixture
def home(workbench, tiny_llama, tmp_path, session, checked_here):
    """A base whose files can be changed, an adapter trained on it with a checkpoint, and the adapter as PEFT
    files.
    """
    row = workbench.registry.find(Base, "llama")
    folder = shutil.copytree(tiny_llama, tmp_path / "mine")
    workbench.registry.save(Base(**row.model_dump() | {"folder": str(folder), "stat_key": stat_key(folder)}))
    finish(session("taught", **QUICK | {"max_steps": 2, "save_steps": 1})[1])
    exported = do_job(
        workbench,
        "export_adapter",
        {"adapter": "taught", "folder": str(tmp_path / "peft"), "config": {"format": "peft"}},
    )
    assert exported.state == "finished", exported.message
    return folder


def _engine():
    return Engine(torch.device("cpu"), torch.float32)


def load(workbench, tmp_path):
    _engine().load_base(source_of(workbench.registry, workbench.registry.find(Base, "llama")))
    return []


def resume(workbench, tmp_path):
    run, engine = workbench.registry.get(Run, 1), _engine()
    base = engine.load_base(base_source(workbench.registry, run))
    assert load_checkpoint(workbench.registry, run, engine, base) is not None
    return []


def chat(workbench, tmp_path):
    warned = workbench.chats.warnings("llama", ["taught"])
    load(workbench, tmp_path)
    return warned


def _job(workbench, kind, arguments):
    job = do_job(workbench, kind, arguments)
    if job.state != "finished":
        raise WrongBase(job.message)
    return job.result


def combine(workbench, tmp_path):
    registry = workbench.registry
    load(workbench, tmp_path)
    twin = registry.find(Adapter, "taught")
    registry.add(Adapter(**twin.model_dump() | {"id": None, "name": "twin"}))
    parts = [{"name": "taught", "weight": 0.5}, {"name": "twin", "weight": 0.5}]
    return _job(workbench, "combine_adapters", {"parts": parts, "config": {}})["warnings"]


def merge(workbench, tmp_path):
    return _job(
        workbench, "export_adapter", {"adapter": "taught", "folder": str(tmp_path / "out"), "config": {}}
    )["warnings"]


def bring_in(workbench, tmp_path):
    load(workbench, tmp_path)
    said = _job(
        workbench, "import_adapter", {"folder": str(tmp_path / "peft"), "name": "again", "base": "llama"}
    )["warning"]
    return [said] if said else []


PLACES = [load, resume, chat, combine, merge, bring_in]


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda one: one.__name__)
def test_a_base_whose_weights_have_changed_is_refused_everywhere(
    workbench, home, tmp_path, tokenizer, change
):
    change(home, tokenizer)
    for place in PLACES:
        with pytest.raises(WrongBase) as refusal:
            place(workbench, tmp_path)
        assert WEIGHTS[change] in str(refusal.value), place.__name__
    with pytest.raises(WrongBase, match="no longer fit"):
        workbench.models.verify("llama")
    assert not (tmp_path / "out").exists()
    assert workbench.registry.names(Adapter) <= {"taught", "twin"}


@pytest.mark.parametrize("change", [other_tokenizer, other_template], ids=lambda one: one.__name__)
def test_another_tokenizer_or_template_is_warned_of_and_stops_a_resume(
    workbench, home, tmp_path, tokenizer, change
):
    change(home, tokenizer)
    word = "tokenizer" if change is other_tokenizer else "chat template"
    for place in PLACES:
        if place is load:
            assert place(workbench, tmp_path) == []
        elif place is resume:
            with pytest.raises(InvalidInput, match=word):
                place(workbench, tmp_path)
        else:
            assert f"The {word} of llama is not the one" in " ".join(place(workbench, tmp_path)), (
                place.__name__
            )
    with pytest.raises(WrongBase, match="is not as it was"):
        workbench.models.verify("llama")
    workbench.models.verify("llama", accept=True)
    workbench.models.verify("llama")


@pytest.mark.parametrize("change", [nothing, resharded], ids=["moved and renamed", "re-sharded"])
def test_the_same_model_elsewhere_is_the_same_base(workbench, home, tmp_path, tokenizer, change):
    change(home, tokenizer)
    shutil.move(home, tmp_path / "moved and renamed")
    job = do_job(
        workbench, "add_model", {"origin": str(tmp_path / "moved and renamed"), "name": "other name"}
    )
    assert job.result["name"] == "llama"  # the base takes its files over, since it had lost them
    assert [row.name for row in workbench.registry.all(Base)] == ["llama"]
    for place in PLACES:
        assert place(workbench, tmp_path) == [], place.__name__


def test_a_merged_model_is_another_base_and_the_same_adapter_is_not_merged_again(workbench, home, tmp_path):
    result = _job(
        workbench, "export_adapter", {"adapter": "taught", "folder": str(tmp_path / "out"), "config": {}}
    )
    merged = workbench.registry.find(Base, result["base"])
    original, adapter = workbench.registry.find(Base, "llama"), workbench.registry.find(Adapter, "taught")
    assert merged.fingerprint != original.fingerprint
    assert merged.merged == {
        "base_fingerprint": original.fingerprint,
        "base_name": "llama",
        "adapter_digest": adapter.digest,
        "adapter_name": "taught",
    }
    with pytest.raises(WrongBase, match="taught merged is llama with taught merged in already"):
        workbench.chats.warnings("taught merged", ["taught"])
    with pytest.raises(WrongBase, match="merged in already"):
        _job(
            workbench,
            "import_adapter",
            {"folder": str(tmp_path / "peft"), "name": "again", "base": "taught merged"},
        )
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "copy", home)  # the merged model in the place of its base
    with pytest.raises(WrongBase, match="other weights in 14 of 20"):
        load(workbench, tmp_path)


def test_an_adapter_for_another_local_base_says_which_one_it_fits(workbench, home, other_llama, tmp_path):
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "other"})
    with pytest.raises(WrongBase, match=r"other weights in 15 of 20 tensors.*It fits llama: choose that"):
        workbench.chats.warnings("other", ["taught"])
    row = workbench.registry.find(Adapter, "taught")
    other = workbench.registry.find(Base, "other")
    workbench.registry.add(
        Adapter(
            **row.model_dump()
            | {"id": None, "name": "stranger", "base_name": "other", "base_fingerprint": other.fingerprint}
        )
    )
    with pytest.raises(WrongBase, match="stranger was made for other"):
        workbench.adapters.combine({"taught": 0.5, "stranger": 0.5}, {})
    with pytest.raises(WrongBase, match="It fits llama"):
        _job(
            workbench, "import_adapter", {"folder": str(tmp_path / "peft"), "name": "again", "base": "other"}
        )


def test_a_model_that_was_quantised_before_is_not_added(workbench, tiny_llama, tmp_path, tokenizer):
    folder = shutil.copytree(tiny_llama, tmp_path / "q")
    quantised(folder, tokenizer)
    job = do_job(workbench, "add_model", {"origin": str(folder), "name": "q"})
    assert "was quantised before (bitsandbytes)" in job.message
