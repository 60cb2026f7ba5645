"""The registry as the place where decided ways are kept: a base is compared with transformers once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.registry import Registry
from storage.tables import DecidedWay


class StoredWays:
    """Decisions of all processes of a home folder."""

    def __init__(self, registry: Registry) -> None:
        self._bases = registry.bases

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The way that was kept under a key."""
        row = self._bases.decided_way(key)
        return row.way if row else None

    def keep(self, key: str, deciding: Mapping[str, str], way: Mapping[str, Any]) -> None:
        """Keep one."""
        self._bases.keep_decided_way(DecidedWay(key=key, deciding=dict(deciding), way=dict(way)))

    def all(self) -> Mapping[str, Mapping[str, Any]]:
        """All that are kept, for a process that has no registry."""
        return {row.key: row.way for row in self._bases.decided_ways()}
