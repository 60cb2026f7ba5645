"""What all processes that train one group must have in common, as digests by what they are of."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from core.base_model.load import ResidentBase
from core.data.labelled_rows import LabelledRows
from core.data.tokens import TokenRows
from core.lora.adapter import AdapterWeights
from core.train.run import RunRequest
from core.train.run_state import RunState


def shared_facts(base: ResidentBase, request: RunRequest) -> dict[str, str]:
    """SHA-256 of each, or what it is where that is short."""
    return {
        "base": base.fingerprint,
        "number format": f"{base.dtype} {base.quantisation}".removeprefix("torch."),
        "kind of device": base.device.type,
        "way through the base": base.way.name,
        "data": _rows_digest(request.rows),
        "options": _digest(json.dumps(request.options.to_dict(), sort_keys=True, default=str).encode()),
        "checkpoint": _checkpoint(*request.resume) if request.resume else "none",
    }


def _checkpoint(adapter: AdapterWeights, state: RunState) -> str:
    """Its step, and the beginning of a digest over all numbers that it holds."""
    taken = hashlib.sha256(str(state.position.micro_batches).encode())
    factors = {path: layer.tensors for path, layer in adapter.layers.items()}
    for part in (
        factors,
        {"head": adapter.head, "whole": adapter.whole},
        state.mean,
        state.square,
        state.beside,
    ):
        for path, layer in sorted(part.items()):
            for name, tensor in sorted(layer.items()):
                taken.update(f"{path} {name}".encode())
                taken.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"step {state.position.steps} ({taken.hexdigest()[:12]})"


def _rows_digest(rows: TokenRows) -> str:
    """Over the ids and labels of all rows, and which are kept for validation."""
    taken = hashlib.sha256(np.ascontiguousarray(rows.validation).tobytes())
    for number in range(len(rows)):
        for part in rows[number]:
            taken.update(np.ascontiguousarray(part).tobytes())
    if isinstance(rows, LabelledRows):
        taken.update(np.ascontiguousarray(rows.targets).tobytes())
    return taken.hexdigest()


def _digest(said: bytes) -> str:
    return hashlib.sha256(said).hexdigest()
