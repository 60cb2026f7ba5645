"""Jobs about models and adapters: adding a base model, importing an adapter, exporting a merged model."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.sources import base_for, folder_of, shapes_of
from core.base_model import starter
from core.base_model.describe import describe
from core.base_model.gguf_convert import convert_gguf
from core.base_model.hub import HUB_ID, fetch_from_hub
from core.base_model.skeleton import skeleton
from core.engine import BaseSource, check_unchanged
from core.errors import InvalidAdapter, InvalidModel, WrongBase
from core.events import Progress
from core.lora.adapter import AdapterWeights
from core.lora.peft_format import check_folder, load_adapter, read_config, read_weights_header, recorded_fingerprint
from core.merge.export import Provenance, export_merged
from core.merge.verify import verify_merge
from core.publish import published_folder
from core.reporting import Report
from storage.blobs import content_size
from storage.registry import Registry
from storage.tables import Adapter, Base, Export

log = logging.getLogger("job")
Arguments = dict[str, Any]


def add_model(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Add a base model: the starter, a folder, a GGUF file or a hub id. Result: its name, and a twin's if there is one."""
    origin, wanted = arguments["origin"], arguments["name"]
    name = registry.require_free(Base, wanted or default_name(origin))
    with _model_files(settings, origin, report) as (folder, source, owned):
        report(Progress("Computing the fingerprint", 0.0))
        info = describe(folder, lambda done, total: report(Progress("Computing the fingerprint", done / max(1, total))))
        layers = skeleton(folder)
        twin = next((base.name for base in registry.all(Base) if base.fingerprint == info.fingerprint), None)
        about = asdict(info) | ({"licence": starter.LICENCE} if source == "starter" else {})
        row = Base(
            name=name, source=source, origin=origin, folder=str(folder), owned=owned, **about,
            layer_shapes={path: list(shape) for path, shape in layers.shapes.items()}, head=layers.head,
        )  # fmt: skip
        registry.add(row)
    return {"name": name, "fingerprint": info.fingerprint, "same_as": twin}


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
            raise InvalidModel(f"{origin!r} is neither a folder, a .gguf file, a hub id (owner/name) nor the word starter.")
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


def import_adapter(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Import a PEFT adapter folder for a local base. Result: its name and its base's."""
    folder = Path(arguments["folder"]).expanduser()
    name = registry.require_free(Adapter, arguments["name"] or folder.resolve().name)
    report(Progress("Checking the files"))
    config_path, weights_path = check_folder(folder)
    config = read_config(config_path)
    recorded = recorded_fingerprint(read_weights_header(weights_path))
    base, weights = _fitting_base(registry, folder, config, recorded, arguments.get("base"))
    report(Progress("Storing"))
    with registry.blobs.staging() as staging:
        copy = staging / "adapter"
        copy.mkdir()
        shutil.copyfile(config_path, copy / config_path.name)
        shutil.copyfile(weights_path, copy / weights_path.name)
        load_adapter(copy, shapes_of(base), base.head)  # what is kept is what was checked
        digest = registry.blobs.put(copy)
    registry.add(
        Adapter(
            name=name, base_name=base.name, base_fingerprint=base.fingerprint, source="imported", rank=weights.rank,
            alpha=weights.alpha, target_modules=", ".join(weights.target_names), parameters=weights.parameter_count,
            digest=digest, size_bytes=content_size(registry.blobs.path(digest)),
        )
    )  # fmt: skip
    trained = "" if weights.is_trained() else "Every B is zero: this adapter was never trained."
    return {"name": name, "base": base.name, "warning": trained}


def _fitting_base(
    registry: Registry, folder: Path, config: Arguments, recorded: str, named: str | None
) -> tuple[Base, AdapterWeights]:
    """The local base an adapter is for: the one it records, the one named, or the only one whose layers fit."""
    bases = registry.all(Base)
    if not bases:
        raise InvalidAdapter("There is no base model yet; add the one this adapter was made for first.")
    claimed = str(config.get("base_model_name_or_path") or "another base")
    if recorded:
        matching = [base for base in bases if base.fingerprint == recorded]
        if not matching or (named and named not in {base.name for base in matching}):
            raise WrongBase(
                f"The adapter in {folder.name} was made for {claimed} ({recorded[:12]}), not for "
                f"{named or ' or '.join(base.name for base in bases[:5])}; add that base model first."
            )
        base = next((base for base in matching if base.name == named), matching[0])
        return base, load_adapter(folder, shapes_of(base), base.head)
    candidates = [registry.find(Base, named)] if named else bases
    fitting, reasons = [], []
    for base in candidates:
        try:
            fitting.append((base, load_adapter(folder, shapes_of(base), base.head)))
        except InvalidAdapter as error:
            reasons.append(f"{base.name}: {error}")
    if not fitting:
        raise WrongBase(f"The adapter in {folder.name} says it was made for {claimed} and fits no base model here. {reasons[0]}")
    if len({base.fingerprint for base, _ in fitting}) > 1:
        raise WrongBase(
            f"The adapter in {folder.name} does not record its base (it says {claimed}) and fits several: "
            f"{', '.join(base.name for base, _ in fitting)}. Name the right one with --base."
        )
    return fitting[0]


def export_model(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Merge an adapter into its base, write the model, load it again and compare. Result: folder and check."""
    row = registry.find(Adapter, arguments["adapter"])
    target = Path(arguments["folder"]).expanduser().absolute()
    base = base_for(registry, row)
    check_unchanged(BaseSource(base.name, folder_of(base), base.fingerprint, base.stat_key, base.template))
    adapter = load_adapter(registry.blobs.verify(row.digest), shapes_of(base), base.head)
    about = Provenance(
        base_name=base.name, base_fingerprint=base.fingerprint, base_licence=base.licence, adapter_name=row.name,
        adapter_digest=row.digest, dataset_name=row.dataset_name, config=row.config, train_loss=row.train_loss,
        validation_loss=row.validation_loss, base_template=base.template,
    )  # fmt: skip
    written = export_merged(folder_of(base), skeleton(folder_of(base)), adapter, target, about, report)
    try:
        check = verify_merge(folder_of(base), adapter, target, report, base.template)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # a model nobody checked is not left behind
        raise
    export = Export(
        adapter_name=row.name, adapter_digest=row.digest, base_name=base.name, folder=str(target),
        size_bytes=content_size(target), passed=check.passed, sentence=check.sentence(), check=asdict(check),
    )  # fmt: skip
    registry.save(export)
    return {"folder": str(target), "passed": check.passed, "sentence": check.sentence(), "check": asdict(check),
            "merged_tensors": written.merged_tensors, "copied_tensors": written.copied_tensors}  # fmt: skip
