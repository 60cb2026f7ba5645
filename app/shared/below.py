"""The adapter that a run learns on top of: people name it, a run keeps its digest."""

from __future__ import annotations

from core.errors import WrongBase
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base


def adapter_below(registry: Registry, base: Base, options: TrainingOptions) -> Adapter | None:
    """The one that these options name, or give the digest of; None if they name none.

    Raises NotFound, WrongBase if it belongs to another base.
    """
    wanted = options.lora.on_top_of.strip()
    if not wanted:
        return None
    found = registry.adapters.with_digest(wanted) or _called(registry, wanted)
    if found.base_fingerprint != base.fingerprint:
        raise WrongBase(
            f"{found.name} belongs to {found.base_name}; nothing can be learnt on top of it on {base.name}."
        )
    return found


def _called(registry: Registry, name: str) -> Adapter:
    try:
        return registry.find(Adapter, name)
    except NotFound as error:
        raise NotFound(f"on_top_of: {error}") from None


def by_digest(registry: Registry, base: Base, options: TrainingOptions) -> TrainingOptions:
    """The same options with its digest for its name, which may change before the run begins."""
    found = adapter_below(registry, base, options)
    return options if found is None else options.changed({"on_top_of": found.digest})
