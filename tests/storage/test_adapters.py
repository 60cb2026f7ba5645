"""Adapters in the registry: found among many, deleted with a way back, swept away, backed up and restored."""

from __future__ import annotations

import os
import random
import signal
import time
import zipfile

import pytest

import storage.blobs
from storage.adapters import AdapterQuery
from storage.backup import backup, restore
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import NameTaken, NotFound, StorageError
from storage.registry import Registry
from storage.tables import Adapter, Checkpoint
from tests.storage.test_storage import adapter, base, dataset, queue, run

KILLS = int(os.environ.get("STORAGE_KILLS", "40"))


def opened(folder):
    return Registry(Database(folder / "registry.db"), BlobStore(folder / "blobs"))


@pytest.fixture
def registry(tmp_path):
    found = opened(tmp_path)
    yield found
    found.database.close()


def stored(registry, name, content=None):
    with registry.blobs.staging() as staging:
        (staging / "x").mkdir()
        (staging / "x" / "adapter_model.safetensors").write_text(content or name)
        digest = registry.blobs.put(staging / "x")
    return registry.add(adapter(name, digest))


def named(registry, **query):
    return [row.name for row in registry.adapters.search(AdapterQuery(**query))[0]]


def test_adapters_are_found_by_what_people_remember(registry):
    for name, values in {
        "pirate": {"validation_loss": 2.0, "dataset_name": "ships", "tags": "fun, style", "starred": True},
        "lawyer": {"validation_loss": 1.0, "dataset_name": "law", "base_name": "qwen", "tags": "style guide"},
        "100 % sure": {"dataset_name": "law", "run_id": 7, "base_fingerprint": "other weights"},
    }.items():
        row = adapter(name)
        for key, value in values.items():
            setattr(row, key, value)
        registry.add(row)
    assert named(registry) == ["100 % sure", "lawyer", "pirate"]
    assert named(registry, order="validation loss") == ["lawyer", "pirate", "100 % sure"]
    assert named(registry, words="LAW") == ["100 % sure", "lawyer"]
    assert named(registry, words="law qwen") == ["lawyer"]
    assert named(registry, words="%") == ["100 % sure"]
    assert named(registry, tag="style") == ["pirate"]
    assert named(registry, starred=True) == named(registry, dataset="ships") == ["pirate"]
    assert named(registry, base="qwen") == ["lawyer"]
    assert named(registry, run_id=7) == named(registry, fingerprint="other weights") == ["100 % sure"]
    assert registry.adapters.words() == {
        "base": ["llama", "qwen"],
        "dataset": ["law", "ships"],
        "tag": ["fun", "style", "style guide"],
    }
    rows, total = registry.adapters.search(AdapterQuery(order="name"), limit=1, offset=1)
    assert ([row.name for row in rows], total) == (["lawyer"], 3)


def test_names_stars_tags_and_notes_are_changed(registry):
    one, other = registry.add(adapter("one")), registry.add(adapter("other"))
    found = registry.adapters.change(
        one.id, name=" first ", starred=True, tags="b, a,b,", note="the good one"
    )
    assert (found.name, found.starred, found.tags, found.note) == ("first", True, "b, a", "the good one")
    with pytest.raises(NameTaken):
        registry.adapters.change(other.id, name="first")
    with pytest.raises(NotFound):
        registry.adapters.change(99, starred=True)


def test_a_deleted_adapter_can_be_brought_back_until_it_is_swept(registry):
    row = stored(registry, "mine")
    queue(registry, run())
    registry.queue.claim(1)
    registry.runs.begin(1, {})
    registry.runs.finished(1, adapter_id=row.id)
    registry.adapters.change(row.id, starred=True)
    registry.save(Adapter(**row.model_dump() | {"run_id": 1}))
    queue(registry, run("another"))
    registry.queue.claim(2)
    registry.runs.begin(2, {})
    registry.runs.finished(2, adapter_id=row.id + 100)
    registry.adapters.delete(row.id)
    assert [registry.get(type(run()), one).adapter_id for one in (1, 2)] == [None, row.id + 100]
    assert registry.names(Adapter) == set()
    assert registry.all(Adapter) == []
    with pytest.raises(NotFound, match="There is none yet"):
        registry.find(Adapter, "mine")
    stored(registry, "mine", "another one")
    registry.sweep()
    back = registry.adapters.bring_back(row.id)
    assert back.name == "mine-2"
    assert registry.get(type(run()), 1).adapter_id == row.id
    registry.blobs.verify(back.digest)
    registry.adapters.delete(row.id)
    registry.sweep(0)
    with pytest.raises(NotFound):
        registry.adapters.bring_back(row.id)
    with pytest.raises(NotFound):
        registry.blobs.path(back.digest)
    registry.blobs.verify(registry.find(Adapter, "mine").digest)


def test_a_sweep_leaves_what_rows_need_and_what_was_just_put(registry):
    needed = stored(registry, "needed")
    queue(registry, run())
    with registry.blobs.staging() as staging:
        for name in ("state", "orphan"):
            (staging / name).write_text(name)
        state, orphan = (registry.blobs.put(staging / name) for name in ("state", "orphan"))
    registry.save(
        Checkpoint(
            run_id=1, step=1, adapter_digest=needed.digest, state_digest=state, size_bytes=1, seconds=1
        )
    )
    assert registry.sweep() == 0
    assert orphan in registry.blobs.digests()
    assert registry.sweep(0) == len("orphan")
    assert set(registry.blobs.digests()) == {needed.digest, state}


@pytest.mark.parametrize("when", ["before it looks", "while it moves it aside"])
def test_what_is_put_again_during_a_sweep_stays(registry, monkeypatch, when):
    with registry.blobs.staging() as staging:
        (staging / "x").write_text("content")
        digest = registry.blobs.put(staging / "x")
        path = registry.blobs.path(digest)
        os.utime(path, (1, 1))
        (staging / "y").write_text("content")
        real = os.replace

        def moved(source, target):
            if "swept-" in str(target):
                registry.blobs.put(staging / "y")
            real(source, target)

        def referenced():
            if when == "before it looks" and path.exists() and path.stat().st_mtime < 2:
                registry.blobs.put(staging / "y")
            return set()

        if when != "before it looks":
            monkeypatch.setattr(storage.blobs.os, "replace", moved)
        assert registry.blobs.sweep(referenced, 3600) == 0
    assert registry.blobs.verify(digest).read_text() == "content"


def _work(folder, say):
    """Publish, delete and sweep for ever; each line is said after it holds."""
    registry, number = opened(folder), int(time.time() * 1e6)
    names = [row.name for row in registry.all(Adapter)]
    while True:
        number += 1
        names.append(stored(registry, f"adapter {number}", f"content {number % 5}").name)
        os.write(say, f"+{names[-1]}\n".encode())
        if len(names) > 3:
            gone = names.pop(0)
            os.write(say, f"?{gone}\n".encode())
            registry.adapters.delete(registry.find(Adapter, gone).id)
            os.write(say, f"-{gone}\n".encode())
            registry.sweep(0)


@pytest.mark.timeout(3600)
def test_kills_around_publish_delete_and_sweep_lose_nothing_and_leave_nothing(tmp_path):
    opened(tmp_path).database.close()
    chance, there, doubtful = random.Random(1), set(), set()
    for _ in range(KILLS):
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            try:
                _work(tmp_path, theirs)
            finally:
                os._exit(1)
        os.close(theirs)
        time.sleep(chance.uniform(0.005, 0.25))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with os.fdopen(ours, "rb") as pipe:
            for line in pipe.read().decode().splitlines():
                if line[0] == "+":
                    there.add(line[1:])
                elif line[0] == "?":
                    doubtful.add(line[1:])
                else:
                    there.discard(line[1:])
                    doubtful.discard(line[1:])
        registry = opened(tmp_path)
        found = {row.name: row.digest for row in registry.all(Adapter)}
        assert there - doubtful <= set(found), "an acknowledged adapter is gone"
        for digest in found.values():
            registry.blobs.verify(digest)
        registry.sweep(0)
        registry.blobs.sweep_staging(0)
        assert set(registry.blobs.digests()) == set(found.values()), "an orphan after a sweep"
        assert list((tmp_path / "blobs" / "staging").iterdir()) == []
        with registry.database.reading() as session:
            assert session.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        registry.database.close()
        there, doubtful = set(found), set()


@pytest.mark.parametrize("where", ["adapter_model.safetensors", "single"])
def test_every_flipped_bit_of_a_blob_is_found(registry, where):
    with registry.blobs.staging() as staging:
        (staging / "single").write_bytes(random.Random(0).randbytes(3000))
        digest = (
            registry.blobs.put(staging / "single")
            if where == "single"
            else stored(registry, "x", "content " * 300).digest
        )
    path = registry.blobs.path(digest)
    file, chance = (path if where == "single" else path / where), random.Random(2)
    for _ in range(100):
        whole = bytearray(file.read_bytes())
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        whole[at] ^= bit
        file.write_bytes(whole)
        with pytest.raises(StorageError, match="has changed on disk"):
            registry.blobs.verify(digest)
        whole[at] ^= bit
        file.write_bytes(whole)
    registry.blobs.verify(digest)


# Backup and restore.


def watched(seen):
    return lambda what, share: seen.append((what, share))


def full(registry):
    registry.add(base())
    stored(registry, "mine")
    with registry.blobs.staging() as staging:
        (staging / "rows").write_text("rows")
        digest = registry.blobs.put(staging / "rows")
    registry.datasets.add(dataset("data", digest), "imported")
    return digest


def test_a_backup_comes_back_whole(registry, tmp_path):
    rows, seen = full(registry), []
    assert backup(registry, tmp_path / "kept.zip", watched(seen)) == 2
    assert seen
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    blobs = BlobStore(elsewhere / "blobs")
    assert restore(tmp_path / "kept.zip", elsewhere / "registry.db", blobs, watched([])) == 2
    copy = opened(elsewhere)
    assert copy.blobs.verify(copy.find(Adapter, "mine").digest)
    assert copy.blobs.verify(rows).read_text() == "rows"
    copy.database.close()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["blobs", "registry.db"]


def test_presets_go_along_and_leave_those_that_are_there(registry, tmp_path):
    full(registry)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, texts in ((mine, {"a": "rank = 1", "b": "rank = 2"}), (theirs, {"b": "rank = 3"})):
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}.toml").write_text(text)
    (mine / "notes.txt").write_text("no preset")
    backup(registry, tmp_path / "kept.zip", watched([]), mine)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    blobs = BlobStore(elsewhere / "blobs")
    restore(tmp_path / "kept.zip", elsewhere / "registry.db", blobs, watched([]), theirs)
    assert {path.name: path.read_text() for path in theirs.iterdir()} == {
        "a.toml": "rank = 1",
        "b.toml": "rank = 3",
    }
    (mine / "c.toml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(StorageError, match=r"presets/c\.toml has 1\.0 MB, and is no preset"):
        backup(registry, tmp_path / "large.zip", watched([]), mine)
    assert not list(tmp_path.glob("*large.zip*"))


def test_a_restore_replaces_only_when_asked_and_keeps_what_was_there(registry, tmp_path):
    full(registry)
    backup(registry, tmp_path / "kept.zip", watched([]))
    registry.add(adapter("later"))
    with pytest.raises(StorageError, match="--replace"):
        restore(tmp_path / "kept.zip", tmp_path / "registry.db", registry.blobs, watched([]))
    registry.database.close()
    restore(tmp_path / "kept.zip", tmp_path / "registry.db", registry.blobs, watched([]), replace=True)
    again = opened(tmp_path)
    assert again.names(Adapter) == {"mine"}
    again.database.close()
    (before,) = tmp_path.glob("registry-before-restore-*.db")
    old = Registry(Database(before), registry.blobs)
    assert old.names(Adapter) == {"mine", "later"}
    old.database.close()


def test_a_backup_is_made_while_others_write(registry, tmp_path):
    """Rows whose blobs vanish between the copy of the database and the packing are left out of the backup."""
    full(registry)
    gone = stored(registry, "gone")

    def meanwhile(what, share):
        if gone.digest[:12] in what:
            registry.adapters.delete(gone.id)
            registry.sweep(0)

    backup(registry, tmp_path / "kept.zip", meanwhile)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    restore(tmp_path / "kept.zip", elsewhere / "registry.db", BlobStore(elsewhere / "blobs"), watched([]))
    copy = opened(elsewhere)
    assert copy.names(Adapter) == {"mine"}
    copy.database.close()


@pytest.mark.parametrize("how", ["cut", "flipped", "stranger", "no zip", "outside", "newer"])
def test_a_damaged_backup_changes_nothing(registry, tmp_path, how):
    full(registry)
    path = tmp_path / "kept.zip"
    backup(registry, path, watched([]))
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[:-100])
    elif how == "flipped":
        at = whole.index(b"rows")
        path.write_bytes(whole[:at] + b"r0ws" + whole[at + 4 :])
    elif how == "no zip":
        path.write_bytes(b"nothing")
    else:
        with zipfile.ZipFile(path, "w" if how != "outside" else "a") as archive:
            name = {"stranger": "readme.txt", "outside": "blobs/../../evil", "newer": "backup.json"}[how]
            archive.writestr(name, '{"format": 3}')
            if how == "newer":
                archive.writestr("registry.db", "")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(StorageError):
        restore(path, elsewhere / "registry.db", BlobStore(elsewhere / "blobs"), watched([]))
    assert not (elsewhere / "registry.db").exists()
    assert not (tmp_path / "evil").exists()


def test_a_backup_says_when_something_it_needs_is_damaged(registry, tmp_path):
    full(registry)
    file = next(registry.blobs.path(registry.find(Adapter, "mine").digest).iterdir())
    file.write_text("changed")
    with pytest.raises(StorageError, match="has changed on disk"):
        backup(registry, tmp_path / "kept.zip", watched([]))
    assert list(tmp_path.glob("*kept*")) == []
