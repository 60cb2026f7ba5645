"""In the engine process: measuring what a run would take, asked for before it is queued."""

from __future__ import annotations

import functools
import queue
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from app.engine.checkpoints import rehearse_checkpoint
from app.engine.preparing import base_source, prepare
from app.shared import wire
from app.shared.errors import MeasuringEnded
from app.shared.refusals import refused
from app.shared.run_rows import run_row
from core.engine import Engine
from core.train.preflight import Trying
from core.train.training_options import TrainingOptions
from storage.registry import Registry
from storage.tables import Base, Dataset


@dataclass(eq=False)
class Measuring:
    """One question: a base, a data set and the options of the runs that would train at once."""

    question: wire.Message
    ended: bool = False
    """Set when nobody wants to know any more."""
    out: queue.SimpleQueue[wire.Message] = field(default_factory=queue.SimpleQueue)

    def work(self, registry: Registry, engine: Engine, cache: Path) -> Generator[None, None, None]:
        """Pauses after each micro-batch; how far it is and then the result go out by the queue.

        Raises what makes such a run impossible.
        """
        base = registry.find(Base, self.question["base"])
        data = registry.find(Dataset, self.question["dataset"])
        runs = [run_row(base, data, config) for config in self.question["configs"]]
        requests = []
        for number, run in enumerate(runs):
            options = TrainingOptions.from_dict(run.config)
            request = yield from prepare(registry, engine, run, options, cache, self._say)
            requests.append(replace(request, key=number))
        save = functools.partial(rehearse_checkpoint, registry, engine)
        for found in engine.measure(base_source(registry, runs[0]), requests, save):
            if isinstance(found, Trying):
                self._say("Trying a few of its micro-batches", found.share)
            else:
                self.out.put(asdict(found) | {"verdict": found.verdict})
            yield

    def end(self) -> None:
        """Answer at once that it was ended; the work itself ends where it next pauses."""
        self.ended = True
        self.out.put(refused(MeasuringEnded(), "The measuring was ended."))

    def _say(self, text: str, share: float | None = None) -> None:
        self.out.put({"progress": {"text": text, "share": share}})
