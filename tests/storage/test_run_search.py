"""Runs looked for among many."""

import pytest

from storage.blobs import BlobStore
from storage.database import Database
from storage.registry import Registry
from storage.run_search import GROUPS, ORDERS, RunQuery
from storage.tables import Point, Run


@pytest.fixture
def registry(tmp_path):
    found = Registry(Database(tmp_path / "registry.db"), BlobStore(tmp_path / "blobs"))
    rows = [
        ("Poems one", "finished", "llama", "poems", 0),
        ("poems two", "stopped", "llama", "poems", 0),
        ("chat", "running", "qwen", "talk", 0),
        ("later", "queued", "llama", "talk", 2),
        ("sooner", "queued", "qwen", "100%", 1),
        ("broken", "failed", "qwen", "talk", 0),
    ]
    for name, state, base, data, place in rows:
        found.save(
            Run(
                name=name,
                state=state,
                base_id=1,
                base_name=base,
                base_fingerprint="f",
                dataset_id=1,
                dataset_name=data,
                dataset_digest="d",
                position=place,
            )
        )
    yield found
    found.database.close()


def _names(registry, **query):
    return [run.name for run in registry.runs.search(RunQuery(**query))[0]]


def test_what_is_under_way_comes_first_then_the_queue_in_its_order_then_the_newest(registry):
    assert _names(registry) == ["chat", "sooner", "later", "broken", "poems two", "Poems one"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"words": "poem ONE"}, ["Poems one"]),
        ({"words": "qwen talk"}, ["chat", "broken"]),
        ({"words": "0%"}, ["sooner"]),
        ({"words": "_"}, []),
        ({"group": "active"}, ["chat", "sooner", "later"]),
        ({"group": "halted"}, ["poems two"]),
        ({"group": "broken"}, ["broken"]),
        ({"base": "qwen", "dataset": "talk"}, ["chat", "broken"]),
        ({"order": "name", "group": "finished"}, ["Poems one"]),
        ({"order": "oldest", "words": "poems"}, ["Poems one", "poems two"]),
    ],
)
def test_runs_are_found_by_words_state_base_and_data(registry, query, found):
    assert _names(registry, **query) == found


def test_a_page_of_many_says_how_many_there_are(registry):
    rows, total = registry.runs.search(RunQuery(order="oldest"), limit=2, offset=1)
    assert ([run.name for run in rows], total) == (["poems two", "chat"], 6)
    assert registry.runs.words() == {"base": ["llama", "qwen"], "dataset": ["100%", "poems", "talk"]}
    assert {*ORDERS} == {"work", "oldest", "name", "best"}
    assert {state for states in GROUPS.values() for state in states} >= {"queued", "failed", "finished"}


def test_the_best_by_validation_come_first_and_unmeasured_runs_last(registry):
    runs = {run.name: run.id for run in registry.runs.search(RunQuery())[0]}
    points = [("Poems one", 1.5), ("chat", 0.75), ("Poems one", 0.5), ("broken", None)]
    registry.measurements.add_points(
        [
            Point(run_id=runs[name], step=at, loss=None if loss else 2.0, validation_loss=loss)
            for at, (name, loss) in enumerate(points)
        ]
    )
    assert _names(registry, order="best")[:3] == ["Poems one", "chat", "broken"]
    measured = registry.measurements
    assert measured.best_losses(list(runs.values())) == {runs["Poems one"]: 0.5, runs["chat"]: 0.75}
    assert {run: one.step for run, one in measured.last_points(list(runs.values())).items()} == {
        runs["broken"]: 3
    }
