"""The job that lets something leave the house: written, checked in a process of its own, and registered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from app.jobs.adapters import load_row
from app.jobs.add_model import register_base
from app.shared.bases import base_for, folder_of, source_of
from app.shared.identity import require_fit
from app.shared.settings import Settings
from core.base_model.skeleton import skeleton
from core.base_model.source import check_unchanged
from core.events import Progress
from core.export.cards import Provenance
from core.export.check_process import check_export
from core.export.config import ExportConfig
from core.export.exporting import Exporting, export
from core.reporting import Report
from storage.blobs import content_digest, content_size
from storage.names import free_name
from storage.registry import Registry
from storage.tables import NOT_PASSED, PASSED, Adapter, Base, Export

Arguments = dict[str, Any]


def export_adapter(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Write an adapter in the wanted format, load it again and compare. A merged model becomes a base model
    of its own.

    Result: folder, check, and what was written.
    """
    row, config = registry.find(Adapter, arguments["adapter"]), ExportConfig.parse(arguments["config"])
    target = Path(arguments["folder"]).expanduser().absolute()
    base = base_for(registry, row)
    warned = require_fit(registry, row, base)
    report(Progress("Computing the fingerprint of the base"))
    check_unchanged(source_of(registry, base), afresh=True)
    adapter, blob = load_row(registry, row, base), registry.blobs.path(row.digest)
    what = Exporting(folder_of(base), skeleton(folder_of(base)), adapter, _provenance(row, base), config)
    facts = export(what, target, report)
    try:
        check = check_export(folder_of(base), blob, target, config, base.template, report)
        sound = check["verdict"] != NOT_PASSED
        merged = (
            _registered(registry, row, target, report) if config.format == "safetensors" and sound else None
        )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # what nobody checked is not left behind
        raise
    registry.save(
        Export(
            adapter_name=row.name,
            adapter_digest=row.digest,
            base_name=base.name,
            folder=str(target),
            size_bytes=content_size(target),
            passed=check["verdict"] == PASSED,
            sentence=check["sentence"],
            check=check | facts,
            format=config.format,
            verdict=check["verdict"],
            files={path.name: content_digest(path) for path in sorted(target.iterdir())},
        )
    )
    return {
        "folder": str(target),
        "passed": sound,
        "verdict": check["verdict"],
        "sentence": check["sentence"],
        "check": check,
        "warnings": warned,
        "base": merged,
        **facts,
    }


def _provenance(row: Adapter, base: Base) -> Provenance:
    return Provenance(
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        base_licence=base.licence,
        adapter_name=row.name,
        adapter_digest=row.digest,
        dataset_name=row.dataset_name,
        config=row.config,
        train_loss=row.train_loss,
        validation_loss=row.validation_loss,
        base_template=base.template,
        tokenizer_hash=row.tokenizer_hash,
        template_hash=row.template_hash,
        parents=tuple(f"{parent['name']} × {parent['weight']:g}" for parent in row.parents),
    )


def _registered(registry: Registry, row: Adapter, target: Path, report: Report) -> str:
    """The merged model as a base: it can be trained and merged again, and nobody takes it for the one it came
    from.
    """
    name = free_name(f"{row.name} merged"[:110], registry.names(Base))
    return register_base(
        registry, target, name=name, source="merged", origin=str(target), owned=False, report=report
    ).name
