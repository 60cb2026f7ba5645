"""Runs that wait together, spread over the cards: some for the engine, the others for processes beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.shared.processes import exit_reason, start_detached
from app.shared.run_rows import devices_of
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore
from core.errors import InvalidConfig
from core.train.accelerators import usable_cards
from storage.registry import Registry
from storage.tables import QUEUED, Run

log = logging.getLogger("engine")


@dataclass(frozen=True)
class _Beside:
    """A process, and its runs."""

    process: Any
    runs: list[int]


class RunsApart:
    """The processes beside the engine, by card."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        self._there: dict[int, _Beside] = {}

    @property
    def run_ids(self) -> list[int]:
        """Runs that were given to them and may not have ended."""
        return [number for one in self._there.values() for number in one.runs]

    def spread(self, runs: Sequence[Run]) -> list[Run]:
        """Give some of these to processes on free cards, as many as are set; returns what is left for
        here.
        """
        self.look()
        mine = [run for run in runs if run.id not in self.run_ids]
        wanted = usable_cards(self._wanted())
        free = [card for card in range(1, wanted) if card not in self._there]
        if not mine or not free or max(map(devices_of, mine)) > (1, 1):
            return mine
        parts = _parts(mine, 1 + len(free))
        for card, part in zip(free, parts[1:], strict=False):
            if part:
                self._start(card, [run.id or 0 for run in part])
        return parts[0]

    def _wanted(self) -> int:
        try:
            return PreferenceStore(self._settings).values().spread
        except InvalidConfig as error:  # the page says it, too
            log.warning("runs are not spread over the cards: %s", error)
            return 1

    def look(self) -> None:
        """Forget those that have ended; the runs of one that died are interrupted with the reason."""
        for card, one in list(self._there.items()):
            code = one.process.poll()
            if code is None:
                continue
            del self._there[card]
            begun = {run.id or 0 for run in self._registry.runs.active() if run.state != QUEUED}
            for number in begun & set(one.runs):
                why = exit_reason(code, f"The process that trained it on card {card}")
                self._registry.runs.interrupted(number, why)

    def _start(self, card: int, runs: list[int]) -> None:
        log.info("runs %s go to card %s", runs, card)
        about = ["--home", str(self._settings.home), "--card", str(card), "--engine", str(os.getpid())]
        process = start_detached(
            "app.engine.other_card",
            [*about, "--runs", *map(str, runs)],
            self._settings.logs / f"card-{card}.log",
        )
        self._there[card] = _Beside(process, runs)


def _parts(runs: Sequence[Run], count: int) -> list[list[Run]]:
    """As even as can be, in order."""
    each, more = divmod(len(runs), count)
    sizes = [each + (number < more) for number in range(count)]
    return [list(runs[sum(sizes[:at]) : sum(sizes[: at + 1])]) for at in range(count)]
