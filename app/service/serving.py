"""What other programs are served: every base that writes text, every adapter and checkpoint on its base, and
any blend of these, under one name each. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.service.chats import Messages
from app.shared.adapter_labels import labels_of_row
from app.shared.bases import base_for, closest_base, require_writing_base, told_to_answer
from app.shared.checkpoint_rows import as_adapter
from app.shared.engine_client import EngineClient
from app.shared.identity import effective_template
from app.shared.speakers import Part, checkpoint_name, parts_told, speaker_parts
from app.shared.text import require_text
from app.shared.trained_chats import trained_chat
from app.shared.user_settings import PreferenceStore
from core.base_model.describe import writes_text
from core.data.chat_options import ChatOptions
from core.data.tool_calls import Tool
from core.echoes import Echo
from core.errors import InvalidInput
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Run

_LISTED = 40  # names in a refusal


@dataclass(frozen=True)
class ServedModel:
    """A base, or what answers on it: an adapter, a checkpoint, a blend."""

    id: str
    base: Base
    parts: tuple[Part, ...] = ()
    """Nothing for the plain base."""

    @property
    def adapter(self) -> Adapter | None:
        """The one adapter or checkpoint that answers; None for the base and for a blend."""
        return self.parts[0].adapter if len(self.parts) == 1 and self.parts[0].weight == 1 else None

    @property
    def created(self) -> int:
        """When it came here, in seconds since 1970."""
        return int(max([self.base.created] * (not self.parts) + [one.adapter.created for one in self.parts]))

    @property
    def digest(self) -> str:
        """Of what answers: the adapter's files, or the base's weights."""
        if not self.parts:
            return self.base.fingerprint
        return self.adapter.digest if self.adapter else hashlib.sha256(self.weights.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Of its own files."""
        return sum(one.adapter.size_bytes for one in self.parts) if self.parts else self.base.size_bytes

    @property
    def weights(self) -> str:
        """Which weights answer, in short: the base's fingerprint, and each adapter's digest, in a blend with
        its weight.
        """
        own = "+".join(
            one.adapter.digest[:12] + (f"*{one.weight:g}" if self.adapter is None else "")
            for one in self.parts
        )
        return f"fp_{self.base.fingerprint[:12]}{f'_{own}' if own else ''}"


@dataclass(frozen=True)
class Prompt:
    """One answer that is asked for: to a conversation, or to plain text that is gone on with."""

    config: GenerationConfig
    messages: Messages = ()
    tools: Sequence[Tool] = ()
    """Those that the model is told of, and may call."""
    text: str = ""
    ids: Sequence[int] = ()
    """Token ids that are gone on with, in place of text."""
    echo: bool = False
    """Whether the prompt is given back before the answer."""
    likeliest: int | None = None
    """How many tokens are told with each of the answer, with their log-probabilities; None tells none."""


class Serving:
    """The models of one home folder, as other programs ask for them."""

    def __init__(self, registry: Registry, engine: EngineClient, preferences: PreferenceStore) -> None:
        self._registry, self._engine, self._preferences = registry, engine, preferences

    def models(self) -> list[ServedModel]:
        """All that can answer by itself: bases first, then adapters, then checkpoints, the newest first."""
        bases = [base for base in self._registry.all(Base) if writes_text(base.architecture)]
        names = {base.name for base in bases}
        adapters = self._registry.all(Adapter)
        found = [ServedModel(base.name, base) for base in bases]
        found += filter(None, (self._served(adapter, names) for adapter in adapters))
        taken = {one.id for one in found}
        checkpoints = (self._served(row, set()) for row in self._checkpoints())
        return found + [one for one in checkpoints if one is not None and one.id not in taken]

    def _checkpoints(self) -> Iterator[Adapter]:
        runs = {run.id: run for run in self._registry.all(Run)}
        for row in self._registry.checkpoints.all():
            if run := runs.get(row.run_id):
                yield as_adapter(run, row, checkpoint_name(row.run_id, row.step))

    def _served(self, adapter: Adapter, bases: set[str]) -> ServedModel | None:
        """An adapter that is called as a base is has its base's name before its own. None for one whose base
        is not here, or who does not write text.
        """
        base = closest_base(self._registry, adapter)
        if base is None or not writes_text(base.architecture):
            return None
        if labels_of_row(self._registry, adapter) is not None:
            return None
        name = f"{base.name}/{adapter.name}" if adapter.name in bases else adapter.name
        return ServedModel(name, base, (Part(adapter, 1.0),))

    def find(self, name: str) -> ServedModel:
        """The model of this name, or the blend that it says.

        Raises NotFound, with the list of those there are, InvalidConfig for a blend that is written wrongly,
        WrongBase for one whose base is not here.
        """
        models = self.models()
        for one in models:
            if one.id == name:
                return one
        if "=" in name:
            parts = speaker_parts(self._registry, name)
            return ServedModel(name, base_for(self._registry, parts[0].adapter), tuple(parts))
        known = [one.id for one in models]
        more = f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
        listed = f"There are: {', '.join(known[:_LISTED])}{more}." if known else "There is none yet."
        raise NotFound(f"There is no model called {name[:120]!r}. {listed}")

    def resident(self) -> list[ServedModel]:
        """The base in the engine's memory; none where there is no engine, or it holds none."""
        name = (self._engine.status() or {}).get("resident")
        return [one for one in self.models() if one.id == name and not one.parts]

    def template(self, model: ServedModel) -> str:
        """The chat template that conversations with it are written by."""
        return effective_template(model.base)

    def answer(self, model: ServedModel, prompts: Sequence[Prompt], name: str) -> Iterator[TokenDone]:
        """Stream one answer for each prompt, in one request to the engine; `name` lets cancel() end rows.

        Raises what Chats.answer() raises, and PromptTooLong.
        """
        return self._engine.answer(*self._told(model, prompts), name)

    def echoes(self, model: ServedModel, prompts: Sequence[Prompt]) -> list[Echo]:
        """The prompts given back, with how likely each of their tokens is where that is asked for.

        Raises as answer() does.
        """
        if not any(one.ids or one.likeliest is not None for one in prompts):
            return [Echo(one.text) for one in prompts]
        each = {(one.text, tuple(one.ids)): one for one in prompts}  # once, however many answers it has
        found = dict(zip(each, self._engine.echo(*self._told(model, list(each.values()))), strict=True))
        return [found[one.text, tuple(one.ids)] for one in prompts]

    def _told(
        self, model: ServedModel, prompts: Sequence[Prompt]
    ) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """What the engine is told: the base, and a row for each prompt."""
        require_text(*(text for prompt in prompts for text in _texts(prompt)))
        require_writing_base(model.base)
        adapter = parts_told(self._registry, model.id, model.parts, model.base)
        chat = trained_chat(model.parts)
        rows = [_row(prompt, adapter, chat) for prompt in prompts]
        return told_to_answer(model.base, self._preferences), rows

    def cancel(self, name: str, row: int) -> None:
        """End one row of the answer called `name`. Raises EngineUnavailable."""
        self._engine.cancel(name, row)


def _texts(prompt: Prompt) -> list[str]:
    said = [message["content"] for message in prompt.messages]
    calls = [message.get("tool_calls", ()) for message in prompt.messages]
    return [prompt.text, *said, json.dumps([calls, list(prompt.tools)], ensure_ascii=False)]


def _row(prompt: Prompt, adapter: Mapping[str, Any] | None, chat: ChatOptions) -> dict[str, Any]:
    """As the engine is asked for it; chat: with which the model was trained. Raises InvalidInput for one that
    asks nothing.
    """
    if not (prompt.text or prompt.messages or prompt.ids):
        raise InvalidInput("The prompt is empty: there is nothing to answer or to go on with.")
    return {
        "adapter": adapter,
        "messages": [dict(message) for message in prompt.messages],
        "tools": list(prompt.tools),
        "text": prompt.text,
        "ids": list(prompt.ids),
        "config": prompt.config.on_top_of(chat).to_dict(),
        "likeliest": prompt.likeliest,
    }
