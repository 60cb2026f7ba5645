"""Answers of several speakers side by side: who may answer on which base, and the stream of what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.shared.adapter_labels import has_own_weights, require_writing
from app.shared.bases import require_writing_base, told_of
from app.shared.engine_client import EngineClient
from app.shared.identity import require_fit, require_same_weights
from app.shared.text import require_text
from core.errors import InvalidConfig
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.registry import Registry
from storage.tables import Adapter, Base, Chat

MAX_SIDE_BY_SIDE = 5  # the plain base and four adapters
Messages = Sequence[Mapping[str, str]]


class Chats:
    """Who answers, and what."""

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
