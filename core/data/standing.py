"""Whether all that a row says stands in the text that a chat template makes of it.

White space does not count, since many templates trim it; nor does the place of a system turn, which many move
into the first question.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Sequence

from core.data.formats import Message
from core.data.tool_calls import Tool
from core.data.turn_forms import parted, stands_calls, stands_tools
from core.errors import InvalidData

_SHORT = 16  # characters: a shorter text may stand in the template's own words by chance
_SHOWN = 60


class Judge:
    """Holds a conversation against what the template writes of it."""

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        absent: Collection[int],
        special: re.Pattern[str],
    ) -> None:
        """absent: turns that the template leaves out whatever they hold, as was seen with others in their
        place. special: the base's special tokens.
        """
        self._messages, self._tools, self._absent, self._special = messages, tools, absent, special

    def require(self, prompt: str, completion: str, at: int) -> None:
        """Raise InvalidData, with what can be done, unless all of the turns before answer `at` stands in its
        prompt, and all of the answer in what is learnt.
        """
        self._require_before(prompt, at, "Take it out of the row, leave the row out")
        message = self._messages[at]
        thought, text = parted(message)
        for said, what in ((thought, "reasoning"), (text, "")):
            if said and left_out(completion, [{"role": "assistant", "content": said}]) is not None:
                remedy = "Take it out of the row, leave the row out"
                remedy += ", let the template think (such as with enable_thinking)" if what else ""
                raise InvalidData(self._missing(completion, at, said, remedy, what))
        if missing := stands_calls(completion, message.get("tool_calls", ())):
            raise InvalidData(
                f"This base's chat template leaves out {missing[:_SHOWN]!r} of the tool call in turn "
                f"{at + 1}, so it "
                f"would not be learnt. {_no_tools(self._messages)}, or leave the row out."
            )

    def require_prompt(self, prompt: str) -> None:
        """The same for a prompt alone. The words of earlier answers may be shortened in it: the base is used
        to that. What they called may not.
        """
        self._require_before(prompt, len(self._messages), "Write it otherwise")
        for at, message in enumerate(self._messages):
            calls = message.get("tool_calls", ())
            names = [call["name"] for call in calls]
            if missing := stands_calls(prompt, calls) or self._only_said(prompt, names, len(self._messages)):
                raise InvalidData(
                    f"This base's chat template leaves out {missing[:_SHOWN]!r} of the tool call in turn "
                    f"{at + 1}, so the model would not know of it. {_no_tools(self._messages)}."
                )

    def _only_said(self, prompt: str, names: Iterable[str], stop: int) -> str | None:
        """The first of these names that stands in what is asked and told in the first `stop` turns alone, and
        nowhere else in the prompt.
        """
        said = [one["content"] for one in self._messages[:stop] if one["role"] != "assistant"]
        return next(
            (name for name in names if prompt.count(name) <= sum(one.count(name) for one in said)), None
        )

    def _require_before(self, prompt: str, stop: int, remedy: str) -> None:
        judged = [
            {"role": one["role"], "content": "" if one["role"] == "assistant" else one["content"]}
            for one in self._messages[:stop]
        ]
        at = left_out(prompt, judged, self._absent)
        if at is not None:
            raise InvalidData(self._missing(prompt, at, self._messages[at]["content"], remedy))
        names = [tool["function"]["name"] for tool in self._tools]
        if missing := stands_tools(prompt, self._tools) or self._only_said(prompt, names, stop):
            raise InvalidData(
                f"This base's chat template leaves out {missing[:_SHOWN]!r} of the tools, so the model would "
                "not know of them. Leave them out, or use a base whose template takes tools."
            )

    def _missing(self, text: str, at: int, said: str, remedy: str, what: str = "") -> str:
        role, shown = self._messages[at]["role"], excerpt(text, said)
        if role == "system":
            return (
                f"This base's chat template leaves out the system turn ({shown}). Put its text in front of "
                "the user's first words, choose that for the data set, or use a base whose template takes a "
                "system turn."
            )
        part = f"the {what} of turn {at + 1}" if what else f"a part of turn {at + 1}"
        return (
            f"This base's chat template leaves out {part}, the {role}'s ({shown}), so the model would not "
            f"see it. {remedy}, or use a base whose template keeps it."
        )

    def plain_ranges(self, text: str, stop: int) -> list[tuple[int, int]]:
        """Where in the text the first `stop` turns hold special tokens that are somebody's words. Raises
        InvalidData for one that cannot be told from the template's own.
        """
        found: list[tuple[int, int]] = []
        cursor = 0
        for message in self._messages[:stop]:
            written = [*parted(message)] if message["role"] == "assistant" else [message["content"]]
            for said in (one for one in written if self._special.search(one)):
                start = next((at for one in (said, said.strip()) if (at := text.find(one, cursor)) >= 0), -1)
                if start < 0 and message["role"] == "assistant" and not _stands(text, self._special, said):
                    continue  # reasoning that the template takes out of an earlier answer
                if start < 0:
                    raise InvalidData(
                        "This base's chat template changes the text, so special tokens in it cannot be kept "
                        "apart."
                    )
                stop_at = start + len(said if text.startswith(said, start) else said.strip())
                found.append((start, stop_at))
                cursor = stop_at
        self._require_plain_tools(stop)
        return found

    def _require_plain_tools(self, stop: int) -> None:
        calls = [one for message in self._messages[:stop] for one in message.get("tool_calls", ())]
        if found := self._special.search(json.dumps([self._tools, calls], ensure_ascii=False)):
            raise InvalidData(
                f"The tools or their calls hold {found.group()!r}, a special token of this base, which "
                "cannot be kept apart from its own there. Take it out of the row, or leave the row out."
            )


def _stands(text: str, special: re.Pattern[str], said: str) -> bool:
    """Whether a part of what is said that holds a special token stands in the text."""
    return any(
        match.group() and said[max(0, match.start() - 8) : match.end() + 8] in text
        for match in special.finditer(said)
    )


def _no_tools(messages: Sequence[Message]) -> str:
    """What can be done where calls are lost."""
    both = any(one.get("tool_calls") and one["content"].strip() for one in messages)
    return (
        "Take the text out of answers that call tools"
        if both
        else "Use a base whose template takes tool calls"
    )


def left_out(full: str, messages: Sequence[Message], absent: Collection[int] = ()) -> int | None:
    """The first turn whose content does not stand in the text `full`; None if all do.

    Turns stand one behind another, in their order. absent: turns that the template leaves out whatever they
    hold, as was seen with others in their place.
    """
    text, cursor = _squeezed(full), 0
    for at, message in enumerate(messages):
        content = message["content"]
        if not content.strip():
            continue
        moves = message["role"] == "system"
        found = _find(text, content, 0 if moves else cursor)
        if found < 0 or (at in absent and len(content.strip()) <= _SHORT):
            return at
        cursor = cursor if moves else found
    return None


def excerpt(full: str, content: str) -> str:
    """The first line of `content` that does not stand in `full`, shortened, in quotation marks."""
    text = _squeezed(full)
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    missing = next((line for line in lines if _find(text, line, 0) < 0), content.strip())
    return repr(missing if len(missing) <= _SHOWN else missing[: _SHOWN - 1] + "…")


def _find(text: str, content: str, start: int) -> int:
    """Where the content ends in the text, as it is or as templates escape it; -1 if it is not there."""
    for written in (content, json.dumps(content, ensure_ascii=False)[1:-1], html.escape(content)):
        sought = _squeezed(written)
        if (at := text.find(sought, start)) >= 0:
            return at + len(sought)
    return -1


def _squeezed(text: str) -> str:
    return "".join(text.split())
