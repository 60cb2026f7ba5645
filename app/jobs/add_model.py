"""The job that adds a base model."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.shared.identity import remember
from app.shared.settings import Settings
from core.base_model import starter
from core.base_model.describe import describe
from core.base_model.files import file_digests, weight_files
from core.base_model.gguf_convert import convert_gguf
from core.base_model.hub import HUB_ID, fetch_from_hub
from core.base_model.skeleton import skeleton
from core.errors import InvalidModel
from core.events import Progress
from core.files.publish import published_folder
from core.files.safetensors_file import read_header
from core.reporting import Report
from storage.registry import Registry
from storage.tables import Base

log = logging.getLogger("job")
Arguments = dict[str, Any]


def add_model(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Add a base model: the starter, a folder, a GGUF file or a hub id.

    Result: its name, and a twin's if there is one.
    """
    origin, wanted = arguments["origin"], arguments["name"]
    name = registry.require_free(Base, wanted or default_name(origin))
    with _model_files(settings, origin, report) as (folder, source, owned):
        before = {base.fingerprint: base.name for base in registry.all(Base)}
        row = register_base(
            registry, folder, name=name, source=source, origin=origin, owned=owned, report=report
        )
    return {"name": row.name, "fingerprint": row.fingerprint, "same_as": before.get(row.fingerprint)}


def register_base(
    registry: Registry, folder: Path, *, name: str, source: str, origin: str, owned: bool, report: Report
) -> Base:
    """Describe the model in `folder` and put it into the registry. Where a base with these very weights has
    lost its files, that one takes them over instead: it was moved. Raises InvalidModel, NameTaken.
    """
    report(Progress("Computing the fingerprint", 0.0))
    info = describe(
        folder, lambda done, total: report(Progress("Computing the fingerprint", done / max(1, total)))
    )
    layers = skeleton(folder)
    about = {field.name: getattr(info, field.name) for field in fields(info) if field.name != "manifest"}
    about |= {"licence": starter.LICENCE} if source == "starter" else {}
    remember(registry, name, info.manifest)
    row = Base(
        name=name,
        source=source,
        origin=origin,
        folder=str(folder),
        owned=owned,
        **about,
        merged=merged_from(folder),
        files=file_digests(folder),
        layer_shapes={path: list(shape) for path, shape in layers.shapes.items()},
        head=layers.head,
    )
    moved = next(
        (
            one
            for one in registry.all(Base)
            if one.fingerprint == info.fingerprint and not Path(one.folder).is_dir()
        ),
        None,
    )
    if moved is not None:
        return registry.save(
            Base(**row.model_dump() | {"id": moved.id, "name": moved.name, "created": moved.created})
        )
    return registry.add(row)


def merged_from(folder: Path) -> Arguments:
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


def default_name(origin: str) -> str:
    """The name of a model that was given none: known before anything is downloaded."""
    if origin == "starter":
        return starter.NAME
    path = Path(origin).expanduser()
    if path.suffix.lower() == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else origin.rpartition("/")[2]


@contextmanager
def _model_files(settings: Settings, origin: str, report: Report) -> Iterator[tuple[Path, str, bool]]:
    """Bring the model's files into a folder. Yields (folder, kind of source, whether the folder is ours).

    A folder of ours is removed again if the block fails.
    """
    path = Path(origin).expanduser()
    if origin != "starter" and path.is_dir():
        yield path.resolve(), "folder", False
        return
    target = settings.models / uuid.uuid4().hex
    try:
        if origin == "starter":
            _fetch_starter(settings, target, report)
            yield target, "starter", True
        elif path.suffix.lower() == ".gguf" and path.is_file():
            with published_folder(target) as staging:
                convert_gguf(path.resolve(), staging, report)
            yield target, "gguf", True
        elif HUB_ID.match(origin) and path.suffix != ".gguf":
            with published_folder(target) as staging:
                revision = fetch_from_hub(origin, staging, report)
                shutil.rmtree(staging / ".cache", ignore_errors=True)
            log.info("%s at revision %s", origin, revision)
            yield target, "hub", True
        else:
            raise InvalidModel(
                f"{origin!r} is neither a folder, a .gguf file, a hub id (owner/name) nor the word starter."
            )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _fetch_starter(settings: Settings, target: Path, report: Report) -> None:
    download = settings.staging / uuid.uuid4().hex
    download.mkdir()
    try:
        gguf = starter.fetch_gguf(download, report)
        with published_folder(target) as staging:
            convert_gguf(gguf, staging, report)
    finally:
        shutil.rmtree(download, ignore_errors=True)
