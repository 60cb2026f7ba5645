"""Ways that were decided before. To compare a large base with transformers takes half a minute, and each
process would do it again; so whoever has a place that outlives the process gives it here. Needs no torch.

A decision holds while all that decides it is the same: the configuration, transformers and torch, the code of
ours that compares and computes, and the kind of device. The comparison reads no weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from core.base_model.way import Way

_CORE = Path(__file__).parents[1]
_THAT_COMPUTES = ("base_model", "lora", "generate")

Deciding = Mapping[str, str]
"""What decides a way, each by its name."""


class DecidedWays(Protocol):
    """A place for decisions, such as a table of a registry."""

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The way that was kept under a key, as its fields."""
        ...

    def keep(self, key: str, deciding: Deciding, way: Mapping[str, Any]) -> None:
        """Keep one; the same again changes nothing."""
        ...

    def all(self) -> Mapping[str, Mapping[str, Any]]:
        """All that are kept, by key."""
        ...


@dataclass
class InMemory:
    """Decisions of this process alone, beside those that it was given."""

    ways: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """As DecidedWays."""
        return self.ways.get(key)

    def keep(self, key: str, deciding: Deciding, way: Mapping[str, Any]) -> None:
        """As DecidedWays."""
        self.ways[key] = way

    def all(self) -> Mapping[str, Mapping[str, Any]]:
        """As DecidedWays."""
        return self.ways


_place: DecidedWays = InMemory()


def keep_decisions_in(place: DecidedWays) -> None:
    """From now on decisions of this process are looked for and kept there."""
    global _place
    _place = place


def decisions() -> DecidedWays:
    """Where they are kept."""
    return _place


def deciding(config: Mapping[str, Any], device: str) -> Deciding:
    """All that decides the way of a base, of its configuration and the kind of device here."""
    said = json.dumps(config, sort_keys=True, default=str)
    return {
        "configuration": hashlib.sha256(said.encode()).hexdigest(),
        "transformers": version("transformers"),
        "torch": version("torch"),
        "comparison": _own_code(),
        "device": device,
    }


def decided(by: Deciding) -> Way | None:
    """What was decided by the very same; None if nothing was, or another version of ours wrote it."""
    kept = _place.get(_key(by))
    return Way(**kept) if kept is not None and kept.keys() == Way.__dataclass_fields__.keys() else None


def decide(by: Deciding, way: Way) -> None:
    """Keep what was decided."""
    _place.keep(_key(by), by, asdict(way))


def _key(by: Deciding) -> str:
    return hashlib.sha256(json.dumps(by, sort_keys=True).encode()).hexdigest()


@functools.cache
def _own_code() -> str:
    """SHA-256 over the code that compares, and that which computes."""
    found = hashlib.sha256()
    for folder in _THAT_COMPUTES:
        for path in sorted((_CORE / folder).rglob("*.py")):
            found.update(path.relative_to(_CORE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
