"""How who answers is asked: with the chat options of the data that an adapter learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.shared.speakers import Part
from core.data.chat_options import AS_THEY_ARE, ChatOptions
from storage.registry import Registry


def trained_chat(parts: Sequence[Part]) -> ChatOptions:
    """Those with which these were trained; of a blend only such as all its parts share."""
    recorded = [part.adapter.chat for part in parts]
    return ChatOptions.parse(recorded[0]) if _are_one(recorded) else AS_THEY_ARE


def shared_chat(registry: Registry, digests: Sequence[str]) -> dict[str, Any]:
    """What is recorded of an adapter that is made of these; empty unless they share it."""
    rows = [registry.adapters.with_digest(one) for one in digests]
    recorded = [row.chat if row else {} for row in rows]
    return recorded[0] if _are_one(recorded) else {}


def _are_one(recorded: Sequence[dict[str, Any]]) -> bool:
    return bool(recorded) and all(one == recorded[0] for one in recorded)
