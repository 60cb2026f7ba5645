"""What it costs to list, search and watch 10,000 adapters: python -m tests.benchmarks.listing"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from storage.adapters import AdapterQuery
from storage.blobs import BlobStore
from storage.database import Database
from storage.registry import Registry
from storage.tables import Adapter
from tests.benchmarks.merging import seconds
from tests.benchmarks.report import show


def listing(count: int = 10_000) -> list[dict[str, Any]]:
    """A page of adapters, a search and the words to filter by, among many."""
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Database(Path(folder) / "registry.db"), BlobStore(Path(folder) / "blobs"))
        chance = np.random.default_rng(0)
        with registry.database.writing() as session:
            for at in range(count):
                session.add(
                    Adapter(
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
                )
        work = {
            "a page by validation loss": lambda: registry.adapters.search(
                AdapterQuery(order="validation loss")
            ),
            "a search": lambda: registry.adapters.search(AdapterQuery(words="777 base", tag="good")),
            "all of them": lambda: registry.adapters.search(AdapterQuery(), limit=count),
            "words to filter by": registry.adapters.words,
            "has anything changed": registry.change_count,
        }
        found = [{"what": name, "milliseconds": 1000 * seconds(one, 5)} for name, one in work.items()]
        registry.database.close()
    return found


if __name__ == "__main__":
    show("Listing 10,000 adapters", listing())
