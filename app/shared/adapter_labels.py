"""Which adapters tell labels, by what their stored files say."""

from __future__ import annotations

import functools
from pathlib import Path

from core.data.labels import LabelSet
from core.errors import InvalidConfig, InvalidInput
from core.lora.peft.own_head import stored_labels_of
from storage.registry import Registry
from storage.tables import Adapter


def labels_of_row(registry: Registry, adapter: Adapter) -> LabelSet | None:
    """What a registered adapter's scores stand for; None for one that writes answers, or whose files are
    gone.
    """
    return _stored(registry.blobs.path(adapter.digest))


@functools.lru_cache(maxsize=1024)
def _stored(folder: Path) -> LabelSet | None:
    """Of a stored folder, which never changes: its name is its content's digest."""
    try:
        return stored_labels_of(folder)
    except (InvalidInput, OSError):  # its files are damaged or gone, which is told where they are used
        return None


def require_writing(registry: Registry, adapter: Adapter, doing: str) -> None:
    """Raise InvalidConfig for an adapter that tells labels, where it can not be had for `doing`."""
    if labels_of_row(registry, adapter) is not None:
        raise InvalidConfig(
            f"{adapter.name} tells labels by a head of its own, which has no place in {doing}. It can be "
            "tried under Playground, Classify, and exported merged or as a PEFT adapter."
        )
