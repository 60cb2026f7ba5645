"""The job that adds a base model."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind
from app.shared.settings import Settings
from app.shared.text import require_text
from core.base_model import starter
from core.base_model.hub import HUB_ID, fetch_from_hub
from core.errors import InvalidModel
from core.files.publish import published_folder
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
        """Raises NameTaken."""
        origin, name = str(arguments["origin"]), str(arguments.get("name", ""))
        require_text(origin, name)
        if name:
            context.registry.require_free(Base, name)
        return {"origin": origin, "name": name}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: its name, its fingerprint, and a twin's name if there is one."""
        from app.jobs.registering import register_base

        registry, report, origin = context.registry, context.report, arguments["origin"]
        name = registry.require_free(Base, arguments["name"] or default_name(origin))
        with _model_files(context.settings, origin, report) as (folder, source, owned):
            before = {base.fingerprint: base.name for base in registry.all(Base)}
            row = register_base(
                registry, folder, name=name, source=source, origin=origin, owned=owned, report=report
            )
        return {"name": row.name, "fingerprint": row.fingerprint, "same_as": before.get(row.fingerprint)}


KIND = AddModel()


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
            _convert(path.resolve(), target, report)
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
        _convert(starter.fetch_gguf(download, report), target, report)
    finally:
        shutil.rmtree(download, ignore_errors=True)


def _convert(gguf: Path, target: Path, report: Report) -> None:
    from core.base_model.gguf_convert import convert_gguf

    with published_folder(target) as staging:
        convert_gguf(gguf, staging, report)
