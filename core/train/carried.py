"""Runs as files, so that another process can train them, too: nothing of them is pickled, which would have
who sends them run code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.base_model.load import ResidentBase
from core.data.carried_rows import read_rows, write_rows
from core.data.tokens import TokenRows
from core.lora.adapter import AdapterWeights
from core.lora.peft.files import load_adapter, save_adapter
from core.train.batches import MicroBatch, Step
from core.train.changes import Change
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.training_options import TrainingOptions

_ABOUT, _BELOW, _RESUME = "run.json", "below", "resume"


def write_requests(requests: Sequence[RunRequest], base: ResidentBase, folder: Path) -> dict[str, Path]:
    """Write runs on `base` into the existing folder, of which a part for each is made; where each file lies,
    by the name that read_requests() is to find it under. Their keys must be what JSON has.
    """
    found: dict[str, Path] = {}
    for number, request in enumerate(requests):
        own = folder / str(number)
        own.mkdir()
        found |= {f"{number}/{name}": path for name, path in _written(request, base, own).items()}
    return found


def _written(request: RunRequest, base: ResidentBase, folder: Path) -> dict[str, Path]:
    about = {
        "key": request.key,
        "options": request.options.to_dict(),
        "changes": [asdict(one) for one in request.changes],
        "trial": [_step_told(one) for one in request.trial],
    }
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    found = {_ABOUT: folder / _ABOUT, **write_rows(request.rows, folder)}
    if request.below is not None:
        found |= _adapter(request.below, base, folder / _BELOW)
    if request.resume is not None:
        weights, state = request.resume
        found |= _adapter(weights, base, folder / _RESUME, state)
    return found


def _adapter(
    weights: AdapterWeights, base: ResidentBase, folder: Path, state: RunState | None = None
) -> dict[str, Path]:
    folder.mkdir()
    save_adapter(folder, weights, modules=base.layer_shapes)
    if state is not None:
        state.save(folder)
    return {f"{folder.name}/{path.name}": path for path in folder.iterdir()}


def read_requests(folder: Path, base: ResidentBase) -> list[RunRequest]:
    """What write_requests() wrote, under its names. Raises InvalidConfig, InvalidData, InvalidAdapter."""
    return [_read(own, base) for own in sorted(folder.iterdir(), key=lambda path: int(path.name))]


def _read(folder: Path, base: ResidentBase) -> RunRequest:
    about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    resume, below = folder / _RESUME, folder / _BELOW
    rows = read_rows(folder)
    return RunRequest(
        about["key"],
        rows,
        TrainingOptions.from_dict(about["options"]),
        (_loaded(resume, base), RunState.load(resume)) if resume.is_dir() else None,
        [Change(**one) for one in about["changes"]],
        trial=[_step(one, rows) for one in about["trial"]],
        below=_loaded(below, base) if below.is_dir() else None,
    )


def _step_told(step: Step) -> dict[str, Any]:
    parts = [{"blocks": one.blocks, "weight": one.weight} for one in step.micro_batches]
    return {"parts": parts, "supervised": step.supervised, "tokens": step.tokens, "units": step.units}


def _step(told: dict[str, Any], rows: TokenRows) -> Step:
    parts = [MicroBatch(rows, list(map(tuple, one["blocks"])), one["weight"]) for one in told["parts"]]
    return Step(parts, told["supervised"], told["tokens"], told["units"])


def _loaded(folder: Path, base: ResidentBase) -> AdapterWeights:
    return load_adapter(folder, base.layer_shapes, base.head, base.wholes)
