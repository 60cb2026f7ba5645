"""Jobs name what they work on by number: a rename between start and work changes nothing."""

from __future__ import annotations

import pytest

from app.jobs.process import run_job
from storage.tables import Adapter, Export, Job
from tests.workbenches import copy_adapter, do_job


@pytest.fixture
def waiting(workbench, monkeypatch):
    """Jobs that are started wait until do() does them."""
    monkeypatch.setattr("app.service.jobs.start_detached", lambda module, given, log: None)

    def do(job: Job) -> Job:
        run_job(workbench.settings, job.id or 0)
        return workbench.registry.get(Job, job.id or 0)

    return do


def rename(workbench, name: str, new: str) -> Adapter:
    return workbench.registry.adapters.change(workbench.registry.find(Adapter, name).id, name=new)


def test_a_rename_after_an_export_was_started_exports_the_one_that_was_meant(
    workbench, trained, waiting, checked_here, tmp_path
):
    meant = trained("mine")
    job = workbench.exports.start("mine", tmp_path / "out", {"format": "peft"})
    rename(workbench, "mine", "renamed")
    assert trained("mine").digest == meant.digest, "the same seed"
    other = trained("another one")
    rename(workbench, "mine", "away")
    rename(workbench, "another one", "mine")
    done = waiting(job)
    assert (done.state, done.title) == ("finished", "Export mine as peft"), done.message
    (row,) = workbench.registry.all(Export)
    assert (row.adapter_name, row.adapter_digest) == ("renamed", meant.digest)
    assert row.adapter_digest != other.digest


def test_every_kind_of_job_on_adapters_outlives_a_rename(workbench, trained, waiting, tmp_path):
    trained("first")
    trained("the second")
    copy_adapter(workbench, "first", tmp_path / "theirs")
    adapters = workbench.adapters
    jobs = [
        adapters.inspect("first", "the second"),
        adapters.verify("first"),
        adapters.resize("first", 1, "small"),
        adapters.combine({"first": 1.0, "the second": -0.5}, {"method": "linear"}, "both"),
        adapters.import_files(tmp_path / "theirs", "theirs", "llama"),
    ]
    for name in ("first", "the second"):
        rename(workbench, name, f"{name} renamed")
    for job in jobs:
        assert (found := waiting(job)).state == "finished", (job.kind, found.message)
    parents = [one["name"] for one in workbench.registry.find(Adapter, "both").parents]
    assert parents == ["first renamed", "the second renamed"]


def test_an_adapter_that_was_deleted_is_not_replaced_by_the_next_with_its_number(
    workbench, trained, waiting, tmp_path
):
    row = trained("mine")
    jobs = [workbench.exports.start("mine", tmp_path / name, {"format": "peft"}) for name in "ab"]
    workbench.registry.adapters.delete(row.id)
    assert waiting(jobs[0]).message == "mine has been deleted meanwhile."
    workbench.registry.adapters.purge(row.created + 1e9)
    assert trained("other").id == row.id, "SQLite gives the number again"
    assert waiting(jobs[1]).message == "mine has been deleted meanwhile."


def test_jobs_as_earlier_versions_stored_them_are_done(workbench, trained, checked_here, tmp_path):
    trained("first")
    trained("the second")
    export = {"adapter": "first", "folder": str(tmp_path / "out"), "config": {"format": "peft"}}
    parts = [{"name": "first", "weight": 1.0}, {"name": "the second", "weight": 1.0}]
    for kind, arguments in {
        "export_adapter": export,
        "inspect_adapter": {"adapter": "first", "other": ""},
        "verify_adapter": {"adapter": "first", "deep": False},
        "resize_adapter": {"adapter": "first", "rank": 1, "name": "", "evaluate": False},
        "combine_adapters": {"parts": parts, "config": {"method": "linear"}, "name": ""},
    }.items():
        job = do_job(workbench, kind, arguments)
        assert job.state == "finished", (kind, job.message)
