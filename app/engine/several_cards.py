"""The cards that train the runs of a session together: how they hold the base, and the processes on them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app.shared.settings import Settings
from core.base_model.held_bytes import held_bytes
from core.base_model.source import BaseSource
from core.engine import Engine
from core.train.accelerators import cards, cards_here, require_cards
from core.train.config import TrainConfig
from core.train.run import RunRequest
from core.train.sharding import DDP, CardsHold, cards_hold
from core.train.share import ALL
from core.train.training_options import TrainingOptions
from core.train.way_options import why_not_in_parts

if TYPE_CHECKING:
    from app.engine.workers import Workers


class SeveralCards:
    """Of one session: the engine's card, and the others if its runs want some."""

    def __init__(self, settings: Settings, engine: Engine, say: Callable[[str], object]) -> None:
        self._settings, self._engine, self._say = settings, engine, say
        self._workers: Workers | None = None
        self.share: Any = ALL
        """This process's part of the work, once the others are there."""
        self.held = ""
        """How they hold the base, in a sentence; empty where one card trains."""

    def begin(
        self, source: BaseSource, options: TrainingOptions, way: str
    ) -> Generator[None, None, BaseSource]:
        """Decide how the cards hold the base; where each is to hold a part, start the others and load it
        with them. Its value is the base as it is to be made resident. way: on which it is computed.

        Raises InvalidConfig, BaseTooLarge, InvalidModel and WorkerLost, with what keeps them from it.
        """
        count, machines = options.train.devices, options.train.machines
        self._engine.cards = _told(count, machines)
        if count == 1:
            return source
        there, width = cards(), self._engine.weight_bytes
        hold = self._hold(source, options, way, width)
        parts = 1 if hold.way == DDP else count
        require_cards(there, count, held_bytes(source.folder, source.quantisation, width, parts))
        self.held = hold.sentence
        self._say(self.held)
        if parts == 1:
            return source
        self._engine.cards = f"{count}, each with a part of the base"
        source = replace(source, parts=parts)
        yield from self._meet(source, options.train)
        yield from self._lay_out(source)
        return source

    def _hold(self, source: BaseSource, options: TrainingOptions, way: str, width: int) -> CardsHold:
        train, takes = options.train, held_bytes(source.folder, source.quantisation, width)
        return cards_hold(
            train.sharding,
            train.devices,
            takes,
            cards_here().of_each(train.devices),
            machines=train.machines,
            refusal=why_not_in_parts(way, options),
        )

    def _meet(self, source: BaseSource, train: TrainConfig) -> Generator[None, None, None]:
        from app.engine.workers import Workers  # torch.distributed is for those who are several

        self._workers = Workers(self._settings, source, train)
        if (others := train.devices - 1) > 0:
            cards = f"{others} more {'card' if others == 1 else 'cards'}"
            self._say(f"Waiting until {cards} {_can(others, source.parts)}")
        for said in self._workers.gather():
            if said:
                self._say(said)
            yield None

    def _lay_out(self, source: BaseSource) -> Generator[None, None, None]:
        """Once nobody is answered on the base as it is; who asks meanwhile waits."""
        assert self._workers is not None
        self._engine.held_back = True
        while not self._engine.free_for(source):
            self._workers.require()
            yield None
        share: Any = self._workers.open(self._engine)
        self.share = share
        share.accompany(self._engine.load_base(source))
        self._engine.held_back = False

    def join(self, source: BaseSource, train: TrainConfig) -> Generator[None, None, None]:
        """Have the others there, each with the whole base, unless they are there or nobody wants them."""
        if train.processes > 1 and self._workers is None:
            yield from self._meet(source, train)
            assert self._workers is not None
            self.share = self._workers.open(self._engine)

    def hand_out(self, requests: Sequence[RunRequest]) -> None:
        """Have the others train these, too, as far as there are some."""
        if self._workers is not None:
            assert self._engine.base is not None
            self._workers.hand_out(self._engine.base, requests)

    def require(self) -> None:
        """Raise WorkerLost if one of the others is gone."""
        if self._workers is not None:
            self._workers.require()

    def explained(self, error: Exception) -> Exception:
        """The error in words of what the others have to do with it."""
        return error if self._workers is None else self._workers.explained(error)

    def close(self, why: str = "", *, in_order: bool = False) -> None:
        """Let go of the others. why: what ended the work, if not its end. in_order: after all was trained to
        its end, and nobody is answered.
        """
        if in_order and self.share.in_step:
            self.share.meet()
        workers, self._workers, self._engine.held_back = self._workers, None, False
        if workers is not None:
            workers.end(why)


def _told(cards: int, machines: int) -> str:
    return str(cards) if machines == 1 else f"{cards} of each of {machines} machines"


def _can(others: int, parts: int) -> str:
    if parts > 1:
        return f"{'is' if others == 1 else 'are'} ready to take a part of the base"
    return f"{'has' if others == 1 else 'have'} the base"
