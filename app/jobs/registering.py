"""From a folder with a model to a base model of the registry."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from app.shared.identity import remember
from core.base_model import starter
from core.base_model.describe import describe
from core.base_model.files import file_digests, weight_files
from core.base_model.fingerprint import Manifest, stat_key
from core.base_model.skeleton import skeleton
from core.base_model.soundness import require_sound
from core.events import Progress
from core.files.safetensors_file import read_header
from core.reporting import Report
from storage.registry import Registry
from storage.tables import Base

_ALL_THAT_MOVES = ("fingerprint", "tokenizer_hash", "template_hash")


def described_base(
    folder: Path, *, name: str, source: str, origin: str, owned: bool, report: Report
) -> tuple[Base, Manifest]:
    """The row of the model in `folder`, not yet registered, and what its fingerprint was taken over.

    Raises InvalidModel.
    """
    report(Progress("Comparing the files with the architecture"))
    way = require_sound(folder)
    report(Progress("Computing the fingerprint", 0.0))
    info = describe(
        folder, lambda done, total: report(Progress("Computing the fingerprint", done / max(1, total)))
    )
    layers = skeleton(folder)
    about = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "manifest"}
    about |= {"licence": starter.LICENCE} if source == "starter" else {}
    row = Base(
        name=name,
        source=source,
        origin=origin,
        folder=str(folder),
        owned=owned,
        **about,
        merged=merged_from(folder),
        files=file_digests(folder),
        layer_shapes={path: list(shape) for path, shape in layers.shapes.items()}
        | {path: [*shape, shape.experts] for path, shape in layers.wholes.experts.items()},
        head=layers.head,
        way=way,
    )
    return row, info.manifest


def register_base(registry: Registry, row: Base, found: Manifest, folder: Path) -> Base:
    """Put a model that was described, and lies in `folder` by now, into the registry. Where a base with these
    very weights, tokenizer and template has lost its files, that one takes them over instead: it was moved.
    Raises NameTaken.
    """
    row.folder, row.stat_key = str(folder), stat_key(folder)
    remember(registry, row.name, found)
    moved = next(
        (
            one
            for one in registry.all(Base)
            if all(getattr(one, name) == getattr(row, name) for name in _ALL_THAT_MOVES)
            and not Path(one.folder).is_dir()
        ),
        None,
    )
    if moved is not None:
        return registry.save(
            Base(**row.model_dump() | {"id": moved.id, "name": moved.name, "created": moved.created})
        )
    return registry.add(row)


def merged_from(folder: Path) -> dict[str, Any]:
    """What a merged model says went into it; empty for any other."""
    said = read_header(weight_files(folder)[0]).metadata
    if not said.get("merged_adapter"):
        return {}
    return {
        "base_fingerprint": said.get("base_fingerprint", "")[:64],
        "base_name": said.get("base_name", "another base")[:120],
        "adapter_digest": said["merged_adapter"][:64],
        "adapter_name": said.get("merged_adapter_name", "an adapter")[:120],
    }
