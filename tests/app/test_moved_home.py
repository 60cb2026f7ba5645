"""A home folder that was moved or copied works, with the original gone."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from app.service.doctor import examine_deeply
from app.service.exports import verify_export
from app.service.workbench import Workbench
from app.shared.settings import Settings, settings_for
from core.generate.config import GenerationConfig
from storage.tables import Adapter, Base, Dataset, Export, Job, Run
from tests.workbenches import do_job, end_engine, finish


@pytest.fixture
def moved(workbench, session, checked_here, tmp_path) -> Path:
    """Where a home lies by now that had a base of its own, a data set, a run, an adapter and two exports."""
    registry, home = workbench.registry, workbench.settings.home
    base = registry.find(Base, "llama")
    own = shutil.copytree(base.folder, workbench.settings.models / "0f0f")
    base.folder, base.owned = str(own), True
    registry.save(base)
    run_id, training = session("mine", max_steps=4)
    finish(training)
    assert registry.get(Run, run_id).state == "finished"
    for folder in (workbench.settings.exports / "adapter-1-20260101-000000-peft", tmp_path / "outside"):
        job = do_job(
            workbench,
            "export_adapter",
            {"adapter": "mine", "folder": str(folder), "config": {"format": "peft"}},
        )
        assert job.state == "finished", job.message
    workbench.close()
    return shutil.move(home, tmp_path / "elsewhere" / "home")


def as_stored(home: Path) -> str:
    """All that the registry has written down of places."""
    with sqlite3.connect(home / "registry.db") as connection:
        found = [
            connection.execute(f"select {columns} from {table}").fetchall()
            for columns, table in (
                ("folder, origin", "base"),
                ("folder", "export"),
                ("arguments, result", "job"),
            )
        ]
    connection.close()
    return repr(found)


def require_works(settings: Settings, tmp_path: Path) -> None:
    """Look, chat, export and examine in the moved home."""
    workbench = Workbench(settings)
    registry = workbench.registry
    base = registry.find(Base, "llama")
    assert base.folder == str(settings.models / "0f0f")
    assert workbench.models.verify("llama") == base.fingerprint
    inside, outside = sorted(registry.all(Export), key=lambda one: one.id)
    assert Path(inside.folder).parent == settings.exports
    assert outside.folder == str(tmp_path / "outside")
    verify_export(inside)
    workbench.datasets.open(registry.find(Dataset, "data"))
    assert {one.level for one in examine_deeply(workbench)} == {"fine"}
    again = {"adapter": "mine", "folder": str(settings.exports / "again"), "config": {"format": "peft"}}
    assert do_job(workbench, "export_adapter", again).state == "finished"
    greedy = GenerationConfig(max_tokens=3, temperature=0.0)
    asked = [[{"role": "user", "content": "hello"}]] * 2
    answered = list(workbench.chats.answer("llama", [None, "mine"], asked, greedy))
    assert {token.row for token in answered} == {0, 1}
    assert registry.find(Adapter, "mine").run_id == registry.all(Run)[0].id
    workbench.close()
    end_engine(settings)


def test_a_moved_home_finds_its_own_models_and_exports(moved, tmp_path):
    assert str(tmp_path / "home") not in as_stored(moved)
    assert str(tmp_path / "outside") in as_stored(moved)
    require_works(settings_for(moved), tmp_path)


def test_a_home_that_was_moved_before_its_paths_were_relative_is_found_out(moved, tmp_path):
    """Its registry is of the schema before, with the paths of where it was."""
    old = str(tmp_path / "home")
    with sqlite3.connect(moved / "registry.db") as connection:
        for table in ("base", "export"):
            connection.execute(f"update {table} set folder = '{old}/' || folder where folder not like '/%'")
        for row_id, *columns in connection.execute("select id, arguments, result from job").fetchall():
            whole = [json.dumps(_whole(json.loads(one), old)) for one in columns]
            connection.execute("update job set arguments = ?, result = ? where id = ?", (*whole, row_id))
        connection.execute("update alembic_version set version_num = '0007'")
        # What is of a later schema.
        connection.execute("drop index ix_point_evaluations")
        for table in ("decided_way", "label_table", "prompt_answer", "prompt_run", "prompt_set", "ballot"):
            connection.execute(f"drop table {table}")
        for table, columns in (
            ("base", "way"),
            ("run", "chat"),
            ("adapter", "chat"),
            ("chat", "title system raw changed"),
            ("chat_message", "adopted details"),
        ):
            for column in columns.split():
                connection.execute(f"alter table {table} drop column {column}")
    connection.close()
    assert as_stored(moved).count(old) > 3
    workbench = Workbench(settings_for(moved))
    assert old not in as_stored(moved)
    job = next(one for one in workbench.registry.all(Job) if one.kind == "export_adapter")
    assert job.arguments["folder"] == job.result["folder"] == str(tmp_path / "outside")
    workbench.close()
    require_works(settings_for(moved), tmp_path)


def _whole(value, old):
    if isinstance(value, dict):
        return (
            f"{old}/{value['in_home']}"
            if "in_home" in value
            else {k: _whole(v, old) for k, v in value.items()}
        )
    return [_whole(one, old) for one in value] if isinstance(value, list) else value


def test_a_copied_home_does_not_talk_to_the_engine_of_the_original(workbench, tmp_path):
    workbench.engine.ensure()
    copy = Workbench(settings_for(shutil.copytree(workbench.settings.home, tmp_path / "copy")))
    assert copy.settings.engine_file.exists()
    assert copy.engine.status() is None
    copy.close()
