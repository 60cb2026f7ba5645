"""Conversations that do not depend on a browser: answers are collected by a thread of the app and stored when
done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.shared.adapter_labels import has_own_weights, require_writing
from app.shared.bases import require_writing_base, told_of
from app.shared.engine_client import EngineClient
from app.shared.errors import USER_ERRORS
from app.shared.identity import require_fit, require_same_weights
from app.shared.text import require_text
from core.errors import InvalidConfig, InvalidInput
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.registry import Registry
from storage.tables import Adapter, Base, Chat, ChatMessage

MAX_SIDE_BY_SIDE = 5  # the plain base and four adapters
Messages = Sequence[Mapping[str, str]]


@dataclass
class Asked:
    """One question being answered by several speakers. Read by the page while a thread fills it in."""

    chat_id: int
    prompt: str
    speakers: list[str | None]
    answers: list[str]
    finishes: list[str]
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
        """Stream one answer for each speaker (an adapter's name, or None for the plain base), all in one
        batch.

        conversations[i] is what speaker i sees. With a `name`, cancel() can end single rows.
        Raises WrongBase, NotFound, EngineUnavailable.
        """
        if not 1 <= len(speakers) <= MAX_SIDE_BY_SIDE:
            raise InvalidConfig(f"At most {MAX_SIDE_BY_SIDE - 1} adapters can answer beside the plain base.")
        require_text(*(message["content"] for messages in conversations for message in messages))
        model = self._registry.find(Base, base)
        require_writing_base(model)
        rows = [
            {
                "adapter": self.told_of(speaker, model) if speaker else None,
                "messages": [dict(message) for message in messages],
                "config": config.to_dict(),
            }
            for speaker, messages in zip(speakers, conversations, strict=True)
        ]
        return self._engine.answer(told_of(model), rows, name)

    def told_of(self, speaker: str, model: Base) -> dict[str, Any]:
        """What the engine is told of an adapter: core.engine.AdapterSource but for its files.

        Raises NotFound, WrongBase, InvalidConfig for one that tells labels.
        """
        row = self._registry.find(Adapter, speaker)
        require_same_weights(self._registry, row, model)
        require_writing(self._registry, row, "a chat")
        told = {name: getattr(row, name) for name in ("name", "digest", "base_fingerprint", "base_name")}
        return told | {"whole": has_own_weights(self._registry, row)}

    def cancel(self, name: str, row: int) -> None:
        """End the answer of one speaker, by number, while the others go on. Raises EngineUnavailable."""
        self._engine.cancel(name, row)

    def warnings(self, base: str, adapters: Sequence[str]) -> list[str]:
        """What will go wrong when these adapters answer on `base`. Raises WrongBase, NotFound."""
        model = self._registry.find(Base, base)
        return [
            line
            for name in adapters
            for line in require_fit(self._registry, self._registry.find(Adapter, name), model)
        ]

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
        asked = Asked(chat.id or 0, prompt, list(speakers), [""] * len(speakers), [""] * len(speakers))
        stream = self.answer(base, speakers, conversations, config)
        threading.Thread(target=self._collect, args=(stream, asked), daemon=True).start()
        return asked

    def _collect(self, stream: Iterator[TokenDone], asked: Asked) -> None:
        """Take the answers as they come, until they end or are cancelled, and store them."""
        try:
            for token in stream:
                asked.answers[token.row] += token.text
                asked.finishes[token.row] = token.reason or asked.finishes[token.row]
                if asked.cancelled:
                    break
        except USER_ERRORS as error:
            asked.error = str(error)
        finally:
            stream.close()  # type: ignore[attr-defined]
            try:
                _store(self._registry, asked)
            except (*USER_ERRORS, OSError) as error:
                asked.error = asked.error or f"The answer could not be kept: {error}"
            finally:
                asked.done.set()


def _store(registry: Registry, asked: Asked) -> None:
    """Keep the question and every answer that said something."""
    if not any(asked.answers):
        return
    registry.save(ChatMessage(chat_id=asked.chat_id, role="user", content=asked.prompt))
    for speaker, answer, finish in zip(asked.speakers, asked.answers, asked.finishes, strict=True):
        finish = finish or ("stopped" if asked.cancelled else "error")
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
