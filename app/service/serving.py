"""What other programs are served: every base that writes text, and every adapter on its base, under one name
each. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.service.chats import Chats, Messages
from app.shared.adapter_labels import labels_of_row
from app.shared.bases import closest_base, require_writing_base, told_of
from app.shared.engine_client import EngineClient
from app.shared.text import require_text
from core.base_model.describe import writes_text
from core.errors import InvalidInput
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base

_LISTED = 40  # names in a refusal


@dataclass(frozen=True)
class ServedModel:
    """A base, or an adapter on its base."""

    id: str
    base: Base
    adapter: Adapter | None = None

    @property
    def created(self) -> int:
        """When it came here, in seconds since 1970."""
        return int((self.adapter or self.base).created)

    @property
    def digest(self) -> str:
        """Of what answers: the adapter's files, or the base's weights."""
        return self.adapter.digest if self.adapter else self.base.fingerprint

    @property
    def size_bytes(self) -> int:
        """Of its own files."""
        return (self.adapter or self.base).size_bytes

    @property
    def weights(self) -> str:
        """Which weights answer, in short: the base's fingerprint, and the adapter's digest."""
        own = f"_{self.adapter.digest[:12]}" if self.adapter else ""
        return f"fp_{self.base.fingerprint[:12]}{own}"


@dataclass(frozen=True)
class Prompt:
    """One answer that is asked for: to a conversation, or to plain text that is gone on with."""

    config: GenerationConfig
    messages: Messages = ()
    text: str = ""


class Serving:
    """The models of one home folder, as other programs ask for them."""

    def __init__(self, registry: Registry, engine: EngineClient, chats: Chats) -> None:
        self._registry, self._engine, self._chats = registry, engine, chats

    def models(self) -> list[ServedModel]:
        """All that can answer: bases first, then adapters, the newest first."""
        bases = [base for base in self._registry.all(Base) if writes_text(base.architecture)]
        names, fingerprints = {base.name for base in bases}, {base.fingerprint for base in bases}
        adapters = (
            self._served(adapter, names)
            for adapter in self._registry.all(Adapter)
            if adapter.base_fingerprint in fingerprints and labels_of_row(self._registry, adapter) is None
        )
        return [*(ServedModel(base.name, base) for base in bases), *filter(None, adapters)]

    def _served(self, adapter: Adapter, bases: set[str]) -> ServedModel | None:
        """An adapter that is called as a base is has its base's name before its own."""
        base = closest_base(self._registry, adapter)
        if base is None:
            return None
        name = f"{base.name}/{adapter.name}" if adapter.name in bases else adapter.name
        return ServedModel(name, base, adapter)

    def find(self, name: str) -> ServedModel:
        """The model of this name. Raises NotFound, with the list of those there are."""
        models = self.models()
        for one in models:
            if one.id == name:
                return one
        known = [one.id for one in models]
        more = f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
        listed = f"There are: {', '.join(known[:_LISTED])}{more}." if known else "There is none yet."
        raise NotFound(f"There is no model called {name[:120]!r}. {listed}")

    def answer(self, model: ServedModel, prompts: Sequence[Prompt], name: str) -> Iterator[TokenDone]:
        """Stream one answer for each prompt, in one request to the engine; `name` lets cancel() end rows.

        Raises what Chats.answer() raises, and PromptTooLong.
        """
        require_text(*(text for prompt in prompts for text in _texts(prompt)))
        require_writing_base(model.base)
        adapter = self._chats.told_of(model.adapter.name, model.base) if model.adapter else None
        rows = [_row(prompt, adapter) for prompt in prompts]
        return self._engine.answer(told_of(model.base), rows, name)

    def cancel(self, name: str, row: int) -> None:
        """End one row of the answer called `name`. Raises EngineUnavailable."""
        self._engine.cancel(name, row)


def _texts(prompt: Prompt) -> list[str]:
    return [prompt.text, *(message["content"] for message in prompt.messages)]


def _row(prompt: Prompt, adapter: Mapping[str, Any] | None) -> dict[str, Any]:
    """As the engine is asked for it. Raises InvalidInput for one that asks nothing."""
    if not prompt.text and not prompt.messages:
        raise InvalidInput("The prompt is empty: there is nothing to answer or to go on with.")
    return {
        "adapter": adapter,
        "messages": [dict(message) for message in prompt.messages],
        "text": prompt.text,
        "config": prompt.config.to_dict(),
    }
