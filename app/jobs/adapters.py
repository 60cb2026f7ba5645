"""What jobs about adapters share: reading a registered one, and registering what was made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.jobs.kinds import JobContext
from app.shared.bases import shapes_of, wholes_in
from app.shared.identity import effective_template_hash
from app.shared.trained_chats import shared_chat
from core.combine.combining import Combination
from core.lora.adapter import AdapterWeights
from core.lora.peft.files import load_adapter, save_checked
from storage.blobs import content_size
from storage.registry import Registry
from storage.tables import Adapter, Base


def load_row(registry: Registry, row: Adapter, base: Base) -> AdapterWeights:
    """The factors of a registered adapter, after its files' digest was compared. Raises BlobDamaged,
    InvalidAdapter.

    What came from elsewhere may not record its base; from its import on it is the one that it is registered
    for.
    """
    weights = load_adapter(registry.blobs.verify(row.digest), shapes_of(base), base.head, wholes_in(base))
    return replace(weights, base_fingerprint=base.fingerprint, base_name=base.name)


def add_adapter(
    registry: Registry,
    base: Base,
    weights: AdapterWeights,
    *,
    name: str,
    source: str,
    digest: str,
    **about: Any,
) -> Adapter:
    """Register the adapter that lies under `digest`, with what its weights tell; about: further columns of
    its row. Raises NameTaken.
    """
    return registry.add(
        Adapter(
            name=name,
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            source=source,
            rank=weights.highest_rank,
            alpha=weights.alpha,
            target_modules=", ".join(weights.target_names),
            parameters=weights.parameter_count,
            digest=digest,
            size_bytes=content_size(registry.blobs.path(digest)),
            **about,
        )
    )


def keep_combination(
    context: JobContext,
    said: dict[str, Any],
    base: Base,
    found: Combination,
    name: str | None,
    source: str,
    parents: list[dict[str, Any]],
    config: dict[str, Any],
    like: Adapter,
) -> dict[str, Any]:
    """End the job with what is `said` of what was made, and register that if it was given a name;
    tokenizer and template are those of its first parent.
    """
    if not name:
        return said
    registry = context.registry
    with registry.blobs.staging() as staging:
        (staging / "adapter").mkdir()
        save_checked(staging / "adapter", found.adapter, shapes_of(base), base.head, wholes=wholes_in(base))
        digest = registry.blobs.put(staging / "adapter")

    def register() -> dict[str, Any]:
        row = add_adapter(
            registry,
            base,
            found.adapter,
            name=name,
            source=source,
            digest=digest,
            parents=parents,
            config={source: {**config, "energy_lost": found.energy_lost}},
            dataset_name=like.dataset_name if len(parents) == 1 else "",
            chat=shared_chat(registry, [one["digest"] for one in parents]),
            tokenizer_hash=like.tokenizer_hash or base.tokenizer_hash,
            template_hash=like.template_hash or effective_template_hash(base),
        )
        return {**said, "name": row.name, "digest": digest}

    return context.conclude(register)
