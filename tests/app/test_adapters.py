"""What is done with adapters: looked into, verified, resized with the loss measured, combined; and nothing
rots unseen.
"""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from app.jobs.adapters import load_row
from app.service.exports import verify_export, zipped
from app.shared.errors import QuotaExceeded
from core.base_model.fingerprint import stat_key
from core.errors import InvalidConfig, WorkbenchError
from core.lora.peft.files import differing_layers, save_adapter
from core.train.training_options import TrainingOptions
from storage.errors import BlobDamaged, NotFound, StorageError
from storage.tables import Adapter, Base, Export
from tests.workbenches import QUICK, copy_adapter, do_job, finish

FLIPS = int(os.environ.get("FLIPS", "40"))


def result(workbench, kind, **arguments):
    job = do_job(workbench, kind, arguments)
    assert job.state == "finished", job.message
    return job.result


@pytest.fixture
def taught(workbench, session):
    """An adapter that a run has trained, with validation rows."""
    finish(session("taught", **QUICK | {"max_steps": 12, "rank": 4, "eval_steps": 12})[1])
    return workbench.registry.find(Adapter, "taught")


def test_resizing_measures_the_loss_that_training_measured(workbench, taught):
    tried = result(workbench, "resize_adapter", adapter="taught", rank=2, evaluate=True, name="")
    assert tried["losses"][0] == pytest.approx(taught.validation_loss, rel=1e-4)
    assert tried["losses"][1] != tried["losses"][0]
    assert 0 < tried["energy_lost"] < 1
    assert workbench.registry.names(Adapter) == {"taught"}
    kept = result(workbench, "resize_adapter", adapter="taught", rank=2, evaluate=True, name="small")
    assert kept["losses"] == pytest.approx(tried["losses"], rel=1e-5)
    small = workbench.registry.find(Adapter, "small")
    assert (small.rank, small.source, small.parents[0]["name"]) == (2, "resized", "taught")
    assert small.tokenizer_hash == taught.tokenizer_hash != ""
    assert [one.name for one in workbench.registry.adapters.children_of(taught.digest)] == ["small"]
    again = result(workbench, "resize_adapter", adapter="small", rank=1, evaluate=True, name="")
    assert again["losses"][0] == pytest.approx(kept["losses"][1], rel=1e-4)


def test_an_adapter_is_looked_into_and_compared(workbench, taught, trained):
    trained("stranger")
    found = result(workbench, "inspect_adapter", adapter="taught", other="stranger")
    assert len(found["modules"]) == 14
    assert all(0 < one["relative"] < 1 for one in found["modules"])
    assert "of 4" in found["sentence"]
    assert set(found["similarity"]) == {one["path"] for one in found["modules"]}
    alone = result(workbench, "inspect_adapter", adapter="taught", other="")
    assert "similarity" not in alone


@pytest.mark.parametrize("method", ["cat", "svd", "ties", "dare_ties"])
def test_a_combination_is_previewed_then_kept(workbench, taught, trained, method):
    trained("other")
    parts = [{"name": "taught", "weight": 0.7}, {"name": "other", "weight": 0.3}]
    seen = result(workbench, "combine_adapters", parts=parts, config={"method": method}, name="")
    assert workbench.registry.names(Adapter) == {"taught", "other"}
    kept = result(workbench, "combine_adapters", parts=parts, config={"method": method}, name="both")
    assert {**kept, "name": "", "digest": ""} == {**seen, "name": "", "digest": ""}
    assert kept["losses"] == []
    row = workbench.registry.find(Adapter, "both")
    assert [(one["name"], one["weight"]) for one in row.parents] == [("taught", 0.7), ("other", 0.3)]
    base = workbench.registry.find(Base, "llama")
    assert load_row(workbench.registry, row, base).highest_rank == kept["rank"]


def test_a_combination_tells_what_each_parent_loses_on_its_own_rows(workbench, taught, trained):
    trained("stranger")
    parts = [{"name": "taught", "weight": 1.0}, {"name": "stranger", "weight": 0.0}]
    found = result(
        workbench, "combine_adapters", parts=parts, config={"method": "cat"}, name="", evaluate=True
    )
    (alone, combined), unknown = found["losses"]
    assert alone == pytest.approx(taught.validation_loss, rel=1e-4)
    assert combined == pytest.approx(alone, rel=1e-4)  # the other weighs nothing
    assert unknown is None
    parts[1]["weight"] = 1.0
    mixed = result(
        workbench, "combine_adapters", parts=parts, config={"method": "cat"}, name="", evaluate=True
    )
    assert mixed["losses"][0][1] != pytest.approx(alone, rel=1e-4)


@pytest.fixture
def uneven(workbench, trained):
    """A function that keeps an adapter with some layers only of the one that trained() gives."""

    def make(name, *held):
        row, base = trained(name), workbench.registry.find(Base, "llama")
        whole = load_row(workbench.registry, row, base)
        layers = {path: one for path, one in whole.layers.items() if path.endswith(held)}
        with workbench.registry.blobs.staging() as staging:
            (staging / "adapter").mkdir()
            save_adapter(staging / "adapter", replace(whole, layers=layers))
            row.digest = workbench.registry.blobs.put(staging / "adapter")
        return workbench.registry.save(row)

    return make


def test_what_is_made_of_uneven_adapters_is_usable(workbench, uneven, tmp_path):
    """Targets that differ from layer to layer, combined, resized, verified, exported, imported again."""
    uneven("one", "0.self_attn.q_proj", "1.mlp.up_proj")
    uneven("other", "1.self_attn.q_proj", "1.self_attn.v_proj")
    parts = [{"name": "one", "weight": 1.0}, {"name": "other", "weight": 0.5}]
    result(workbench, "combine_adapters", parts=parts, config={"method": "cat"}, name="both")
    result(workbench, "resize_adapter", adapter="both", rank=1, name="small")
    assert result(workbench, "verify_adapter")["problems"] == {}
    out = str(tmp_path / "out")
    exported = result(workbench, "export_adapter", adapter="small", config={"format": "peft"}, folder=out)
    assert exported["verdict"] == "passed"
    result(workbench, "import_adapter", folder=out, name="back", look=False)
    base = workbench.registry.find(Base, "llama")
    small, back = (
        load_row(workbench.registry, workbench.registry.find(Adapter, name), base)
        for name in ("small", "back")
    )
    assert len(small.layers) == 4
    assert not differing_layers(small, back)


def test_an_import_asks_which_and_names_both_bases(workbench, tmp_path):
    """Several adapters in one file, made for a base of another name: each is usable once it is in."""
    held = {"pirate": (0, 1), "poet": (0,)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{one}.{name}.weight": factor
        for name, layers in held.items()
        for layer in layers
        for one, factor in (("A", torch.ones(2, 32)), ("B", torch.ones(32, 2)))
    }
    (tmp_path / "two").mkdir()
    save_file(tensors, tmp_path / "two" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    about["base_model_name_or_path"] = "somebody/Another-Llama"
    (tmp_path / "two" / "adapter_config.json").write_text(json.dumps(about))
    given = {"folder": str(tmp_path / "two"), "name": "poet"}
    refused = do_job(workbench, "import_adapter", given)
    assert "2 adapters: pirate, poet" in refused.message
    found = result(workbench, "import_adapter", **given, which="poet")
    assert "somebody/Another-Llama" in found["warning"]
    assert "llama" in found["warning"]
    row, base = workbench.registry.find(Adapter, "poet"), workbench.registry.find(Base, "llama")
    assert list(load_row(workbench.registry, row, base).layers) == ["model.layers.0.self_attn.q_proj"]


def test_verifying_says_what_is_wrong(workbench, taught, trained):
    untouched = trained("sound")
    for name, how in (("rotten", "flip"), ("untrained", "zero")):
        shutil.rmtree(workbench.settings.home / "copy", ignore_errors=True)
        copy_adapter(workbench, "sound", workbench.settings.home / "copy")
        file = workbench.settings.home / "copy" / "adapter_model.safetensors"
        if how == "zero":
            from safetensors.torch import load_file, save_file

            tensors = load_file(file)
            save_file(
                {key: one * ("lora_A" in key) for key, one in tensors.items()},
                file,
                metadata={"format": "pt"},
            )
        else:
            file.write_bytes(file.read_bytes()[:-1] + b"\x07")
        with workbench.registry.blobs.staging() as staging:
            digest = workbench.registry.blobs.put(
                shutil.copytree(workbench.settings.home / "copy", staging / "x")
            )
        workbench.registry.add(
            Adapter(**untouched.model_dump() | {"id": None, "name": name, "digest": digest})
        )
    rotten = (
        workbench.registry.blobs.path(workbench.registry.find(Adapter, "rotten").digest)
        / "adapter_model.safetensors"
    )
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"\x09")
    found = result(workbench, "verify_adapter", adapter="")
    assert set(found["checked"]) == {"taught", "sound", "rotten", "untrained"}
    assert set(found["problems"]) == {"rotten", "untrained"}
    assert "has changed on disk" in found["problems"]["rotten"]
    assert "Every B is zero" in found["problems"]["untrained"]


def test_verifying_names_each_adapter_whose_base_is_gone(workbench, taught, tmp_path):
    base = workbench.registry.find(Base, "llama")
    workbench.registry.save(Base(**base.model_dump() | {"folder": str(tmp_path / "moved away")}))
    problems = result(workbench, "verify_adapter", adapter="")["problems"]
    assert list(problems) == ["taught"]
    assert "add the model again" in problems["taught"]


def _flips(folder, check, count=FLIPS):
    """One bit after another in any of the folder's files, each found, each put back."""
    chance, files = random.Random(3), sorted(path for path in folder.iterdir() if path.is_file())
    for _ in range(count):
        path = chance.choice(files)
        whole = path.read_bytes()
        at = chance.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        with pytest.raises((WorkbenchError, StorageError)):
            check()
        path.write_bytes(whole)
    check()


def test_every_flipped_bit_of_a_base_and_an_export_is_found(
    workbench, taught, tiny_llama, tmp_path, checked_here
):
    base = workbench.registry.find(Base, "llama")
    folder = shutil.copytree(tiny_llama, tmp_path / "mine")
    workbench.registry.save(Base(**base.model_dump() | {"folder": str(folder), "stat_key": stat_key(folder)}))
    workbench.models.verify("llama", accept=True)
    _flips(folder, lambda: workbench.models.verify("llama"))
    result(
        workbench,
        "export_adapter",
        adapter="taught",
        folder=str(tmp_path / "out"),
        config={"format": "safetensors"},
    )
    (row,) = workbench.registry.all(Export)
    _flips(tmp_path / "out", lambda: verify_export(row))
    (tmp_path / "out" / "README.md").unlink()
    with pytest.raises(BlobDamaged, match="is gone"):
        verify_export(row)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(NotFound):
        verify_export(row)


def test_every_flipped_bit_of_a_checkpoint_is_found_before_it_is_used(workbench, taught):
    for row in workbench.registry.checkpoints.of(taught.run_id):
        for digest in (row.adapter_digest, row.state_digest):
            _flips(
                workbench.registry.blobs.path(digest),
                lambda one=digest: workbench.registry.blobs.verify(one),
                FLIPS // 2,
            )


def test_what_takes_space_is_listed_and_what_can_go_goes(workbench, taught, trained):
    row = trained("unwanted")
    workbench.registry.adapters.delete(row.id)
    with workbench.registry.blobs.staging() as staging:
        (staging / "orphan").write_bytes(bytes(5000))
        orphan = workbench.registry.blobs.put(staging / "orphan")
        (staging / "fresh").write_bytes(bytes(10))
        fresh = workbench.registry.blobs.put(staging / "fresh")
    os.utime(workbench.registry.blobs.path(orphan), (1, 1))
    shares = {one.what: one for one in workbench.usage.shares()}
    assert shares["Files that nothing needs"].removable_bytes == 5010
    assert shares["Deleted adapters"].removable_bytes > 0
    assert shares["Adapters"].removable_bytes == 0
    workbench.usage.clean_up()
    left = {one.what for one in workbench.usage.shares()}
    assert fresh in workbench.registry.blobs.digests()
    assert orphan not in workbench.registry.blobs.digests()
    assert not left & {"Deleted adapters", "Rendered rows and compiled kernels"}
    assert workbench.registry.names(Adapter) == {"taught"}
    workbench.registry.blobs.verify(taught.digest)


def test_a_zip_is_made_while_it_is_sent(tmp_path):
    import io
    import zipfile

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("content")
    (folder / "b.bin").write_bytes(random.Random(0).randbytes(3_000_000))
    pieces = list(zipped(folder))
    assert len(pieces) > 3
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None
        assert archive.read("out/b.bin") == (folder / "b.bin").read_bytes()


def test_nothing_new_is_begun_above_the_quota(workbench, taught):
    workbench.usage.set_quota(1e-6)
    for begin in (
        lambda: workbench.exports.start("taught"),
        lambda: workbench.training.start("llama", "data", TrainingOptions.parse(QUICK)),
        lambda: workbench.adapters.resize("taught", 2, "small"),
    ):
        with pytest.raises(QuotaExceeded, match="Clean up"):
            begin()
    workbench.usage.set_quota(0)
    assert workbench.usage.quota() is None
    assert workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "again").state == "queued"
    with pytest.raises(InvalidConfig):
        workbench.usage.set_quota(-1)
