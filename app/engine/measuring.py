"""In the engine process: measuring what a run would take, asked for before it is queued."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from app.engine.preparing import base_source, prepare
from app.shared import wire
from core.engine import Engine
from core.train.training_options import TrainingOptions
from storage.registry import Registry
from storage.tables import Base, Dataset, Run


@dataclass(eq=False)
class Measuring:
    """One question: a base, a data set and the options of the runs that would train at once."""

    question: wire.Message
    out: queue.SimpleQueue[wire.Message] = field(default_factory=queue.SimpleQueue)

    def work(self, registry: Registry, engine: Engine, cache: Path) -> Iterator[None]:
        """Pauses after each micro-batch; the result goes out by the queue.

        Raises what makes such a run impossible.
        """
        base = registry.find(Base, self.question["base"])
        data = registry.find(Dataset, self.question["dataset"])
        runs = [_unsaved(base, data, config) for config in self.question["configs"]]
        requests = []
        for number, run in enumerate(runs):
            options = TrainingOptions.from_dict(run.config)
            request = yield from prepare(registry, engine, run, options, cache, lambda text: None)
            requests.append(replace(request, key=number))
        for found in engine.measure(base_source(registry, runs[0]), requests):
            if found is not None:
                self.out.put(asdict(found) | {"verdict": found.verdict})
            yield


def _unsaved(base: Base, data: Dataset, config: dict[str, Any]) -> Run:
    return Run(
        name="",
        base_id=base.id or 0,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        dataset_id=data.id or 0,
        dataset_name=data.name,
        dataset_digest=data.digest,
        dataset_version=data.version,
        config=config,
    )
