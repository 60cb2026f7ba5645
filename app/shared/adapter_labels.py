"""Which adapters tell labels, and which have whole weights of their own, by what their stored files say."""

from __future__ import annotations

import functools
from pathlib import Path

from core.data.labels import LabelSet
from core.errors import InvalidConfig, InvalidInput
from core.lora.peft.config import kind_of, raw_config
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.own_head import stored_labels_of
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter

_MANY = 1 << 16  # all adapters of a home: a list of them asks for each


def labels_of_row(registry: Registry, adapter: Adapter) -> LabelSet | None:
    """What a registered adapter's scores stand for; None for one that writes answers, or whose files are
    gone.
    """
    folder = _folder(registry, adapter)
    return None if folder is None else _stored(folder)


def has_own_weights(registry: Registry, adapter: Adapter) -> bool:
    """Whether a registered adapter replaces whole weights of its base, as full fine-tuning does."""
    folder = _folder(registry, adapter)
    return folder is not None and _replaces(folder)


def _folder(registry: Registry, adapter: Adapter) -> Path | None:
    """Where its files are; None where they are gone, which is told where they are used."""
    try:
        return registry.blobs.path(adapter.digest)
    except NotFound:
        return None


@functools.lru_cache(maxsize=_MANY)
def _replaces(folder: Path) -> bool:
    """Of a stored folder, which never changes: its name is its content's digest."""
    try:
        return kind_of(raw_config(folder / CONFIG_NAME)).whole
    except (InvalidInput, OSError):  # its files are damaged or gone, which is told where they are used
        return False


@functools.lru_cache(maxsize=_MANY)
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


def require_factors(registry: Registry, adapter: Adapter, doing: str) -> None:
    """Raise InvalidConfig for whole weights, which have none, where factors are needed for `doing`."""
    if has_own_weights(registry, adapter):
        raise InvalidConfig(
            f"{adapter.name} is full fine-tuning: whole weights without factors, which {doing} needs. It can "
            "be chatted with and exported merged."
        )
