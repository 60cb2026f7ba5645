"""Jobs of every kind that are killed at named moments: nothing half is to be seen, and the same again works.

The same at random moments: tests/benchmarks/kill_jobs.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from app.service.exports import verify_export
from app.service.workbench import Workbench
from app.shared.errors import JobFailed
from core.files.publish import is_unfinished, publication, published_folder
from storage.tables import Adapter, Base, Dataset, Export, Job, Run
from tests import killed_job
from tests.workbenches import copy_adapter, do_job, finish, wait_for, write_rows

WRITTEN = "storage.blobs:BlobStore.put:after"
PLACED = "core.files.publish:Publication.publish:after"
ENDING = "storage.jobs:Jobs.finish:after"  # in the transaction that registers what was made
Start = Callable[[], Job]


@pytest.fixture
def killed(workbench, zygote, monkeypatch) -> Callable[[Start, str], None]:
    """A function that starts a job, which is killed at a moment, and waits for its end. Other jobs live."""

    def forked(module, given, log):
        return zygote.start("tests.killed_job", given, log)

    monkeypatch.setattr("app.service.jobs.start_detached", forked)
    monkeypatch.setenv(killed_job.MOMENT, "")

    def kill(start: Start, moment: str) -> None:
        monkeypatch.setenv(killed_job.MOMENT, moment)
        job = start()
        monkeypatch.setenv(killed_job.MOMENT, "")
        with pytest.raises(JobFailed, match=r"was killed|ended unexpectedly"):
            workbench.jobs.wait(job)

    return kill


def rows(workbench: Workbench) -> dict[str, list[int | None]]:
    """The numbers of all rows that jobs add."""
    tables = (Base, Dataset, Adapter, Export)
    return {table.__name__: [row.id for row in workbench.registry.all(table)] for table in tables}


def only_registered_models(workbench: Workbench) -> bool:
    """Whether nothing else lies among the models once what was left has been tidied up."""
    workbench.usage.remove_leavings()
    named = {Path(row.folder) for row in workbench.registry.all(Base) if row.owned}
    there = {path for path in workbench.settings.models.iterdir() if not path.name.startswith(".staging-")}
    return there == named


def kill_and_repeat(workbench, killed, start: Start, moments: list[str]) -> dict[str, object]:
    """Kill a job at each moment, and then let it do its work. Returns its result."""
    before = rows(workbench)
    for moment in moments:
        killed(start, moment)
        assert rows(workbench) == before, moment
    return workbench.jobs.wait(start())


def test_an_export_that_is_killed_leaves_nothing_that_looks_done(workbench, trained, killed, tmp_path):
    trained("mine")
    target = tmp_path / "merged"

    def start() -> Job:
        return workbench.exports.start("mine", target)

    killed(start, "core.export.check_process:ask_process:before")
    assert not target.exists()
    killed(start, PLACED)
    assert is_unfinished(target)
    assert "neither registered" in (target / ".unfinished").read_text()
    result = kill_and_repeat(workbench, killed, start, [PLACED, ENDING])
    assert result["passed"]
    (row,) = workbench.registry.all(Export)
    verify_export(row)
    assert {path.name for path in target.iterdir()} == set(row.files)
    assert workbench.registry.find(Base, result["base"]).folder == str(target)


def test_an_export_that_was_registered_is_never_taken_for_unfinished(workbench, trained, killed, tmp_path):
    """Killed after its end was written: the job has finished, though its mark is still there."""
    trained("mine")
    target = tmp_path / "adapter"

    def start() -> Job:
        return workbench.exports.start("mine", target, {"format": "peft"})

    job = start()
    workbench.jobs.wait(job)
    (target / ".unfinished").touch()
    assert do_job(workbench, "export_adapter", job.arguments).message.endswith("choose a new folder.")
    assert not (target / ".unfinished").exists()
    (row,) = workbench.registry.all(Export)
    verify_export(row)


def test_a_model_that_is_killed_while_it_is_added_leaves_no_files(workbench, trained, killed, tmp_path):
    trained("mine")
    workbench.jobs.wait(workbench.exports.start("mine", tmp_path / "file", {"format": "gguf"}))
    (file,) = (tmp_path / "file").glob("*.gguf")

    def start() -> Job:
        return workbench.models.add(str(file), "converted")

    described = "app.jobs.registering:described_base:after"
    result = kill_and_repeat(workbench, killed, start, [described, PLACED, ENDING])
    assert result["name"] == "converted"
    assert only_registered_models(workbench)
    assert workbench.models.verify("converted") == result["fingerprint"]


def test_a_data_set_that_is_killed_while_it_is_imported_is_not_there(workbench, killed, tmp_path):
    from app.shared.data_import import ImportRequest

    path = write_rows(tmp_path / "more.jsonl")

    def start() -> Job:
        return workbench.datasets.import_files(ImportRequest([str(path)], "more"))

    read = "app.shared.data_import:import_files:after"
    result = kill_and_repeat(workbench, killed, start, [read, WRITTEN, ENDING])
    assert result["rows"] == 24
    workbench.datasets.open(workbench.registry.find(Dataset, "more"))


def test_adapters_that_are_killed_while_they_are_made_are_not_there(workbench, trained, killed, tmp_path):
    trained("one")
    trained("other")
    copy_adapter(workbench, "one", tmp_path / "theirs")
    parts = {"one": 0.5, "other": 0.5}
    kinds: dict[str, Start] = {
        "imported": lambda: workbench.adapters.import_files(tmp_path / "theirs", "imported", "llama"),
        "combined": lambda: workbench.adapters.combine(parts, {"method": "linear"}, "combined"),
        "resized": lambda: workbench.adapters.resize("one", 1, "resized"),
    }
    for name, start in kinds.items():
        assert kill_and_repeat(workbench, killed, start, [WRITTEN, ENDING])["name"] == name
        workbench.registry.blobs.verify(workbench.registry.find(Adapter, name).digest)


def test_a_job_that_is_asked_to_end_while_it_registers_what_it_made_finishes(
    workbench, trained, killed, tmp_path
):
    trained("mine")
    job = workbench.exports.start("mine", tmp_path / "out", {"format": "peft"})
    wait_for(lambda: (tmp_path / "out").exists() or not workbench.registry.get(Job, job.id).active)
    os.kill(workbench.jobs._processes[job.id].pid, signal.SIGTERM)
    workbench.jobs._processes[job.id].wait()
    workbench.notice_deaths()
    finished = workbench.registry.get(Job, job.id).state == "finished"
    assert finished == (tmp_path / "out").exists() == bool(workbench.registry.all(Export))


def test_an_adapter_is_registered_with_the_end_of_its_run_or_not_at_all(workbench, session, monkeypatch):
    run_id, training = session("mine", max_steps=4, save_steps=0)

    def die(*about: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workbench.registry.runs, "finished", die)
        with pytest.raises(KeyboardInterrupt):
            finish(training)
    assert workbench.registry.names(Adapter) == set()
    workbench.registry.runs.interrupt_all("as if it had been killed")
    workbench.runs.resume(run_id)
    finish(session.next())
    assert workbench.registry.get(Run, run_id).state == "finished"
    assert workbench.registry.names(Adapter) == {"mine"}


def test_a_job_that_is_stopped_is_cancelled_all_the_same(workbench, trained, killed, tmp_path, monkeypatch):
    monkeypatch.setattr("app.service.jobs._END_SECONDS", 0.5)
    trained("mine")
    job = workbench.exports.start("mine", tmp_path / "out")
    wait_for(lambda: workbench.registry.get(Job, job.id).state == "running")
    os.kill(workbench.jobs._processes[job.id].pid, signal.SIGSTOP)
    workbench.jobs.cancel(job)
    found = workbench.registry.get(Job, job.id)
    assert (found.state, found.message) == ("stopped", "Cancelled. Nothing was added.")


def test_what_a_killed_process_has_staged_goes_when_the_next_one_writes_there(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with publication(tmp_path / "mine"):
            os.write(writer, b".")
            signal.pause()
    os.read(reader, 1)
    (staged,) = tmp_path.iterdir()
    monkeypatch.setattr("core.files.publish._YOUNG_SECONDS", 0.0)
    with published_folder(tmp_path / "other"):
        assert staged.exists(), "its process lives"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with published_folder(tmp_path / "third") as folder:
        (folder / "x").write_text(json.dumps({}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "third"]
