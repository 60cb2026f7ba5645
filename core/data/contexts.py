"""Each answer of a conversation in the context in which it will be asked for: the prompt that the base's chat
template ends with where the answer begins, and what the template writes of the answer itself.

A template may write an answer otherwise once later turns follow: without its reasoning, or with another end.
So each answer is looked at with the turns before it, and nothing behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.fitting import Note
from core.data.formats import Message
from core.data.standing import left_out
from core.data.templating import Conversation
from core.data.tool_calls import Tool
from core.data.turn_forms import Render, TurnForm, parted, shared_start
from core.errors import InvalidData

_SUFFIXES = (240, 120, 60, 30)  # characters of a prompt's end by which an answer's beginning is found
_OPENED = re.compile(r"<(think|thinking|thought|reasoning)>(?P<gap>\s*)\Z")
_QUESTION: Message = {"role": "user", "content": "And then?"}
_RESULT: Message = {"role": "tool", "content": "Done."}


@dataclass(frozen=True)
class Answered:
    """One answer in its context, as text."""

    at: int
    """Its place among the turns."""
    prompt: str
    completion: str
    """What is learnt: from the end of the prompt to the token that ends the answer."""
    ended: bool
    """Whether the template has such a token."""
    note: Note | None = None

    @property
    def text(self) -> str:
        """The conversation up to the end of the answer."""
        return self.prompt + self.completion

    def stands_in(self, prompt: str) -> bool:
        """Whether a later prompt begins with the answer as it was learnt."""
        return self.ended and prompt.startswith(self.text)


class Contexts:
    """Finds them, for one template and what it is given."""

    def __init__(
        self, render: Render, form: TurnForm, end: str, ends: Sequence[str], specials: Sequence[str]
    ) -> None:
        """end: what the template puts behind an answer of text, see Layouts.end. ends: tokens that may end a
        turn; specials: those of them that end it wherever they stand last.
        """
        self._render, self.form = render, form
        self._ends, self._specials = ends, specials
        self._end = next((one for one in ends if end.endswith(one)), "")
        self._following: dict[tuple[str, bool], str] = {}

    def of(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        beside: Mapping[str, Any],
        *,
        generation: bool = False,
    ) -> tuple[list[Answered | InvalidData], str]:
        """Every answer; one that the template cannot ask for or write is the reason why. With `generation`
        also the prompt for the next answer. Raises InvalidData if that one cannot be rendered.
        """
        turns, given = self.form.turns(messages), (self.form.tools(tools), beside)
        places = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        asked = [Conversation(turns[:at], True, *given) for at in places]
        asked += [Conversation(turns[: at + 1], False, *given) for at in places]
        if generation:
            asked.append(Conversation(turns, True, *given))
        texts = self._render(asked)
        prompt = texts.pop() if generation else ""
        if isinstance(prompt, InvalidData):
            raise prompt
        pairs = zip(places, texts[: len(places)], texts[len(places) :], strict=True)
        found: list[Answered | InvalidData] = []
        for at, before, until in pairs:
            try:
                found.append(self._answered(messages, tools, beside, at, before, until))
            except InvalidData as error:
                found.append(error)
        return found, prompt

    def _answered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        beside: Mapping[str, Any],
        at: int,
        before: str | InvalidData,
        until: str | InvalidData,
    ) -> Answered:
        if isinstance(before, InvalidData) and not any(one["role"] != "system" for one in messages[:at]):
            raise InvalidData(
                "The conversation begins with the assistant's turn, and this base's chat template has no "
                "prompt for that. Put a user's turn in front, or leave the row out."
            )
        if isinstance(before, InvalidData):
            raise before
        if isinstance(until, InvalidData):
            raise until
        note = None
        if until.startswith(before):
            said = until[len(before) :]
        else:
            said, note = self._opened_otherwise(messages[: at + 1], before, until)
        said = self._with_thought(said, before, messages[at])
        text = parted(messages[at])[1].strip()
        own = said.rfind(text) + len(text) if text.endswith(tuple(self._ends)) else 0
        completion, ended = self._cut_at_end(said, own)
        if not ended and (end := self._end_that_follows(bool(messages[at].get("tool_calls")), tools, beside)):
            completion, ended = completion + end, True
        return Answered(at, before, completion, ended, note)

    # Where an answer ends.

    def _first_end(self, text: str) -> str:
        """The token that a text begins with, with the white space before it; empty if it begins with none."""
        start = len(text) - len(text.lstrip())
        token = next((one for one in self._ends if text.startswith(one, start)), "")
        return text[: start + len(token)] if token else ""

    def _cut_at_end(self, said: str, first: int) -> tuple[str, bool]:
        """What is said up to its end token, and whether there is one: some templates write more behind it.
        What stands before the place `first` is the answer's own text.
        """
        stop = len(said.rstrip())
        trailing: list[tuple[int, str]] = []  # where tokens at the end of the text end, the last first
        at = stop
        while token := next((one for one in self._ends if said.endswith(one, first, at)), ""):
            trailing.append((at, token))
            at = len(said[: at - len(token)].rstrip())
        if end := next((end for end, token in reversed(trailing) if token == self._end), 0):
            return said[:end], True
        return said[:stop], bool(trailing) and trailing[0][1] in self._specials

    def _end_that_follows(self, calls: bool, tools: Sequence[Tool], beside: Mapping[str, Any]) -> str:
        """The token with which the next turn begins, which ends the answer where nothing else does."""
        key = (repr(sorted(beside.items())), calls)
        if key not in self._following:
            self._following[key] = self._found_behind(calls, tools, beside)
        return self._following[key]

    def _found_behind(self, calls: bool, tools: Sequence[Tool], beside: Mapping[str, Any]) -> str:
        answer: Message = {"role": "assistant", "content": "Then this."}
        if calls and tools:
            name = tools[0]["function"]["name"]
            answer = {**answer, "tool_calls": [{"name": name, "arguments": {}}]}
        turns = self.form.turns([_QUESTION, answer, _RESULT if calls else _QUESTION])
        given = (self.form.tools(tools) if calls else (), beside)
        until, whole = self._render(
            [Conversation(turns[:2], False, *given), Conversation(turns, False, *given)]
        )
        if isinstance(until, InvalidData) or isinstance(whole, InvalidData):
            return ""
        shared = until.rstrip()
        end = self._first_end(whole[len(shared) :]) if whole.startswith(shared) else ""
        return end if end.strip() in self._specials else ""

    # Where the prompt ends otherwise than the answer begins, or the template leaves the reasoning out.

    def _opened_otherwise(
        self, messages: Sequence[Message], before: str, until: str
    ) -> tuple[str, Note | None]:
        """What follows the prompt, where the template writes a given answer without what its prompt ends
        with: reasoning that it has opened is closed, and the answer stands behind it. Raises InvalidData.
        """
        thought, text = parted(messages[-1])
        opened, closing = self._opened(before)
        stem = before[: len(before) - len(opened)]
        if thought and not opened and self._closed(before):
            raise InvalidData(
                f"The prompt of this base's chat template ends with {before[-40:]!r}, so there is no "
                f"place for the reasoning of turn {len(messages)}. Take it out of the row, or let the "
                "template think (such as with enable_thinking)."
            )
        body = _behind(stem, until, messages, text)
        if not opened:
            return body, None
        body = (
            body.lstrip().removeprefix(opened.strip()) if body.lstrip().startswith(opened.strip()) else body
        )
        tag = next(iter(closing.split()), "\0")
        if tag in body.split(text.strip()[:40] or "\0")[0]:  # the template closes it itself
            return (body if not thought or thought in body else thought + body), None
        if thought:
            return f"{thought.strip()}{closing}{body.lstrip()}", None
        said = f"The prompt opens {opened.strip()}, and turn {len(messages)} has no reasoning: it closes it."
        return f"{closing}{body.lstrip()}", ("thinking_closed", said)

    def _opened(self, before: str) -> tuple[str, str]:
        """The reasoning that a prompt opens at its end, with the white space behind it, and how it is closed;
        two empty texts if it opens none.
        """
        opening, closing = self.form.around_thought
        at = before.rstrip().rfind(opening.strip()) if opening.strip() else -1
        if at >= 0 and at + len(opening.strip()) == len(before.rstrip()):
            return before[at:], closing
        found = _OPENED.search(before)
        if found is None:
            return "", ""
        tag = f"</{found[1]}>"
        return found[0], f"\n{tag}\n\n" if "\n" in found["gap"] else tag

    def _with_thought(self, said: str, before: str, message: Message) -> str:
        """What is said with its reasoning in front, as the template writes it elsewhere, if it left it out
        here.
        """
        thought = parted(message)[0]
        opening, closing = self.form.around_thought
        if not thought or not opening or left_out(said, [{"role": "assistant", "content": thought}]) is None:
            return said
        return said if self._closed(before) else f"{opening}{thought}{closing}{said}"

    def _closed(self, before: str) -> bool:
        """Whether a prompt ends with reasoning that is closed already."""
        closing = self.form.around_thought[1].strip() or "</think>"
        return before.rstrip().endswith(closing)


def _behind(stem: str, until: str, messages: Sequence[Message], text: str) -> str:
    """What the template writes of the last answer in `until`, behind the prompt `stem`, which it may have
    written otherwise. Raises InvalidData where that cannot be told.
    """
    shared = shared_start(stem, until)
    if left_out(shared, [one for one in messages[:-1] if one["role"] != "assistant"]) is None:
        return until[len(shared) :]
    start = until.rfind(text.strip()) if text.strip() else len(until)
    for length in _SUFFIXES:
        if (at := until.rfind(stem[-length:], 0, start + length)) >= 0 and at + length <= start:
            return until[at + length :]
    if text.strip() and start >= 0:
        return until[start:]
    raise InvalidData(
        f"This base's chat template ends its prompt for an answer with {stem[-40:]!r}, and writes turn "
        f"{len(messages)}, the answer that is given, otherwise; so what would be trained on cannot be told. "
        "Use a base whose chat template writes both alike."
    )
