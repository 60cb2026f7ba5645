"""What it costs to list, search and watch 10,000 adapters and 10,000 runs: python -m tests.benchmarks.listing

Each answer of a list on the page is to take 200 ms at most.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from app.web.parts.picker import Query
from app.web.sections.adapters.section import find as find_adapters
from app.web.sections.runs.listing import find as find_runs
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
            "all adapters": lambda: registry.adapters.search(AdapterQuery(), limit=count),
            "has anything changed": registry.change_count,
        }
        queries = {
            "the first page": Query(),
            "the last page": Query(start=count - 100),
            "by validation loss": Query(facets={"order": "validation loss"}),
            "a search": Query("777 base", {"tag": "good"}),
        }
        for name, query in queries.items():
            work[f"adapters: {name}"] = functools.partial(find_adapters, workbench, query)
        queries |= {
            "by validation loss": Query(facets={"order": "best"}),
            "a search": Query("777 base", {"state": "finished"}),
        }
        for name, query in queries.items():
            work[f"runs: {name}"] = functools.partial(find_runs, workbench, query)
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
