"""Jobs: adding models, importing adapters, exporting; in their own process and when it dies."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from app.jobs.kinds import JOBS, JobKind
from app.service import jobs
from app.service.workbench import Workbench
from app.shared.errors import JobFailed
from core.base_model.fingerprint import fingerprint
from core.errors import InvalidConfig, InvalidInput
from core.export import duties
from storage.errors import NameTaken
from storage.tables import NOT_CHECKABLE, NOT_PASSED, PASSED, Adapter, Base, Export, Job
from tests.core.helpers import logits, new_peft, peft_from, plain_model
from tests.workbenches import copy_adapter, do_job, wait_for


def test_a_model_is_added_in_a_process_of_its_own(workbench, other_llama):
    seen = []
    result = workbench.jobs.wait(
        workbench.models.add(str(other_llama), "second"), lambda job: seen.append(job.message)
    )
    about = {"name": "second", "fingerprint": fingerprint(other_llama), "same_as": None}
    assert result == about | {"writes": True, "way": "quick"}
    row = workbench.registry.find(Base, "second")
    assert (row.owned, row.folder, row.head) == (False, str(other_llama), None)
    assert row.layer_shapes["model.layers.0.mlp.up_proj"] == [32, 64]


def test_the_same_model_under_another_name_is_pointed_out(workbench, tiny_llama):
    job = do_job(workbench, "add_model", {"origin": str(tiny_llama), "name": "twin"})
    assert job.result["same_as"] == "llama"


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("nowhere at all", "neither a folder"),
        ("/nonexistent/x.gguf", "neither a folder"),
        (".", "no config.json"),
    ],
)
def test_a_source_that_is_no_model_is_one_sentence(workbench, origin, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = do_job(workbench, "add_model", {"origin": origin, "name": ""})
    assert (job.state, said in job.message) == ("failed", True), job.message
    assert workbench.registry.names(Base) == {"llama"}
    assert list(workbench.settings.models.iterdir()) == []


def test_a_failed_job_raises_its_sentence(workbench, tmp_path):
    with pytest.raises(JobFailed, match=r"no config\.json"):
        workbench.jobs.wait(do_job(workbench, "add_model", {"origin": str(tmp_path), "name": ""}))


def test_what_is_seen_at_once_to_be_no_model_starts_no_job(workbench, tiny_llama, tmp_path):
    (tmp_path / "theirs.gguf").write_bytes(b"no such thing")
    for origin, name, said in (
        (str(tmp_path), "", "has no config.json"),
        (str(tmp_path / "theirs.gguf"), "", "theirs.gguf is not a GGUF file"),
        ("/no/such/folder", "", "There is no /no/such/folder here: neither a folder nor a file."),
        ("https://hf.co/datasets/openai/gsm8k", "", "is a data set, not a model; add it under Data"),
        (str(tiny_llama), "llama", "The name 'llama' is taken"),
        ("someone/llama", "", "The name 'llama' is taken"),
    ):
        with pytest.raises((InvalidInput, NameTaken), match=said):
            workbench.models.add(origin, name)
    assert workbench.registry.jobs.of_kind("add_model")[0].state == "finished"  # the fixture's own
    assert len(workbench.registry.jobs.of_kind("add_model")) == 1


def test_the_address_of_a_model_on_the_hub_is_its_id(workbench):
    job = workbench.models.add("https://huggingface.co/someone/tiny/tree/main?library=peft")
    workbench.jobs.cancel(job)
    assert (job.arguments["origin"], job.title) == ("someone/tiny", "Add someone/tiny")


def test_a_job_whose_process_dies_is_interrupted_with_a_reason(workbench, trained, tmp_path):
    trained("a")
    job = workbench.exports.start("a", tmp_path / "merged")
    wait_for(lambda: workbench.registry.get(Job, job.id).state == "running")
    os.kill(workbench.jobs._processes[job.id].pid, signal.SIGKILL)
    with pytest.raises(JobFailed, match="killed"):
        workbench.jobs.wait(job)
    assert workbench.registry.all(Export) == []


def test_a_job_is_cancelled_by_another_program_than_the_one_that_started_it(
    settings, workbench, trained, tmp_path
):
    trained("a")
    job = workbench.exports.start("a", tmp_path / "merged")
    wait_for(lambda: workbench.registry.get(Job, job.id).state == "running")
    other = Workbench(settings)
    other.jobs.cancel(job)
    assert other.registry.get(Job, job.id).state == "stopped"
    with pytest.raises(JobFailed, match="is not under way"):
        other.jobs.cancel(job)
    other.close()
    assert not (tmp_path / "merged").exists()


def test_a_job_whose_process_is_still_coming_up_is_cancelled_by_another_program(
    settings, workbench, trained, tmp_path, monkeypatch
):
    """A process takes seconds until it holds its lock; who cancels until then is no fault."""
    trained("a")
    start, later = jobs.start_detached, []

    def start_later(*about):
        later.append(threading.Timer(0.5, start, about))
        later[0].start()
        return Starting()

    class Starting:
        def poll(self):
            return None

    monkeypatch.setattr(jobs, "start_detached", start_later)
    job = workbench.exports.start("a", tmp_path / "merged")
    other = Workbench(settings)
    other.jobs.cancel(job)
    found = other.registry.get(Job, job.id)
    assert (found.state, found.message) == ("stopped", "Cancelled. Nothing was added.")
    other.close()
    assert not (tmp_path / "merged").exists()


def test_a_kind_of_job_says_what_it_is_and_where_it_is_started():
    found = list(JOBS.all().values())
    assert [kind.name for kind in found][:2] == ["add_model", "import_data"]
    assert all(kind.label and kind.help and kind.place for kind in found)
    assert {kind.name for kind in found if not kind.keeps} == {
        "inspect_adapter",
        "verify_adapter",
        "check_data",
        "measure_prompting",
        "measure_latency",
    }
    assert {kind.name: kind.left for kind in found if kind.left != JobKind.left} == {
        "run_prompts": "What was answered before is kept"
    }


def test_a_kind_of_job_that_has_its_place_is_not_started_from_options_alone(workbench):
    with pytest.raises(InvalidConfig, match="see Adapters, or adapters combine"):
        workbench.jobs.start_offered("combine_adapters", {})


def test_an_adapter_from_peft_is_imported_for_the_base_it_fits(workbench, tiny_llama, tmp_path):
    model = new_peft(tiny_llama)
    model.save_pretrained(tmp_path / "theirs")
    job = do_job(workbench, "import_adapter", {"folder": str(tmp_path / "theirs"), "name": "", "base": None})
    assert {key: job.result[key] for key in ("name", "base", "warning")} == {
        "name": "theirs",
        "base": "llama",
        "warning": "",
    }
    assert "PEFT layout, rank 4, alpha 8" in job.result["sentence"]
    copy_adapter(workbench, "theirs", tmp_path / "back")
    assert logits(peft_from(tiny_llama, tmp_path / "back")).equal(logits(model))


def test_an_adapter_that_fits_several_bases_needs_its_base_named(
    workbench, tiny_llama, other_llama, tmp_path
):
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "other"})
    new_peft(tiny_llama).save_pretrained(tmp_path / "theirs")
    arguments = {"folder": str(tmp_path / "theirs"), "name": "", "base": None}
    assert "fits several: other, llama" in do_job(workbench, "import_adapter", arguments).message
    named = do_job(workbench, "import_adapter", {**arguments, "base": "other"})
    assert named.result["base"] == "other"


def test_an_adapter_that_records_another_base_is_refused_with_both_names(
    workbench, trained, other_llama, tmp_path
):
    """Exported here, it carries its base's fingerprint; a base with the same shapes is not that base."""
    trained("mine")
    copy_adapter(workbench, "mine", tmp_path / "mine")
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "other"})
    job = do_job(
        workbench, "import_adapter", {"folder": str(tmp_path / "mine"), "name": "again", "base": "other"}
    )
    assert job.state == "failed"
    assert "made for tiny-llama" in job.message
    assert "not for other" in job.message
    assert workbench.registry.names(Adapter) == {"mine"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds no .safetensors file"),
        ({"adapter_config.json": "{}", "adapter_model.bin": "x"}, "pickle adapter"),
        ({"adapter_config.json": "{", "adapter_model.safetensors": "x"}, "is cut off"),
        (
            {"adapter_config.json": json.dumps({"peft_type": "LORA", "r": 10**9})},
            "holds no .safetensors file",
        ),
    ],
)
def test_folders_that_are_no_adapters_change_nothing(workbench, tmp_path, content, said):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    job = do_job(workbench, "import_adapter", {"folder": str(folder), "name": "", "base": None})
    assert (job.state, said in job.message) == ("failed", True), job.message
    assert workbench.registry.names(Adapter) == set()


def test_an_export_is_a_checked_model_that_transformers_loads(workbench, trained, tiny_llama, tmp_path):
    trained("mine")
    result = workbench.jobs.wait(workbench.exports.start("mine", tmp_path / "merged"))
    assert result["passed"]
    assert result["folder"] == str(tmp_path / "merged")
    copy_adapter(workbench, "mine", tmp_path / "adapter")
    expected = logits(peft_from(tiny_llama, tmp_path / "adapter"))
    assert (logits(plain_model(tmp_path / "merged")) - expected).abs().max() < 1e-4
    (row,) = workbench.registry.all(Export)
    assert (row.passed, row.adapter_name) == (True, "mine")
    job = do_job(workbench, "add_model", {"origin": str(tmp_path / "merged"), "name": ""})
    assert job.result["fingerprint"] != workbench.registry.find(Base, "llama").fingerprint


def test_core_and_the_registry_have_the_same_verdicts():
    assert (duties.PASSED, duties.FAILED, duties.NOT_CHECKABLE) == (PASSED, NOT_PASSED, NOT_CHECKABLE)


@pytest.mark.parametrize("how", ["occupied", "full disk", "base gone", "base changed", "adapter damaged"])
def test_an_export_that_cannot_be_made_leaves_nothing(workbench, trained, tmp_path, monkeypatch, how):
    import shutil

    row = trained("mine")
    base = workbench.registry.find(Base, "llama")
    copy = Path(shutil.copytree(base.folder, tmp_path / "base"))
    base.folder, base.stat_key = str(copy), "touched"
    workbench.registry.save(base)
    target = tmp_path / "merged"
    said = "not empty"
    if how == "occupied":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    elif how == "full disk":
        full = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        said = "are free on its disk"
    elif how == "base gone":
        shutil.rmtree(copy)
        said = "are gone"
    elif how == "base changed":
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
        said = "have changed"
    else:
        (workbench.registry.blobs.path(row.digest) / "adapter_model.safetensors").write_bytes(b"x")
        said = "has changed on disk"
    job = do_job(workbench, "export_adapter", {"adapter": "mine", "folder": str(target), "config": {}})
    assert (job.state, said in job.message) == ("failed", True), job.message
    assert workbench.registry.all(Export) == []
    assert not target.exists() or [path.name for path in target.iterdir()] == ["mine.txt"]


def test_verify_notices_a_changed_base(workbench, tmp_path):
    import shutil

    from core.errors import WrongBase

    base = workbench.registry.find(Base, "llama")
    assert workbench.models.verify("llama") == base.fingerprint
    copy = Path(shutil.copytree(base.folder, tmp_path / "base"))
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1] + b"\7")
    base.folder = str(copy)
    workbench.registry.save(base)
    with pytest.raises(WrongBase, match="have changed"):
        workbench.models.verify("llama")


def test_only_files_of_ours_are_deleted_with_a_model(workbench, tiny_llama):
    workbench.models.remove("llama")
    assert (tiny_llama / "config.json").exists()
    owned = workbench.settings.models / "x"
    owned.mkdir()
    do_job(workbench, "add_model", {"origin": str(tiny_llama), "name": "llama"})
    row = workbench.registry.find(Base, "llama")
    row.owned, row.folder = True, str(owned)
    workbench.registry.save(row)
    workbench.models.remove("llama")
    assert not owned.exists()
