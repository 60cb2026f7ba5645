"""Processes of our own, started from a working folder that holds packages with our names.

That of the check of an export is in tests/core/test_export.py.
"""

import pytest

from app.service.workbench import Workbench
from app.shared.data_import import ImportRequest
from storage.tables import Dataset
from tests.workbenches import end_engine, write_rows


@pytest.fixture
def hostile_folder(tmp_path, monkeypatch):
    """A working folder whose app, core, storage and torch leave a mark when they are imported."""
    mark = tmp_path / "imported"
    folder = tmp_path / "working folder"
    for name in ("app", "core", "storage", "torch", "json"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    yield folder
    assert not mark.exists(), mark.read_text()


@pytest.fixture
def unforked(settings):
    """A workbench whose engine and jobs are started as users' are."""
    found = Workbench(settings)
    yield found
    found.close()
    end_engine(settings)


def test_an_engine_imports_nothing_from_the_working_folder(hostile_folder, unforked):
    unforked.engine.ensure()
    assert unforked.engine.status()["runs"] == []


def test_a_job_imports_nothing_from_the_working_folder(hostile_folder, unforked, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    assert (
        unforked.jobs.wait(unforked.datasets.import_files(ImportRequest([str(rows)], "mine")))["name"]
        == "mine"
    )
    assert unforked.registry.names(Dataset) == {"mine"}


def test_the_doctor_asks_the_installed_torch(hostile_folder, settings):
    from app.service.doctor import _torch

    assert _torch()[0].level == "fine"
