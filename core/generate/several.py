"""Answers to one request that cannot share a batch, decoded in turn: one step of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from core.events import UNANSWERED, TokenDone
from core.generate.decode import Decoder


class SeveralDecoders:
    """Decoders under one numbering of rows. It is used as a Decoder is."""

    def __init__(
        self,
        parts: Sequence[tuple[Decoder, Sequence[int]]],
        refused: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Each decoder with the numbers that its rows have in the request; refused: by number why others are
        not answered.
        """
        self._parts, self._refused = list(parts), refused

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return all(decoder.finished for decoder, _ in self._parts)

    def cancel(self, row: int | None = None) -> None:
        """As Decoder.cancel()."""
        for decoder, numbers in self._parts:
            if row is None:
                decoder.cancel()
            elif row in numbers:
                decoder.cancel(numbers.index(row))

    def steps(self) -> Iterator[list[TokenDone]]:
        """As Decoder.steps()."""
        if self._refused:
            yield [TokenDone(row, "", True, UNANSWERED, error=why) for row, why in self._refused.items()]
        under_way = [(decoder.steps(), numbers) for decoder, numbers in self._parts]
        while under_way:
            for one in list(under_way):
                steps, numbers = one
                events = next(steps, None)
                if events is None:
                    under_way.remove(one)
                else:
                    yield [replace(event, row=numbers[event.row]) for event in events]
