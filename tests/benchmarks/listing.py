"""What it costs to list, search and watch 10,000 adapters and 10,000 runs: python -m tests.benchmarks.listing

Each answer of a list on the page is to take 200 ms at most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from app.web.parts.picker import Query
from app.web.sections.runs.listing import find
from storage.adapters import AdapterQuery
from storage.registry import Registry
from storage.tables import FINISHED, Adapter, Point, Run
from tests.benchmarks.merging import seconds
from tests.benchmarks.report import show

_POINTS = 20  # of a run


def listing(count: int = 10_000) -> list[dict[str, Any]]:
    """A page of adapters and of runs, a search and the words to filter by, among many."""
    with tempfile.TemporaryDirectory() as folder:
        workbench = Workbench(settings_for(Path(folder)))
        registry = workbench.registry
        _fill(registry, count)
        work: dict[str, Callable[[], object]] = {
            "a page by validation loss": lambda: registry.adapters.search(
                AdapterQuery(order="validation loss")
            ),
            "a search": lambda: registry.adapters.search(AdapterQuery(words="777 base", tag="good")),
            "all of them": lambda: registry.adapters.search(AdapterQuery(), limit=count),
            "words to filter by": registry.adapters.words,
            "has anything changed": registry.change_count,
            "runs: the first page": lambda: find(workbench, Query()),
            "runs: the last page": lambda: find(workbench, Query(start=count - 100)),
            "runs: a search": lambda: find(workbench, Query("777 base", {"state": "finished"})),
            "runs: by validation loss": lambda: find(workbench, Query(facets={"order": "best"})),
        }
        found = [{"what": name, "milliseconds": 1000 * seconds(one, 5)} for name, one in work.items()]
        workbench.close()
    return found


def _fill(registry: Registry, count: int) -> None:
    chance = np.random.default_rng(0)
    with registry.database.writing() as session:
        for at in range(count):
            session.add(_adapter(at, chance))
            session.add(_run(at, chance))
    with registry.database.writing() as session:
        for at in range(count):
            for step in range(1, _POINTS + 1):
                judged = {"validation_loss" if step % 10 == 0 else "loss": float(chance.random())}
                session.add(Point(run_id=at + 1, step=step, **judged))


def _adapter(at: int, chance: np.random.Generator) -> Adapter:
    return Adapter(
        name=f"adapter {at} {chance.integers(1000)}",
        base_name=f"base {at % 7}",
        base_fingerprint="f" * 64,
        source="trained",
        rank=16,
        alpha=32,
        target_modules="q_proj",
        parameters=1,
        digest=f"{at:064x}",
        size_bytes=1,
        dataset_name=f"data {at % 31}",
        tags="good, chat" if at % 10 == 0 else "",
        validation_loss=float(chance.random()),
    )


def _run(at: int, chance: np.random.Generator) -> Run:
    return Run(
        name=f"run {at} {chance.integers(1000)}",
        base_id=1,
        base_name=f"base {at % 7}",
        base_fingerprint="f" * 64,
        dataset_id=1,
        dataset_name=f"data {at % 31}",
        dataset_digest="d" * 64,
        config={"lora": {"rank": 16}, "train": {"epochs": 3.0}},
        state=FINISHED,
        sweep=f"{at // 8:016x}" if at % 2 else "",
        details={"total_steps": _POINTS},
    )


if __name__ == "__main__":
    show("Listing 10,000 adapters and 10,000 runs", listing())
