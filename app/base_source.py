"""From a base model's row to what the engine makes resident."""

from __future__ import annotations

from app.identity import manifest_of, up_to_date
from app.sources import folder_of
from core.engine import BaseSource
from storage.registry import Registry
from storage.tables import Base


def source_of(registry: Registry, base: Base) -> BaseSource:
    """Where a base lies and what it must be."""
    base = up_to_date(registry, base)
    known = manifest_of(registry, base.fingerprint)
    return BaseSource(base.name, folder_of(base), base.fingerprint, base.stat_key, base.template, known)
