"""Conversations that do not depend on a browser: answers are collected by a thread of the app and stored when
done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.shared.bases import require_writing_base, told_of
from app.shared.engine_client import EngineClient
from app.shared.errors import USER_ERRORS
from app.shared.identity import require_fit
from app.shared.speakers import speaker_parts, speaker_told
from app.shared.text import require_text
from core.errors import InvalidConfig, InvalidInput
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.registry import Registry
from storage.tables import Base, Chat, ChatMessage

MAX_SIDE_BY_SIDE = 8
_FIGURES = ("tokens", "prompt_tokens", "seconds_to_first", "tokens_per_second")
Messages = Sequence[Mapping[str, str]]


@dataclass
class Asked:
    """One question being answered by several speakers. Read by the page while a thread fills it in."""

    chat_id: int
    prompt: str
    speakers: list[str | None]
    answers: list[str]
    finishes: list[str]
    told: list[dict[str, Any]]
    """Of each speaker what the engine tells of its answer: `base` (the fingerprint), `base_name`, `parts`
    (name, digest and weight of each adapter), `tokens`, `prompt_tokens`, `seconds_to_first`,
    `tokens_per_second`, and at the end `finish`: end, length, stopped or error. Empty before its first token.
    """
    error: str = ""
    cancelled: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop generating; what has been said is kept."""
        self.cancelled = True


class Chats:
    """Answers, and the conversations of one home folder."""

    def __init__(self, registry: Registry, engine: EngineClient) -> None:
        self._registry, self._engine = registry, engine

    def answer(
        self,
        base: str,
        speakers: Sequence[str | None],
        conversations: Sequence[Messages],
        config: GenerationConfig,
        name: str = "",
    ) -> Iterator[TokenDone]:
        """Stream one answer for each speaker (an adapter, a checkpoint, a blend, or None for the plain base,
        see app/shared/speakers.py), all in one batch.

        conversations[i] is what speaker i sees. With a `name`, cancel() can end single rows.
        Raises WrongBase, NotFound, InvalidConfig, EngineUnavailable.
        """
        if not 1 <= len(speakers) <= MAX_SIDE_BY_SIDE:
            raise InvalidConfig(
                f"From one to {MAX_SIDE_BY_SIDE} can answer side by side, not {len(speakers)}."
            )
        require_text(*(message["content"] for messages in conversations for message in messages))
        model = self._registry.find(Base, base)
        require_writing_base(model)
        rows = [
            {
                "adapter": speaker_told(self._registry, speaker, model),
                "messages": [dict(message) for message in messages],
                "config": config.to_dict(),
            }
            for speaker, messages in zip(speakers, conversations, strict=True)
        ]
        return self._engine.answer(told_of(model), rows, name)

    def cancel(self, name: str, row: int) -> None:
        """End the answer of one speaker, by number, while the others go on. Raises EngineUnavailable."""
        self._engine.cancel(name, row)

    def warnings(self, base: str, speakers: Sequence[str]) -> list[str]:
        """What will go wrong when these answer on `base`, each said once.

        Raises WrongBase, NotFound, InvalidConfig.
        """
        model = self._registry.find(Base, base)
        parts = [part for speaker in speakers for part in speaker_parts(self._registry, speaker)]
        lines = [line for part in parts for line in require_fit(self._registry, part.adapter, model)]
        return list(dict.fromkeys(lines))

    def begun(self) -> bool:
        """Whether anybody has talked to a model yet."""
        return bool(self._registry.all(Chat, limit=1))

    def ask(
        self,
        chat_id: int | None,
        base: str,
        speakers: Sequence[str | None],
        prompt: str,
        config: GenerationConfig,
    ) -> Asked:
        """Put `prompt` to every speaker and return at once.

        Raises InvalidInput for an empty prompt, or what answer() raises.
        """
        if not prompt.strip():
            raise InvalidInput("Write something to ask first.")
        chat = self._registry.get(Chat, chat_id) if chat_id else None
        if chat is None or chat.base_name != base:
            chat = self._registry.save(Chat(base_name=base))
        said = self._registry.chats.messages(chat.id or 0)
        question = {"role": "user", "content": prompt}
        conversations = [[*history(said, speaker), question] for speaker in speakers]
        count = len(speakers)
        told: list[dict[str, Any]] = [{} for _ in speakers]
        asked = Asked(chat.id or 0, prompt, list(speakers), [""] * count, [""] * count, told)
        stream = self.answer(base, speakers, conversations, config)
        threading.Thread(target=self._collect, args=(stream, asked), daemon=True).start()
        return asked

    def _collect(self, stream: Iterator[TokenDone], asked: Asked) -> None:
        """Take the answers as they come, until they end or are cancelled, and store them."""
        try:
            for token in stream:
                asked.answers[token.row] += token.text
                asked.finishes[token.row] = token.reason or asked.finishes[token.row]
                asked.told[token.row] |= answer_told(token)
                if asked.cancelled:
                    break
        except USER_ERRORS as error:
            asked.error = str(error)
        finally:
            stream.close()  # type: ignore[attr-defined]
            _end(asked)
            try:
                _store(self._registry, asked)
            except (*USER_ERRORS, OSError) as error:
                asked.error = asked.error or f"The answer could not be kept: {error}"
            finally:
                asked.done.set()


def answer_told(token: TokenDone) -> dict[str, Any]:
    """What a token tells of its answer beside its text: which weights answer, and how fast. Those of the
    tokens before it that it does not name stay as they are.
    """
    told = {name: getattr(token, name) for name in _FIGURES}
    return told | dict(token.weights or {}) | ({"finish": token.reason} if token.finished else {})


def _end(asked: Asked) -> None:
    """Say of each answer that the engine did not end why it ended."""
    ended = "stopped" if asked.cancelled else "error"
    asked.finishes = [finish or ended for finish in asked.finishes]
    for told, finish in zip(asked.told, asked.finishes, strict=True):
        if told:
            told["finish"] = finish


def _store(registry: Registry, asked: Asked) -> None:
    """Keep the question and every answer that said something."""
    if not any(asked.answers):
        return
    registry.save(ChatMessage(chat_id=asked.chat_id, role="user", content=asked.prompt))
    for speaker, answer, finish in zip(asked.speakers, asked.answers, asked.finishes, strict=True):
        registry.save(
            ChatMessage(
                chat_id=asked.chat_id, speaker=speaker or "", role="assistant", content=answer, finish=finish
            )
        )


def history(said: Sequence[ChatMessage], speaker: str | None) -> list[dict[str, str]]:
    """The conversation as this speaker knows it: the turns it answered. None is the plain base."""
    turns: list[dict[str, str]] = []
    question = ""
    for message in said:
        if message.role == "user":
            question = message.content
        elif message.speaker == (speaker or "") and message.content:
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": message.content},
            ]
    return turns
