"""The registry and its files: names, rows, runs, migrations, blobs."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from sqlalchemy import inspect
from sqlmodel import SQLModel

import storage.blobs
import storage.database
from storage.blobs import BlobStore, content_digest
from storage.database import Database, wal_is_safe
from storage.errors import BlobDamaged, InUse, InvalidName, NameTaken, NotFound, StorageError
from storage.names import clean_name, free_name
from storage.registry import Registry
from storage.tables import Adapter, Base, Chat, ChatMessage, Dataset, Export, Job, Point, Run


@pytest.fixture
def registry(tmp_path):
    found = Registry(Database(tmp_path / "registry.db"), BlobStore(tmp_path / "blobs"))
    yield found
    found.database.close()


def base(name="llama", fingerprint="f" * 64):
    return Base(
        name=name,
        fingerprint=fingerprint,
        stat_key="",
        tokenizer_hash="",
        template_hash="",
        architecture="Llama",
        parameters=1,
        dtype="f32",
        context_length=8,
        layers=1,
        hidden_size=1,
        vocab_size=1,
        has_chat_template=True,
        size_bytes=1,
        source="folder",
        origin="x",
        folder="x",
        owned=False,
    )


def dataset(name="data", digest="d" * 64):
    return Dataset(
        name=name, format="messages", reason="", rows=1, digest=digest, size_bytes=1, source_name="x"
    )


def adapter(name="a", digest="e" * 64):
    return Adapter(
        name=name,
        base_name="llama",
        base_fingerprint="f" * 64,
        source="trained",
        rank=4,
        alpha=8,
        target_modules="q_proj",
        parameters=1,
        digest=digest,
        size_bytes=1,
    )


def run(name="run", state="queued", base_id=1, dataset_id=1):
    return Run(
        name=name,
        base_id=base_id,
        base_name="llama",
        base_fingerprint="f" * 64,
        dataset_id=dataset_id,
        dataset_name="data",
        dataset_digest="d" * 64,
        state=state,
    )


def queue(registry, one, **options):
    registry.queue.add([one], **options)
    return one


@pytest.mark.parametrize(
    "name", ["", "   ", "a\nb", "a\x00b", "a\u202eb", "x" * 121, "\ud800", "run-3@200", " Run-1@2"]
)
def test_names_that_cannot_be_shown_are_refused(name):
    with pytest.raises(InvalidName):
        clean_name(name, "adapter")


@pytest.mark.parametrize(
    "name", ["../../x", "名前", "👩‍🚀 one", "Captain's log (sample)", "<b>bold</b>", "C:\\x"]
)
def test_any_other_name_is_kept_as_it_is(registry, name):
    registry.add(adapter(name))
    assert registry.find(Adapter, name).name == name


def test_a_name_is_found_however_its_accents_are_written(registry):
    registry.add(adapter("cafe\u0301"))
    assert (
        registry.find(Adapter, "cafe\u0301").name == registry.find(Adapter, "caf\u00e9").name == "caf\u00e9"
    )


def test_a_waiting_run_is_claimed_once_and_not_after_it_was_stopped(registry):
    first, second = queue(registry, run("a")), queue(registry, run("b"))
    assert registry.queue.claim(first.id)
    assert not registry.queue.claim(first.id)
    registry.requests.stop(second.id)
    assert not registry.queue.claim(second.id)


def test_runs_without_a_name_of_their_own_get_a_number(registry):
    registry.add(adapter("data"))
    assert [queue(registry, run("data"), number_if_taken=True).name for _ in range(2)] == ["data-2", "data-3"]


def test_a_damaged_registry_is_one_sentence(tmp_path):
    (tmp_path / "registry.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageError, match="cannot be opened"):
        Database(tmp_path / "registry.db")


@pytest.mark.parametrize("name", ["h?q=1", "h%20 é", "h#x"])
def test_a_home_may_have_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    Database(tmp_path / name / "registry.db").close()
    assert (tmp_path / name / "registry.db").is_file()


def test_a_name_is_used_once(registry):
    registry.datasets.add(dataset(), "imported")
    with pytest.raises(NameTaken, match="'data' is taken"):
        registry.datasets.add(dataset(" data "), "imported")
    assert len(registry.all(Dataset)) == 1


def test_an_unknown_name_lists_what_there_is(registry):
    with pytest.raises(NotFound, match="There is none yet"):
        registry.find(Base, "x")
    registry.add(base("llama"))
    with pytest.raises(NotFound, match=r"There are: llama\."):
        registry.find(Base, "x")
    for number in range(10):
        registry.add(base(f"base {number}"))
    with pytest.raises(NotFound, match=r"There are: base 9, .*, base 2 and 3 more\."):
        registry.find(Base, "x")


def test_free_names():
    assert free_name("a", set()) == "a"
    assert free_name("a", {"a", "a-2"}) == "a-3"


def test_a_base_that_adapters_need_stays(registry):
    registry.add(base())
    registry.add(adapter())
    with pytest.raises(InUse, match=r"'llama' is needed by 1 adapter\(s\): a"):
        registry.bases.remove(registry.find(Base, "llama"))
    registry.add(base("copy"))
    registry.bases.remove(registry.find(Base, "llama"))
    assert registry.names(Base) == {"copy"}


def test_data_of_an_active_run_stays(registry):
    registry.datasets.add(dataset(), "imported")
    queue(registry, run())
    with pytest.raises(InUse, match="Run 1"):
        registry.datasets.remove(registry.find(Dataset, "data"))


def test_a_run_may_not_take_the_name_of_an_adapter_or_an_active_run(registry):
    registry.add(adapter("a"))
    queue(registry, run("b"))
    for name in ("a", "b"):
        with pytest.raises(NameTaken):
            queue(registry, run(name))
    registry.queue.claim(1)
    registry.runs.begin(1, {})
    registry.runs.finished(1)
    queue(registry, run("b"))


def test_stopping_a_waiting_run_ends_it_and_an_active_one_is_asked(registry):
    first, second = queue(registry, run("a")), queue(registry, run("b"))
    registry.queue.claim(second.id)
    registry.runs.begin(second.id, {})
    assert registry.requests.stop(first.id).state == "stopped"
    assert registry.requests.stop(second.id).state == "running"
    assert [one.id for one in registry.requests.open([first.id, second.id])] == [second.id]
    with pytest.raises(NotFound):
        registry.requests.stop(99)


def test_interrupting_touches_only_what_was_under_way(registry):
    for name, state in (("a", "queued"), ("b", "preparing"), ("c", "running"), ("d", "finished")):
        queue(registry, run(name, state))
    assert registry.runs.interrupt_all("killed") == [2, 3]
    assert [one.state for one in reversed(registry.all(Run))] == [
        "queued",
        "interrupted",
        "interrupted",
        "finished",
    ]
    assert (registry.measurements.notes(2)[-1].text, registry.measurements.notes(2)[-1].kind) == (
        "Interrupted: killed",
        "state",
    )


def test_points_come_in_order_after_the_last_one_seen(registry):
    queue(registry, run())
    registry.measurements.add_points([Point(run_id=1, step=step, loss=1.0) for step in range(5)])
    registry.measurements.add_points([Point(run_id=1, step=5, validation_loss=1.0)])
    seen = registry.measurements.points(1, after=0, limit=2)
    assert [point.step for point in seen] == [0, 1]
    assert [point.step for point in registry.measurements.points(1, after=seen[-1].id)] == [2, 3, 4, 5]
    assert registry.measurements.last_point(1).step == 4


def test_a_shared_blob_outlives_one_of_its_rows(registry):
    with registry.blobs.staging() as staging:
        (staging / "x").write_text("content")
        digest = registry.blobs.put(staging / "x")
    registry.datasets.add(dataset("a", digest), "imported")
    registry.datasets.add(dataset("b", digest), "imported")
    registry.datasets.remove(registry.find(Dataset, "a"))
    assert registry.blobs.verify(digest).read_text() == "content"
    registry.datasets.remove(registry.find(Dataset, "b"))
    with pytest.raises(NotFound):
        registry.blobs.path(digest)


def test_a_change_is_noticed(registry):
    seen = {registry.change_count()}
    for change in (
        lambda: registry.add(base()),
        lambda: registry.add(adapter()),
        lambda: queue(registry, run()),
        lambda: registry.queue.claim(1),
        lambda: registry.runs.begin(1, {}),
        lambda: registry.runs.finished(1),
        lambda: registry.save(Job(kind="x", title="x")),
        lambda: registry.adapters.change(1, starred=True),
        lambda: registry.adapters.delete(1),
        lambda: registry.adapters.bring_back(1),
    ):
        change()
        seen.add(registry.change_count())
    assert len(seen) == 11


def test_what_another_process_writes_is_noticed_too(registry):
    before, version = registry.change_count(), registry.database.version()
    assert (registry.change_count(), registry.database.version()) == (before, version)
    elsewhere = "import sys; from pathlib import Path; from storage.database import Database\n"
    elsewhere += "from storage.registry import Registry; from storage.tables import Job\n"
    elsewhere += "Registry(Database(Path(sys.argv[1])), None).save(Job(kind='x', title='x'))"
    subprocess.run([sys.executable, "-c", elsewhere, str(registry.database.path)], check=True)
    assert registry.database.version() != version
    assert registry.change_count() != before


def test_removing_a_chat_removes_its_messages(registry):
    chat = registry.save(Chat(base_name="llama"))
    registry.save(ChatMessage(chat_id=chat.id, role="user", content="hi"))
    registry.chats.remove(chat.id)
    assert registry.chats.messages(chat.id) == []


def test_writers_wait_for_each_other(tmp_path):
    """Two connections that both read and then write: each gets its turn, and no number is lost."""
    databases = [
        Registry(Database(tmp_path / "registry.db"), BlobStore(tmp_path / "blobs")) for _ in range(2)
    ]
    queue(databases[0], run())

    def work(registry):
        for step in range(25):
            registry.measurements.add_points([Point(run_id=1, step=step)])

    threads = [threading.Thread(target=work, args=(one,)) for one in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(databases[0].measurements.points(1)) == 50
    for one in databases:
        one.database.close()


def test_two_who_store_the_same_content_at_once_both_succeed(registry, monkeypatch):
    """Whoever comes second finds the place taken between the look and the rename."""

    def too_late(source, target):
        shutil.copytree(source, target)
        raise OSError("Directory not empty")

    with registry.blobs.staging() as staging:
        (staging / "rows").mkdir()
        (staging / "rows" / "x").write_text("content")
        with monkeypatch.context() as patch:
            patch.setattr(storage.blobs.os, "replace", too_late)
            digest = registry.blobs.put(staging / "rows")
    assert (registry.blobs.verify(digest) / "x").read_text() == "content"


def test_what_killed_processes_left_behind_is_swept_after_a_day(registry, tmp_path):
    staging = tmp_path / "blobs" / "staging"
    for name, age in (("old", 25 * 3600), ("new", 60)):
        (staging / name).mkdir()
        at = time.time() - age
        os.utime(staging / name, (at, at))
    registry.blobs.sweep_staging()
    assert [path.name for path in staging.iterdir()] == ["new"]
    with registry.blobs.staging() as ours:
        os.utime(ours, (at, at))
        left = staging / "held-by-nobody"
        left.mkdir()
        os.utime(left, (at, at))
        registry.blobs.sweep_staging()
        assert {path.name for path in staging.iterdir()} == {"new", ours.name}


def test_the_migrated_schema_is_the_models(tmp_path):
    database = Database(tmp_path / "registry.db")
    with database.reading() as session:
        found = inspect(session.connection())
        for name, table in SQLModel.metadata.tables.items():
            assert {column["name"] for column in found.get_columns(name)} == {
                column.name for column in table.columns
            }, name
    database.close()


def test_migrations_are_one_transaction_which_others_that_open_a_new_home_wait_for(tmp_path, monkeypatch):
    upgrade, path, seen = storage.database._upgrade, tmp_path / "registry.db", []

    def watched(connection):
        upgrade(connection)
        with closing(sqlite3.connect(path, timeout=0)) as other:
            seen.append(other.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")

    own = shutil.copytree(storage.database._MIGRATIONS, tmp_path / "migrations")
    monkeypatch.setattr(storage.database, "_MIGRATIONS", own)  # or a registry that is there would be copied
    monkeypatch.setattr(storage.database, "_upgrade", watched)
    Database(path).close()
    assert seen == [0]
    Database(path).close()
    assert seen == [0], "it was migrated again"


def test_an_older_schema_is_backed_up_before_it_is_migrated(tmp_path, monkeypatch):
    """A registry with rows, then a version of the workbench that brings one more migration."""
    path = tmp_path / "registry.db"
    older = Registry(Database(path), BlobStore(tmp_path / "blobs"))
    older.add(adapter("precious"))
    older.database.close()
    newer = shutil.copytree(storage.database._MIGRATIONS, tmp_path / "migrations")
    (newer / "versions" / "0099_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '0099', '{_VERSIONS[-1][:4]}'\n"
        "def upgrade():\n    op.add_column('adapter', sa.Column('stars', sa.Integer(), nullable=True))\n"
    )
    monkeypatch.setattr(storage.database, "_MIGRATIONS", newer)
    Database(path).close()
    (backup,) = tmp_path.glob("registry-before-0099-*.db")
    for file, has_stars in ((backup, False), (path, True)):
        with sqlite3.connect(file) as connection:
            names = {row[1] for row in connection.execute("pragma table_info(adapter)")}
            assert ("stars" in names) == has_stars
            assert connection.execute("select name from adapter").fetchall() == [("precious",)]
        connection.close()


_OF_THE_FIRST = {
    "run": "(name, base_id, base_name, base_fingerprint, dataset_id, dataset_name, dataset_digest, "
    "config, state, reason,"
    " stop_requested, details, created) values (?, 1, 'b', 'f', 1, 'd', 'd', ?, ?, '', 0, '{}', 1)",
    "point": "(run_id, step, loss, at) values (1, 1, 2.5, 1)",
    "dataset": "(name, format, reason, rows, digest, size_bytes, source_name, preview, created)"
    " values ('mine', 'text', 'r', 7, 'dddd', 1, 'x', '[]', 5)",
    "adapter": "(name, base_name, base_fingerprint, dataset_name, source, rank, alpha, target_modules, "
    "parameters, digest,"
    " size_bytes, config, created) values ('old one', 'b', 'f', 'd', 'trained', 4, 8, 'q', 1, 'eeee', "
    "1, '{}', 1)",
    "base": "(name, fingerprint, stat_key, tokenizer_hash, template_hash, architecture, parameters, "
    "dtype, context_length,"
    " layers, hidden_size, vocab_size, has_chat_template, size_bytes, licence, source, origin, folder, "
    "owned, layer_shapes,"
    " created)"
    " values ('b', 'f', '', '', '', 'L', 1, 'f32', 1, 1, 1, 1, 0, 1, '', 'folder', '', '/x', 0, '{}', 1)",
    "export": "(adapter_name, adapter_digest, base_name, folder, size_bytes, passed, sentence, "
    '"check", created)'
    " values ('old one', 'eeee', 'b', '/y', 1, ?, 's', '{}', 1)",
    "note": "(run_id, text, at) values (1, 'said', 1)",
}
_VERSIONS = sorted(path.name for path in (storage.database._MIGRATIONS / "versions").glob("0*.py"))


@pytest.mark.parametrize("newest", _VERSIONS[:-1])
def test_a_registry_of_every_earlier_version_keeps_what_is_in_it(tmp_path, monkeypatch, newest):
    """Rows as the first version wrote them, brought to one of the earlier schemas, then to this one."""
    path, first = tmp_path / "registry.db", shutil.copytree(storage.database._MIGRATIONS, tmp_path / "first")
    for later in _VERSIONS[1:]:
        (first / "versions" / later).unlink()
    earlier = shutil.copytree(storage.database._MIGRATIONS, tmp_path / "earlier")
    for later in (name for name in _VERSIONS if name > newest):
        (earlier / "versions" / later).unlink()
    for migrations in (first, earlier):
        with monkeypatch.context() as patch:
            patch.setattr(storage.database, "_MIGRATIONS", migrations)
            Database(path).close()
        if migrations == first:
            with sqlite3.connect(path) as connection:
                waits = '{"train": {"seed": 1, "validation_share": 0.05}}'
                for values in (("old", "{}", "finished"), ("waits", waits, "queued")):
                    connection.execute(f"insert into run {_OF_THE_FIRST['run']}", values)
                for table in ("base", "dataset", "adapter", "point", "note"):
                    connection.execute(f"insert into {table} {_OF_THE_FIRST[table]}")
                for passed in (True, False):
                    connection.execute(f"insert into export {_OF_THE_FIRST['export']}", (passed,))
            connection.close()
    registry = Registry(Database(path), BlobStore(tmp_path / "blobs"))
    assert len(list(tmp_path.glob("registry-before-*.db"))) == (1 if newest == _VERSIONS[0] else 2)
    assert (registry.get(Run, 1).name, registry.get(Run, 1).sweep, registry.get(Run, 1).position) == (
        "old",
        "",
        1.0,
    )
    assert registry.measurements.last_point(1).loss == 2.5
    assert registry.measurements.last_point(1).metrics is None
    assert registry.measurements.notes(1)[0].text == "said"
    assert registry.get(Run, 2).config == {"train": {"seed": 1}}
    mine = registry.find(Dataset, "mine")
    assert (mine.version, mine.rows_digest, mine.faulty_rows, mine.mapping) == (1, "dddd", 0, {})
    assert [
        (one.number, one.digest, one.rows, one.change) for one in registry.datasets.versions(mine.id)
    ] == [(1, "dddd", 7, "imported")]
    old = registry.find(Adapter, "old one")
    assert (old.parents, old.starred, old.deleted, old.tags, old.tokenizer_hash) == ([], False, None, "", "")
    assert registry.find(Base, "b").merged == {}
    assert [(one.format, one.verdict) for one in registry.all(Export)] == [
        ("safetensors", "failed"),
        ("safetensors", "passed"),
    ]
    registry.database.close()


def test_the_runs_of_a_sweep_are_taken_together_and_queued_all_or_none(registry):
    registry.queue.add(
        [
            Run(**{**run(name).model_dump(), "sweep": sweep})
            for name, sweep in (("a", "s"), ("x", ""), ("b", "s"), ("c", "s"))
        ]
    )
    registry.queue.claim(4)
    assert [one.name for one in registry.queue.next()] == ["a", "b"]
    for run_id in (1, 3):
        assert registry.queue.claim(run_id)
    assert [one.name for one in registry.queue.next()] == ["x"]
    assert registry.queue.claim(2)
    assert registry.queue.next() == []
    with pytest.raises(NameTaken):
        registry.queue.add([run("new"), run("x")])
    assert len(registry.all(Run)) == 4


def test_a_registry_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "registry.db"
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    with pytest.raises(StorageError, match="newer version"):
        Database(path)


def test_a_backup_is_a_whole_registry(registry, tmp_path):
    registry.add(adapter("kept"))
    registry.database.backup(tmp_path / "copy.db")
    copy = Registry(Database(tmp_path / "copy.db"), registry.blobs)
    assert copy.names(Adapter) == {"kept"}
    copy.database.close()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_wal_only_where_its_reset_is_fixed(version, safe):
    assert wal_is_safe(version) == safe


def test_blobs_are_found_by_their_content(tmp_path):
    store = BlobStore(tmp_path)
    with store.staging() as staging:
        (staging / "folder").mkdir()
        (staging / "folder" / "a").write_text("1")
        expected = content_digest(staging / "folder")
        digest = store.put(staging / "folder")
    assert digest == expected
    assert (store.verify(digest) / "a").read_text() == "1"
    (store.path(digest) / "a").write_text("2")
    with pytest.raises(BlobDamaged, match="has changed on disk"):
        store.verify(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "/x"])
def test_only_digests_become_paths(tmp_path, digest):
    with pytest.raises(NotFound):
        BlobStore(tmp_path).path(digest)
