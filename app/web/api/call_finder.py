"""Tool calls in an answer that comes piece by piece: what may be one is held back until the answer ends."""

from __future__ import annotations

from collections.abc import Sequence

from app.web.api.stop_texts import open_end
from core.data.answered_calls import BEGINNING, calls_in_answer, may_begin_call
from core.data.tool_calls import Call, Tool

_THOUGHT_ENDS = "</think>"


class CallFinder:
    """Gives on what is certainly text, and tells the calls at the end."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """tools: those that were offered; without any, all is text."""
        self._tools, self._held = tools, ""
        self._is_begun = False  # whether something was said that is no thought: then only tags begin a call

    def take(self, text: str) -> str:
        """What can be shown now that `text` has come."""
        self._held += text
        if not self._tools:
            return self._give(len(self._held))
        thought = self._held.rfind(_THOUGHT_ENDS)
        shown = self._give(thought + len(_THOUGHT_ENDS)) if thought >= 0 else ""
        self._is_begun = self._is_begun and not shown
        if not self._is_begun and may_begin_call(self._held, self._tools):
            return shown
        more = self._give(self._certain())
        self._is_begun = self._is_begun or bool(more.strip())
        return shown + more

    def rest(self, *, cut_off: bool) -> tuple[str, list[Call]]:
        """What was held back at an answer's end: as text, and as calls; none of one that was cut off."""
        held, self._held = self._held, ""
        return calls_in_answer(held, self._tools) if self._tools and not cut_off else (held, [])

    def _certain(self) -> int:
        """How many characters begin neither a call nor the end of a thought."""
        found = self._held.find(BEGINNING)
        if found >= 0:
            return found
        return len(self._held) - max(open_end(self._held, one) for one in (BEGINNING, _THOUGHT_ENDS))

    def _give(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown
