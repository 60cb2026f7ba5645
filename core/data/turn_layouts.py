"""What a template puts around the contents of plain turns: found once for each order of speakers, so that
most rows need a single rendering.

It holds only where the template writes each answer as it does when nothing follows: otherwise the answers are
looked at one by one, see core/data/contexts.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.data.formats import Message
from core.data.pieces import Piece
from core.data.templating import Conversation
from core.data.turn_forms import Render
from core.errors import InvalidData

_EXCHANGE, _SYSTEM = ("user", "assistant"), ("system", "user", "assistant")


@dataclass(frozen=True)
class Layout:
    """One text before each content and one behind all.

    heads and tails say, for each answer, how many characters at the end of the text before it, and at the
    start of the text behind it, belong to the answer: what comes after the generation prompt, and the end
    token.
    """

    around: tuple[str, ...]
    heads: dict[int, int]
    tails: dict[int, int]


@dataclass(frozen=True)
class NoLayout:
    """A template that does more with turns of these roles than to put text around them."""

    absent: frozenset[int] = frozenset()
    """Turns that it leaves out, whatever they hold."""


class Layouts:
    """Those of one template, by the roles of the turns."""

    def __init__(self, render: Render, ends: Sequence[str], beside: Mapping[str, Any]) -> None:
        """ends: tokens that may end a turn. beside: what the template is given in all of them."""
        self._render, self._ends, self._beside = render, ends, beside
        self._found: dict[tuple[tuple[str, ...], bool], Layout | NoLayout] = {}

    @cached_property
    def end(self) -> str:
        """The tokens, with the white space before them, that the template puts behind an answer of text,
        whether another turn follows or not; empty if it has none.
        """
        marks, full = self._marked(_EXCHANGE, generation=False)
        _, longer = self._marked((*_EXCHANGE, "user"), generation=False)
        if isinstance(full, InvalidData):
            return ""
        after = full.partition(marks[1])[2]
        behind = longer.partition(marks[1])[2] if isinstance(longer, str) else after
        stays = after[: sum(1 for _ in itertools.takewhile(_equal, zip(after, behind, strict=False)))]
        return self._tokens(stays) or after[: self._end_token_length(after)]

    def _tokens(self, text: str) -> str:
        """As many end tokens as a text begins with, one behind another."""
        length = 0
        while more := self._end_token_length(text[length:]):
            length += more
        return text[:length]

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes what a system turn says."""
        marks, full = self._marked(_SYSTEM, generation=False)
        return isinstance(full, str) and marks[0] in full

    def absent(self, roles: tuple[str, ...]) -> frozenset[int]:
        """Turns of these roles that are left out, whatever they hold."""
        found = self._layout(roles, generation=False)
        return found.absent if isinstance(found, NoLayout) else frozenset()

    def pieces(
        self, full: str, messages: Sequence[Message], untrained: frozenset[int], special: re.Pattern[str]
    ) -> list[Piece] | None:
        """The rendered conversation in pieces; None where the template does more than to lay it out."""
        fitting = self._fitting(full, messages, generation=False)
        return None if fitting is None else _laid_out(fitting[0], messages, fitting[1], untrained, special)

    def prompt_pieces(
        self, full: str, messages: Sequence[Message], special: re.Pattern[str]
    ) -> list[Piece] | None:
        """The same for a conversation with the prompt for its next answer."""
        fitting = self._fitting(full, messages, generation=True)
        return None if fitting is None else _laid_out(fitting[0], messages, fitting[1], frozenset(), special)

    def _fitting(
        self, full: str, messages: Sequence[Message], *, generation: bool
    ) -> tuple[Layout, list[str]] | None:
        layout = self._layout(tuple(message["role"] for message in messages), generation)
        if isinstance(layout, NoLayout):
            return None
        for strip in (False, True):
            contents = [message["content"].strip() if strip else message["content"] for message in messages]
            if full == "".join(itertools.chain(*zip(layout.around, [*contents, ""], strict=True))):
                return layout, contents
        return None

    def _layout(self, roles: tuple[str, ...], generation: bool) -> Layout | NoLayout:
        key = (roles, generation)
        if key not in self._found:
            self._found[key] = self._find(roles, generation)
        return self._found[key]

    def _marked(self, roles: Sequence[str], *, generation: bool) -> tuple[list[str], str | InvalidData]:
        marks = [f"\ue000{at}\ue001" for at in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        return marks, self._render([Conversation(messages, generation, (), self._beside)])[0]

    def _find(self, roles: tuple[str, ...], generation: bool) -> Layout | NoLayout:
        marks, full = self._marked(roles, generation=generation)
        if isinstance(full, InvalidData):  # it takes turns of these roles with other contents only
            return NoLayout()
        none = NoLayout(frozenset(at for at, mark in enumerate(marks) if mark not in full))
        around = _around(full, marks)
        answers = [at for at, role in enumerate(roles) if role == "assistant"]
        if around is None:
            return none
        heads, tails = {}, {}
        for at in answers:
            start = full.index(marks[at])
            prompt, until = self._alone(roles, marks, at)
            after = around[at + 1]
            behind = (
                len(self.end) if self.end and after.startswith(self.end) else self._end_token_length(after)
            )
            learnt = full[: start + len(marks[at]) + behind]
            if prompt is None or until is None or not full[:start].startswith(prompt):
                return none
            if not behind or not until.startswith(learnt):
                return none
            heads[at], tails[at] = start - len(prompt), behind
        return Layout(tuple(around), heads, tails)

    def _alone(self, roles: Sequence[str], marks: Sequence[str], at: int) -> tuple[str | None, str | None]:
        """The prompt for an answer, and the conversation up to its end; None for what cannot be rendered."""
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        asked = [
            Conversation(messages[:at], True, (), self._beside),
            Conversation(messages[: at + 1], False, (), self._beside),
        ]
        before, until = (one if isinstance(one, str) else None for one in self._render(asked))
        return before, until

    def _end_token_length(self, after: str) -> int:
        """Characters of `after` up to the end of the special token that it starts with; 0 if it starts with
        none.
        """
        token = next((token for token in self._ends if after.lstrip().startswith(token)), None)
        return 0 if token is None else after.index(token) + len(token)


def _equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def _around(full: str, marks: Sequence[str]) -> list[str] | None:
    """The texts around the marks; None where one is missing, changed or written twice."""
    around, rest = [], full
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            return None
        around.append(before)
    around.append(rest)
    return None if "\ue000" in "".join(around) else around


def _laid_out(
    layout: Layout,
    messages: Sequence[Message],
    contents: Sequence[str],
    untrained: frozenset[int],
    special: re.Pattern[str],
) -> list[Piece]:
    pieces: list[Piece] = []
    between = layout.around[0]
    for at, (message, content) in enumerate(zip(messages, contents, strict=True)):
        after = layout.around[at + 1]
        plain = bool(special.search(content))
        if message["role"] == "assistant":
            head, tail = len(between) - layout.heads[at], layout.tails[at]
            trained = at not in untrained
            pieces.append(Piece(between[:head]))
            if plain:
                pieces += [
                    Piece(between[head:], trained),
                    Piece(content, trained, True),
                    Piece(after[:tail], trained),
                ]
            else:
                pieces.append(Piece(between[head:] + content + after[:tail], trained))
            between = after[tail:]
        elif plain:
            pieces += [Piece(between), Piece(content, False, True)]
            between = after
        else:
            between += content + after
    pieces.append(Piece(between))
    return [piece for piece in pieces if piece.text]
