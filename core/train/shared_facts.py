"""What all processes that train one group must have in common, as digests by what they are of."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from core.base_model.load import ResidentBase
from core.data.labelled_rows import LabelledRows
from core.data.tokens import TokenRows
from core.train.run import RunRequest


def shared_facts(base: ResidentBase, request: RunRequest) -> dict[str, str]:
    """SHA-256 of each, or what it is where that is short."""
    steps = request.resume[1].position.steps if request.resume else 0
    return {
        "base": base.fingerprint,
        "number format": f"{base.dtype} {base.quantisation}".removeprefix("torch."),
        "kind of device": base.device.type,
        "way through the base": base.way.name,
        "data": _rows_digest(request.rows),
        "options": _digest(json.dumps(request.options.to_dict(), sort_keys=True, default=str).encode()),
        "checkpoint": f"step {steps}",
    }


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
