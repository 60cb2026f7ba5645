"""Checkpoints of runs, as rows."""

from __future__ import annotations

from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Checkpoint, Run


def checkpoint_at(registry: Registry, run_id: int, step: int | None) -> Checkpoint:
    """The checkpoint of a run at this step, or its newest. Raises NotFound."""
    run, rows = registry.get(Run, run_id), registry.checkpoints.of(run_id)
    row = next((one for one in rows if step in (None, one.step)), None)
    if row is None:
        there = f"; there are checkpoints at step {', '.join(str(one.step) for one in rows)}" if rows else ""
        raise NotFound(
            f"Run {run_id} ({run.name}) has no checkpoint{f' at step {step}' if rows else ''}{there}."
        )
    return row


def as_adapter(run: Run, checkpoint: Checkpoint, name: str) -> Adapter:
    """What an adapter made of a checkpoint would be, to answer with. The row is not to be stored."""
    return Adapter(
        name=name,
        base_name=run.base_name,
        base_fingerprint=run.base_fingerprint,
        run_id=run.id,
        dataset_name=run.dataset_name,
        source="trained",
        rank=0,
        alpha=0,
        target_modules="",
        parameters=0,
        digest=checkpoint.adapter_digest,
        size_bytes=checkpoint.size_bytes,
        chat=run.chat,
        steps=checkpoint.step,
        train_loss=checkpoint.train_loss,
        validation_loss=checkpoint.validation_loss,
        created=checkpoint.created,
    )
