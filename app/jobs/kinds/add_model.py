"""The job that adds a base model."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep
from app.shared.settings import Settings
from app.shared.text import require_text
from core.base_model import starter
from core.base_model.describe import writes_text
from core.base_model.files import read_json
from core.base_model.fingerprint import Manifest
from core.base_model.hub import fetch_from_hub
from core.base_model.hub_cache import name_in_cache, snapshot_in
from core.base_model.origin import STARTER, names_hub, no_origin, require_origin
from core.base_model.packings import PACKINGS, packed_as
from core.errors import InvalidModel
from core.files.publish import publication, scratch_folder
from core.hub_address import MODEL, hub_id_in
from core.reporting import Report
from storage.tables import Base

log = logging.getLogger("job")


class AddModel(JobKind):
    """Arguments: origin (the word starter, a folder, a GGUF file or a hub id), name (may be empty)."""

    name, label, order = "add_model", "Add a base model", 0
    help = "Fetch or convert a model, compute its fingerprint and register it."
    place = "Models, or models add"
    keeps = (Base,)

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Add {arguments['origin']}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NameTaken, and InvalidInput for what is seen at once to be no base model."""
        origin, name = str(arguments["origin"]), str(arguments.get("name", ""))
        require_text(origin, name)
        origin = hub_id_in(origin, MODEL)
        require_origin(origin)
        context.registry.require_free(Base, name or default_name(origin))
        return {"origin": origin, "name": name}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: its name, its fingerprint, and a twin's name if there is one."""
        from app.jobs.registering import described_base, register_base

        registry, report, origin = context.registry, context.report, arguments["origin"]
        name = registry.require_free(Base, arguments["name"] or default_name(origin))
        before = {base.fingerprint: base.name for base in registry.all(Base)}

        def registered(row: Base, manifest: Manifest, folder: Path) -> Arguments:
            row = register_base(registry, row, manifest, folder)
            same_as = before.get(row.fingerprint)
            about = {"name": row.name, "fingerprint": row.fingerprint, "same_as": same_as, "way": row.way}
            return about | {"writes": writes_text(row.architecture)}

        path = snapshot_in(Path(origin).expanduser())
        if origin != STARTER and path.is_dir() and not _packing(path):
            folder = path.resolve()
            found = described_base(
                folder, name=name, source="folder", origin=origin, owned=False, report=report
            )
            return context.conclude(lambda: registered(*found, folder))
        with publication(context.settings.models / uuid.uuid4().hex) as out:
            source = _fetch(context.settings, origin, out.folder, report)
            found = described_base(
                out.folder, name=name, source=source, origin=origin, owned=True, report=report
            )
            return context.publish(out, lambda: registered(*found, out.folder))

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        name = result["name"]
        chat = [NextStep("Chat with it", "playground", {"base": name})] if result.get("writes", True) else []
        return (
            NextStep("Train on it", "train", {"base": name}),
            *chat,
            NextStep("Show it", "models", {"name": name}),
        )


KIND = AddModel()


def default_name(origin: str) -> str:
    """The name of a model that was given none: known before anything is downloaded."""
    if origin == STARTER:
        return starter.NAME
    path = Path(origin).expanduser()
    if path.suffix.lower() == ".gguf":
        return path.stem
    if path.is_dir():
        return name_in_cache(path.resolve()) or path.resolve().name
    return origin.rpartition("/")[2]


def _fetch(settings: Settings, origin: str, folder: Path, report: Report) -> str:
    """Bring the model's files into `folder`; returns the kind of its source.

    Raises InvalidModel for what is no source.
    """
    path = snapshot_in(Path(origin).expanduser())
    if origin == STARTER:
        _fetch_starter(settings, folder, report)
        return "starter"
    if path.suffix.lower() == ".gguf" and path.is_file():
        _convert(path.resolve(), folder, report)
        return "gguf"
    if path.is_dir():
        return _unpack(path.resolve(), folder, report)
    if names_hub(origin):
        return _fetch_from_hub(settings, origin, folder, report)
    raise InvalidModel(no_origin(origin))


def _fetch_from_hub(settings: Settings, origin: str, folder: Path, report: Report) -> str:
    revision = fetch_from_hub(origin, folder, report)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    log.info("%s at revision %s", origin, revision)
    if not _packing(folder):
        return "hub"
    with scratch_folder(settings.staging) as packed:
        for path in list(folder.iterdir()):
            path.rename(packed / path.name)
        return _unpack(packed, folder, report)


def _packing(folder: Path) -> str:
    config = folder / "config.json"
    return packed_as(read_json(config)) if config.is_file() else ""


def _unpack(packed: Path, folder: Path, report: Report) -> str:
    """Make the plain form of a repository whose weights are packed; returns in which format they were."""
    from core.base_model.unpacking import unpack
    from core.export.companions import copy_companions

    copy_companions(packed, folder)
    method = _packing(packed)
    log.info("its files hold %s; each weight is made plain", PACKINGS[method])
    unpack(packed, folder, report)
    return method


def _fetch_starter(settings: Settings, folder: Path, report: Report) -> None:
    with scratch_folder(settings.staging) as download:
        _convert(starter.fetch_gguf(download, report), folder, report)


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    from core.base_model.gguf_convert import convert_gguf

    convert_gguf(gguf, folder, report)
