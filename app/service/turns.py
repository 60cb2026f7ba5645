"""A conversation with several speakers as turns: a question, and what each has answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from storage.tables import ChatMessage

END = "end"
_TITLE_LETTERS = 60


@dataclass
class Turn:
    """A question with its answers, by speaker."""

    question: ChatMessage
    answers: dict[str, ChatMessage] = field(default_factory=dict)

    def gone_on_from(self, speaker: str) -> ChatMessage | None:
        """The answer from which this speaker goes on: the one that all have adopted, or its own. None if
        there is none, or it said nothing.
        """
        adopted = self.question.adopted
        found = self.answers.get(speaker if adopted is None else adopted)
        return found if found is not None and found.content else None


def turns_of(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Messages in their order as turns."""
    turns: list[Turn] = []
    for message in messages:
        if message.role == "user":
            turns.append(Turn(message))
        elif turns:
            turns[-1].answers[message.speaker] = message
    return turns


def messages_for(system: str, turns: Sequence[Turn], speaker: str, prompt: str) -> list[dict[str, str]]:
    """What this speaker sees: the turns that it can go on from, and the question."""
    said = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        answer = turn.gone_on_from(speaker)
        if answer is not None:
            said += [
                {"role": "user", "content": turn.question.content},
                {"role": "assistant", "content": answer.content},
            ]
    return [*said, {"role": "user", "content": prompt}]


def title_of(question: str) -> str:
    """What a conversation is called by what it began with."""
    line = " ".join(question.split())
    return line if len(line) <= _TITLE_LETTERS else f"{line[: _TITLE_LETTERS - 1]}…"
