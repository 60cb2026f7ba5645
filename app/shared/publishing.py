"""From the factors that a run has stored to an adapter of the registry."""

from __future__ import annotations

import json
from typing import Any

from app.shared.identity import effective_template_hash
from app.shared.run_data import chat_of
from core.lora.peft.config import kind_of
from storage.blobs import content_size
from storage.names import free_name
from storage.registry import Registry
from storage.tables import Adapter, Base, Checkpoint, Run


def keep_adapter(
    registry: Registry,
    run: Run,
    digest: str,
    *,
    name: str,
    step: int,
    train_loss: float | None,
    validation_loss: float | None,
) -> Adapter:
    """Register the stored factors `digest` as what `run` had learnt after `step` steps.

    Raises NameTaken, NotFound.
    """
    folder = registry.blobs.path(digest)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    stated = kind_of(config).stated(config)
    base = registry.get(Base, run.base_id)
    return registry.add(
        Adapter(
            name=name,
            base_name=run.base_name,
            base_fingerprint=run.base_fingerprint,
            run_id=run.id,
            dataset_name=run.dataset_name,
            source="trained",
            rank=stated["rank"],
            alpha=stated["alpha"],
            target_modules=", ".join(config["target_modules"]),
            parameters=run.details.get("trainable_parameters", 0),
            digest=digest,
            size_bytes=content_size(folder),
            steps=step,
            train_loss=train_loss,
            validation_loss=validation_loss,
            config=run.config,
            chat=run.chat or chat_of(registry, run).to_dict(),
            parents=_learnt_on(registry, run),
            tokenizer_hash=base.tokenizer_hash,
            template_hash=effective_template_hash(base),
        )
    )


def _learnt_on(registry: Registry, run: Run) -> list[dict[str, Any]]:
    """The adapter that the run learnt on top of, as those that an adapter was made from are kept."""
    digest = run.config.get("lora", {}).get("on_top_of", "")
    if not digest:
        return []
    found = registry.adapters.with_digest(digest)
    return [{"name": found.name if found else digest[:12], "digest": digest, "weight": 1.0}]


def keep_checkpoint(registry: Registry, row: Checkpoint, name: str = "") -> Adapter:
    """Make an adapter of a checkpoint; by default it is named after the run and the step.

    Raises NameTaken, BlobDamaged.
    """
    run = registry.get(Run, row.run_id)
    registry.blobs.verify(row.adapter_digest)
    wanted = name or free_name(f"{run.name} step {row.step}", registry.names(Adapter))
    return keep_adapter(
        registry,
        run,
        row.adapter_digest,
        name=wanted,
        step=row.step,
        train_loss=row.train_loss,
        validation_loss=row.validation_loss,
    )
