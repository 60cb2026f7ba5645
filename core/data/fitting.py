"""Turns fitted to a template as the user chose: a system turn put into the question behind it, neighbours of
one speaker joined. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.data.formats import Message

_GAP = "\n\n"
Note = tuple[str, str]
"""(code, sentence) of what was done."""


@dataclass(frozen=True)
class Fitted:
    """Turns as they are rendered, and what was done to them."""

    messages: tuple[Message, ...]
    untrained: frozenset[int]
    notes: tuple[Note, ...] = ()

    def joined(self) -> Fitted:
        """With neighbouring turns of one speaker in one, but for those of which some are trained and some
        not.
        """
        kept: list[Message] = []
        silent: list[bool] = []
        places: list[int] = []
        for at, message in enumerate(self.messages):
            quiet = at in self.untrained
            if kept and _belong(kept[-1], message) and silent[-1] == quiet:
                kept[-1] = _together(kept[-1], message)
                places.append(at)
            else:
                kept.append(message)
                silent.append(quiet)
        if not places:
            return self
        said = (
            f"Turn{'s' if len(places) > 1 else ''} {', '.join(str(at + 1) for at in places[:12])} joined to "
            f"the "
        )
        return self._changed(kept, silent, ("joined", f"{said}turn before, which is of the same speaker."))

    def folded(self) -> Fitted:
        """With each system turn in front of the next question's text; one without a question stays."""
        kept: list[Message] = []
        silent: list[bool] = []
        waiting: list[str] = []
        for at, message in enumerate(self.messages):
            if message["role"] == "system" and any(one["role"] == "user" for one in self.messages[at:]):
                waiting.append(message["content"])
                continue
            if message["role"] == "user" and waiting:
                message = {**message, "content": _GAP.join(filter(None, (*waiting, message["content"])))}
                waiting = []
            kept.append(message)
            silent.append(at in self.untrained)
        if len(kept) == len(self.messages):
            return self
        said = "The system turn stands in front of the question, since the template has none."
        return self._changed(kept, silent, ("folded", said))

    def _changed(self, messages: Sequence[Message], silent: Sequence[bool], note: Note) -> Fitted:
        untrained = frozenset(at for at, quiet in enumerate(silent) if quiet)
        return Fitted(tuple(messages), untrained, (*self.notes, note))


def _belong(before: Message, after: Message) -> bool:
    return before["role"] == after["role"] != "tool"


def _together(before: Message, after: Message) -> Message:
    texts = {
        key: _GAP.join(filter(None, (before.get(key), after.get(key))))
        for key in ("content", "reasoning")
        if before.get(key) or after.get(key) or key == "content"
    }
    calls = [*before.get("tool_calls", ()), *after.get("tool_calls", ())]
    return {**before, **after, **texts} | ({"tool_calls": calls} if calls else {})
