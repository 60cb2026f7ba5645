"""Where an answer is to stop: at a text that somebody named, which is itself never shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Takes an answer piece by piece and gives it on, up to the first of the stop texts.

    What could be the beginning of one is held back until it is known, so that none is shown in part where it
    lies across the borders of tokens.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = [one for one in stops if one], ""
        self.found = False

    def take(self, text: str) -> str:
        """What can be shown now that `text` has come."""
        if self.found:
            return ""
        self._held += text
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        return self._give(len(self._held) - self._open())

    def rest(self) -> str:
        """What was held back, at an answer's end."""
        return self._give(len(self._held))

    def _open(self) -> int:
        """How many characters at the end could begin a stop text."""
        return max((open_end(self._held, stop) for stop in self._stops), default=0)

    def _give(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown


def open_end(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
