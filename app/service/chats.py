"""Answers of several speakers side by side: who may answer on which base, and the stream of what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.service.rounds import Round, Rounds
from app.shared.bases import require_writing_base, told_to_answer
from app.shared.engine_client import EngineClient
from app.shared.identity import require_fit
from app.shared.speakers import Part, other_base, speaker_parts, speaker_told
from app.shared.text import require_text
from app.shared.trained_chats import trained_chat
from app.shared.user_settings import PreferenceStore
from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.errors import InvalidConfig
from core.events import TokenDone
from core.generate.config import GenerationConfig
from core.generate.scores import Scored
from storage.registry import Registry
from storage.tables import Base, Chat

MAX_SIDE_BY_SIDE = 8
_FIGURES = ("tokens", "prompt_tokens", "seconds_to_first", "tokens_per_second")
Messages = Sequence[Mapping[str, Any]]


class Chats:
    """Who answers, and what."""

    def __init__(self, registry: Registry, engine: EngineClient, preferences: PreferenceStore) -> None:
        self._registry, self._engine, self._preferences = registry, engine, preferences
        self._under_way: dict[str, Rounds] = {}

    def answer(
        self,
        base: str,
        speakers: Sequence[str | None],
        conversations: Sequence[Messages],
        config: GenerationConfig,
        name: str = "",
        *,
        raw: bool = False,
        each: bool = False,
    ) -> Iterator[TokenDone]:
        """Stream one answer for each speaker (an adapter, a checkpoint, a blend, or None for the plain base,
        see app/shared/speakers.py), all in one batch. Other bases answer after it, one after another.

        conversations[i] is what speaker i sees; raw: the text of its last message is gone on with as it is,
        without a chat template. With a `name`, cancel() can end single rows. each: who cannot be asked, such
        as for a conversation that is too long, is told so, and the others answer.
        Raises WrongBase, NotFound, InvalidConfig, EngineUnavailable.
        """
        _require_few(speakers)
        require_text(*(message["content"] for messages in conversations for message in messages))
        others = [other_base(self._registry, speaker) for speaker in speakers]
        model = self._registry.find(Base, base)
        found: dict[str, Round] = {}
        for number, (speaker, messages) in enumerate(zip(speakers, conversations, strict=True)):
            home = others[number] or model
            require_writing_base(home)
            row = {
                "adapter": None if others[number] else speaker_told(self._registry, speaker, model),
                "messages": [] if raw else [dict(message) for message in messages],
                "text": messages[-1]["content"] if raw else "",
                "config": self.asked_with(speaker, config).to_dict(),
            }
            one = found.setdefault(home.name, Round(told_to_answer(home, self._preferences), [], []))
            one.rows.append(row)
            one.numbers.append(number)
        # Those of the conversation's own base first: it is the one that is likely to be resident.
        ordered = sorted(found, key=lambda one: one != base)
        return self._taken(Rounds(self._engine, [found[one] for one in ordered], name, each=each), name)

    def _taken(self, rounds: Rounds, name: str) -> Iterator[TokenDone]:
        self._under_way[name] = rounds
        try:
            yield from rounds.tokens()
        finally:
            self._under_way.pop(name, None)

    def score(
        self,
        base: str,
        speakers: Sequence[str | None],
        messages: Messages,
        answer: str,
        *,
        ended: bool = True,
        chat: ChatOptions = AS_THEY_ARE,
    ) -> list[Scored]:
        """How likely `answer` is behind these messages to each speaker: of each token its log-probability,
        the likeliest others, and how far the speaker moved the base's distribution. ended: with the token
        that ends an answer, which one that was cut off does not have. chat: as it was asked with. Another
        base alone is scored on itself.

        Raises WrongBase, NotFound, InvalidInput, PromptTooLong, EngineUnavailable.
        """
        _require_few(speakers)
        require_text(answer, *(message["content"] for message in messages))
        if len(speakers) == 1 and (other := other_base(self._registry, speakers[0])):
            base, speakers = other.name, [None]
        model = self._registry.find(Base, base)
        require_writing_base(model)
        told = [speaker_told(self._registry, speaker, model) for speaker in speakers]
        said = [dict(message) for message in messages]
        resident = told_to_answer(model, self._preferences)
        return self._engine.score(resident, told, said, answer, ended=ended, chat=chat.to_dict())

    def asked_with(self, speaker: str | None, config: GenerationConfig) -> GenerationConfig:
        """How this speaker is asked: its own training's chat options beside what is wanted of all.

        Raises NotFound, InvalidConfig.
        """
        return config.on_top_of(trained_chat(self._parts(speaker)))

    def trained_with(self, speakers: Sequence[str]) -> list[str]:
        """A sentence for each of these who is asked otherwise than the plain base, since it was trained so.

        Raises NotFound, InvalidConfig.
        """
        chats = {one: trained_chat(self._parts(one)) for one in speakers}
        return [
            f"{one} is asked as it was trained: {chat.sentence()}."
            for one, chat in chats.items()
            if chat.sentence()
        ]

    def cancel(self, name: str, row: int) -> None:
        """End the answer of one speaker, by number, while the others go on. Raises EngineUnavailable."""
        if rounds := self._under_way.get(name):
            rounds.cancel(row)

    def warnings(self, base: str, speakers: Sequence[str]) -> list[str]:
        """What will go wrong when these answer on `base`, each said once.

        Raises WrongBase, NotFound, InvalidConfig.
        """
        model = self._registry.find(Base, base)
        parts = [part for speaker in speakers for part in self._parts(speaker)]
        lines = [line for part in parts for line in require_fit(self._registry, part.adapter, model)]
        return list(dict.fromkeys(lines))

    def _parts(self, speaker: str | None) -> list[Part]:
        """What a speaker is made of; nothing of a base by itself, this one or another."""
        return [] if other_base(self._registry, speaker) else speaker_parts(self._registry, speaker)

    def begun(self) -> bool:
        """Whether anybody has talked to a model yet."""
        return bool(self._registry.all(Chat, limit=1))


def _require_few(speakers: Sequence[str | None]) -> None:
    if not 1 <= len(speakers) <= MAX_SIDE_BY_SIDE:
        raise InvalidConfig(f"From one to {MAX_SIDE_BY_SIDE} can answer side by side, not {len(speakers)}.")


def answer_told(token: TokenDone) -> dict[str, Any]:
    """What a token tells of its answer beside its text: which weights answer, and how fast. Those of the
    tokens before it that it does not name stay as they are.
    """
    told = {name: getattr(token, name) for name in _FIGURES}
    return told | dict(token.weights or {}) | ({"finish": token.reason} if token.finished else {})
