"""Checkpoints in the engine process: written as blobs with a row behind them, and read back for the same run
only.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from app.shared.disk import free_bytes
from core.base_model.load import ResidentBase
from core.engine import Engine
from core.errors import InvalidInput, OutOfSpace
from core.files.publish import SPARE_BYTES, space_sentence
from core.lora.adapter import AdapterWeights
from core.lora.peft.files import load_adapter, save_adapter
from core.train.run_state import RunState
from storage.blobs import content_digest, content_size, sync_all
from storage.registry import Registry
from storage.tables import Base, Checkpoint, Run

_AROUND_BYTES = 256 * 1024  # headers and configuration
_ADAPTER, _STATE = "adapter", "state"


def save_checkpoint(
    registry: Registry, run: Run, engine: Engine, adapter: AdapterWeights, state: RunState
) -> Checkpoint:
    """Write factors and state, each whole or not at all, then the row that makes a checkpoint of them.

    Raises OutOfSpace or OSError; then there is no new checkpoint and those before are as they were.
    """
    start = time.monotonic()
    needed = checkpoint_bytes(adapter, state)
    if free_bytes(registry.blobs.folder) < needed + SPARE_BYTES:
        raise OutOfSpace(f"A checkpoint needs {space_sentence(needed)} in {registry.blobs.folder}.")
    with registry.blobs.staging() as staging:
        parts = _written(staging, engine, adapter, state)
        size = content_size(staging)
        digests = [registry.blobs.put(part) for part in parts]
    base = registry.get(Base, run.base_id)
    row = Checkpoint(
        run_id=run.id or 0,
        step=state.position.steps,
        adapter_digest=digests[0],
        state_digest=digests[1],
        train_loss=state.position.train_loss,
        validation_loss=state.position.validation_loss,
        size_bytes=size,
        seconds=time.monotonic() - start,
        about=_about(base, engine),
    )
    registry.checkpoints.add(row)
    return row


def rehearse_checkpoint(registry: Registry, engine: Engine, adapter: AdapterWeights, state: RunState) -> None:
    """All that a checkpoint takes, and nothing of it is kept. Raises OSError."""
    with registry.blobs.staging() as staging:
        for part in _written(staging, engine, adapter, state):
            content_digest(part)
            sync_all(part)


def _written(folder: Path, engine: Engine, adapter: AdapterWeights, state: RunState) -> list[Path]:
    """The parts of a checkpoint, each in a folder of its own."""
    parts = [folder / name for name in (_ADAPTER, _STATE)]
    for part in parts:
        part.mkdir()
    save_adapter(parts[0], adapter, modules=engine.base.layer_shapes if engine.base else ())
    state.save(parts[1])
    return parts


def checkpoint_bytes(adapter: AdapterWeights, state: RunState | None) -> int:
    """What a checkpoint takes on the disk: the factors and the state, mostly Adam's two moments, in float32,
    and a little around them. Without a state the moments are guessed.
    """
    count = adapter.parameter_count
    return 4 * (adapter.file_count + (2 * count if state is None else state.numbers)) + _AROUND_BYTES


def load_checkpoint(
    registry: Registry, run: Run, engine: Engine, base: ResidentBase
) -> tuple[AdapterWeights, RunState] | None:
    """The newest checkpoint of a run; None if it has none. Says in the run's log where it will not go on bit
    for bit.

    Raises InvalidInput if the base's tokenizer or chat template is another than it was trained with,
    BlobDamaged.
    """
    row = next(iter(registry.checkpoints.of(run.id or 0)), None)
    if row is None:
        return None
    now = _about(registry.get(Base, run.base_id), engine)
    changed = [key for key, value in row.about.items() if now.get(key) != value]
    if must_agree := [key for key in changed if key in ("tokenizer", "chat template")]:
        raise InvalidInput(
            f"The {' and the '.join(must_agree)} of {run.base_name} changed since the checkpoint at "
            f"step {row.step}; the run "
            "would go on with other tokens. Put it back, or start a new run."
        )
    if changed:
        said = ", ".join(f"{key} {row.about[key]} then, {now.get(key)} now" for key in changed)
        registry.measurements.add_note(run.id or 0, f"The run goes on approximately, not bit for bit: {said}")
    folder = registry.blobs.verify(row.adapter_digest)
    adapter = load_adapter(folder, base.layer_shapes, base.head, base.wholes)
    return adapter, RunState.load(registry.blobs.verify(row.state_digest))


def _about(base: Base, engine: Engine) -> dict[str, Any]:
    return {
        "tokenizer": base.tokenizer_hash,
        "chat template": f"{base.template_hash} {base.template}".strip(),
        **engine.surroundings(),
    }
