"""Conversations that do not depend on a browser: answers are collected by a thread of the app and stored when
done.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS
from core.errors import InvalidInput
from core.generate.config import GenerationConfig
from storage.registry import Registry
from storage.tables import Chat, ChatMessage


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


def ask(
    workbench: Workbench,
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
    chat = workbench.registry.get(Chat, chat_id) if chat_id else None
    if chat is None or chat.base_name != base:
        chat = workbench.registry.save(Chat(base_name=base))
    said = workbench.registry.chats.messages(chat.id or 0)
    conversations = [[*history(said, speaker), {"role": "user", "content": prompt}] for speaker in speakers]
    asked = Asked(chat.id or 0, prompt, list(speakers), [""] * len(speakers), [""] * len(speakers))
    stream = workbench.answer(base, speakers, conversations, config)

    def collect() -> None:
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
            _store(workbench.registry, asked)
            asked.done.set()

    threading.Thread(target=collect, daemon=True).start()
    return asked


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
