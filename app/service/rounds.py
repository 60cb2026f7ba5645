"""One question to speakers on several bases: those on one base answer together, and after them those on the
next one, since one base is resident at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from app.shared.engine_client import EngineClient
from core.events import TokenDone


@dataclass(frozen=True)
class Round:
    """Rows that are answered in one batch: what the engine is told of their base and of each, and which rows
    of the question they are.
    """

    base: dict[str, Any]
    rows: list[dict[str, Any]]
    numbers: list[int]


class Rounds:
    """The rounds of one question that is under way."""

    def __init__(self, engine: EngineClient, rounds: Sequence[Round], name: str, *, each: bool) -> None:
        """each: as of EngineClient.answer()."""
        self._engine, self._rounds, self._name, self._each = engine, rounds, name, each
        self._left_out: set[int] = set()
        self._under_way: Sequence[int] = ()

    def tokens(self) -> Iterator[TokenDone]:
        """Every row's tokens, by its number in the question. Raises what EngineClient.answer() raises."""
        for one in self._rounds:
            numbers = [row for row in one.numbers if row not in self._left_out]
            rows = [row for row, at in zip(one.rows, one.numbers, strict=True) if at in numbers]
            if not rows:
                continue
            self._under_way = numbers
            answers = self._engine.answer(one.base, rows, self._name, each=self._each)
            with closing(answers) as stream:  # type: ignore[type-var]
                for token in stream:
                    yield replace(token, row=numbers[token.row])

    def cancel(self, row: int) -> None:
        """End this row, or have it not begun."""
        self._left_out.add(row)
        if row in self._under_way:
            self._engine.cancel(self._name, self._under_way.index(row))
