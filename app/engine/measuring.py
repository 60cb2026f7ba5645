"""In the engine process: measuring what a run would take, asked for before it is queued."""

from __future__ import annotations

import functools
import queue
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace

from app.engine.checkpoints import rehearse_checkpoint
from app.engine.preparing import base_source, prepare
from app.engine.several_cards import SeveralCards
from app.shared import wire
from app.shared.errors import MeasuringEnded
from app.shared.refusals import refused
from app.shared.run_rows import run_row
from app.shared.settings import Settings
from core.engine import Engine
from core.train.preflight import Preflight, Trying
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

    def work(self, registry: Registry, engine: Engine, settings: Settings) -> Generator[None, None, None]:
        """Pauses after each micro-batch; how far it is and then the result go out by the queue.

        Raises what makes such a run impossible.
        """
        base = registry.find(Base, self.question["base"])
        data = registry.find(Dataset, self.question["dataset"])
        runs = [run_row(base, data, config) for config in self.question["configs"]]
        several = SeveralCards(settings, engine, self._say)
        with closing(several):
            first = TrainingOptions.from_dict(runs[0].config)
            source = yield from several.begin(base_source(registry, runs[0]), first, base.way)
            requests = []
            for number, run in enumerate(runs):
                options = TrainingOptions.from_dict(run.config)
                say, parts = self._say, source.parts
                request = yield from prepare(registry, engine, run, options, settings.cache, say, parts=parts)
                requests.append(replace(request, key=number))
            save = functools.partial(rehearse_checkpoint, registry, engine)
            share = several.share if source.parts > 1 else None
            engine.held_back = source.parts > 1  # who asks waits: the base is loaded whole behind it
            for found in engine.measure(source, requests, save, share, several.hand_out):
                if isinstance(found, Trying):
                    several.require()
                    self._say("Trying a few of its micro-batches", found.share)
                else:
                    self.out.put(_told(found, first.train.processes, several.held))
                yield

    def end(self) -> None:
        """Answer at once that it was ended; the work itself ends where it next pauses."""
        self.ended = True
        self.out.put(refused(MeasuringEnded(), "The measuring was ended."))

    def _say(self, text: str, share: float | None = None) -> None:
        self.out.put({"progress": {"text": text, "share": share}})


def _told(found: Preflight, cards: int, held: str) -> wire.Message:
    """What was measured, on the first of so many cards."""
    notices = [*([held] if held else []), *found.notices]
    return asdict(found) | {"verdict": found.verdict, "cards": cards, "notices": notices}
