"""Each write, fsync and rename of an export, a backup and a restore fails once: all is as before, it is told
in a sentence, and the same again succeeds. As tests/benchmarks/disk_faults.py does it by the system's calls.
"""

from __future__ import annotations

import errno
import re
import zipfile

from app.service.exports import verify_export
from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.settings import settings_for
from storage.backup import backup, restore
from storage.blobs import BlobStore
from storage.errors import StorageError
from storage.tables import Adapter, Dataset, Export
from tests.app.test_faults import Faults
from tests.workbenches import do_job


def silent(what: str, share: float) -> None:
    """Nobody is told how far it is."""


def each_place(faults: Faults, work, every: int = 1):
    """Do the work once to count its places, then let each of them, or every so many and the last two, fail
    with an error: in turn one of a disk that fails, and one of a full one.
    """
    faults.count, faults.fails_at = 0, 0
    yield "none", work()
    places = faults.count
    assert places >= 8
    for number, place in enumerate(sorted({*range(1, places + 1, every), places - 1, places})):
        code = (errno.EIO, errno.ENOSPC)[number % 2]
        faults.count, faults.fails_at, faults.code = 0, place, code
        try:
            work()
        except (OSError, StorageError) as error:
            yield f"{errno.errorcode[code]} at {place}", plain_sentence(error)
        else:
            yield f"{errno.errorcode[code]} at {place}", None
        faults.fails_at = 0


def test_a_backup_is_whole_or_not_there(workbench, trained, tmp_path, monkeypatch):
    trained("mine")
    file = tmp_path / "home.backup"
    for where, said in each_place(Faults(monkeypatch), lambda: backup(workbench.registry, file, silent)):
        if where != "none" and said is not None:
            assert "Errno" not in said, where
            assert not file.exists(), where
            backup(workbench.registry, file, silent)
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None, where
        file.unlink()
        assert list(tmp_path.glob(".home.backup*")) == [], where


def test_a_restore_is_whole_or_changes_nothing(workbench, trained, tmp_path, monkeypatch):
    trained("mine")
    file, settings = tmp_path / "home.backup", settings_for(tmp_path / "new")
    backup(workbench.registry, file, silent)

    def work() -> int:
        return restore(file, settings.database, BlobStore(settings.blobs), silent, replace=True)

    for where, said in each_place(Faults(monkeypatch), work):
        if where != "none" and said is not None:
            assert "Errno" not in said, where
            assert list(settings.home.glob(".restore-*")) == [], where
            if "is restored, but" not in said:
                assert "The registry was not changed." in said, (where, said)
                assert not settings.database.exists(), where
                work()
        restored = Workbench(settings)
        assert restored.registry.names(Adapter) == {"mine"}, where
        assert restored.registry.names(Dataset) == {"data"}, where
        for digest in restored.registry.referenced():
            restored.registry.blobs.verify(digest)
        restored.close()
        for path in settings.home.glob("registry*"):
            path.unlink()
        assert list(settings.home.glob(".restore-*")) == [], where


def test_an_export_is_whole_or_not_there(workbench, trained, checked_here, tmp_path, monkeypatch):
    trained("mine")
    target, registry = tmp_path / "out", workbench.registry
    arguments = {"adapter": "mine", "folder": str(target), "config": {"format": "peft"}}

    def work() -> str:
        job = do_job(workbench, "export_adapter", arguments)
        if job.state != "finished":
            raise StorageError(job.message)
        return job.state

    for known, (where, said) in enumerate(each_place(Faults(monkeypatch), work, every=5)):
        if where != "none" and said not in (None, "finished"):
            assert re.search(r"no space left|disk fails", said), (where, said)
            assert len(registry.all(Export)) == known, where
            assert not target.exists(), where
            work()
        row = registry.all(Export)[0]
        verify_export(row)
        assert len(registry.all(Export)) == known + 1, where
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
