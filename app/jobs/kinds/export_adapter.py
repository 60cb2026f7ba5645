"""The job that lets something leave the house: written, checked in a process of its own, and registered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep
from app.shared.adapter_labels import has_own_weights, labels_of_row
from app.shared.bases import base_for, folder_of, source_of
from app.shared.identity import require_fit
from app.shared.private import as_users_files
from app.shared.references import name_in, refer, referred
from app.shared.text import require_text
from core.base_model.fingerprint import Manifest
from core.base_model.hub import fetched_revision
from core.base_model.source import check_unchanged
from core.errors import InvalidModel
from core.events import Progress
from core.export.cards import Provenance
from core.export.config import split_export_options
from core.export.duties import FAILED, PASSED, Exporting
from core.files.publish import publication, require_place, settle
from core.reporting import Report
from storage.blobs import content_digest, content_size
from storage.names import free_name
from storage.registry import Registry
from storage.tables import Adapter, Base, Export


class ExportAdapter(JobKind):
    """Arguments: adapter, folder (a new one; by default under exports in the home folder), config."""

    name, label, order = "export_adapter", "Export an adapter", 80
    help = "Write an adapter, or its base with it merged in, for other software, and check the result."
    place = "Export, or export"
    keeps = (Export, Base)

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Export {name_in(arguments['adapter'])} as {arguments['config']['format']}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound, WrongBase, InvalidConfig, and InvalidInput for a folder that cannot be written."""
        config, own = split_export_options(arguments.get("config") or {})
        row = referred(context.registry, Adapter, arguments["adapter"])
        base_for(context.registry, row)
        whole = has_own_weights(context.registry, row)
        config.kind.require_for(row.name, labels_of_row(context.registry, row) is not None, whole)
        folder = str(arguments.get("folder") or "")
        require_text(folder)
        made = f"adapter-{row.id}-{time.strftime('%Y%m%d-%H%M%S')}-{config.format}"
        folder = folder or str(context.settings.exports / made)
        require_place(_target(folder))
        return {"adapter": refer(row), "folder": folder, "config": config.to_dict() | own.to_dict()}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Write an adapter in the wanted format, load it again and compare. A merged model becomes a base
        model of its own.

        Result: folder, check, and what was written.
        """
        from app.jobs.adapters import load_row
        from core.base_model.skeleton import skeleton
        from core.export.check_process import check_export
        from core.export.exporting import write_export

        registry, report = context.registry, context.report
        row = referred(registry, Adapter, arguments["adapter"])
        config, own = split_export_options(arguments["config"])
        target = _target(arguments["folder"])
        base = base_for(registry, row)
        warned = require_fit(registry, row, base)
        report(Progress("Computing the fingerprint of the base"))
        check_unchanged(source_of(registry, base), afresh=True)
        adapter, blob = load_row(registry, row, base), registry.blobs.path(row.digest)
        about = replace(
            _provenance(row, base), classifies=adapter.labels is not None, whole=bool(adapter.whole)
        )
        what = Exporting(folder_of(base), skeleton(folder_of(base)), adapter, about, config, own)
        _settle(registry, target)
        with publication(target) as out:
            facts = write_export(what, out.folder, report)
            warned += facts.pop("warnings")
            if not target.is_relative_to(context.settings.home):
                as_users_files(out.folder)
            check = check_export(
                folder_of(base), blob, out.folder, arguments["config"], base.template, report
            )
            sound = check["verdict"] != FAILED
            merged = _as_base(out.folder, row, report, warned) if config.kind.is_base and sound else None
            made = Export(
                adapter_name=row.name,
                adapter_digest=row.digest,
                base_name=base.name,
                folder=str(target),
                size_bytes=content_size(out.folder),
                passed=check["verdict"] == PASSED,
                sentence=check["sentence"],
                check=check | facts | {"warnings": warned, "dtype": config.dtype},
                format=config.format,
                verdict=check["verdict"],
                files={path.name: content_digest(path) for path in sorted(out.folder.iterdir())},
            )
            result = {
                "folder": str(target),
                "passed": sound,
                "verdict": check["verdict"],
                "sentence": check["sentence"],
                "check": check,
                "warnings": warned,
                **facts,
            }

            def register() -> Arguments:
                number = registry.save(made).id
                return result | {
                    "export": number,
                    "base": _registered(registry, merged, target) if merged else None,
                    "writes": adapter.labels is None,
                }

            return context.publish(out, register)

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        shown = NextStep("Show it", "export", {"name": str(result["export"])})
        base = result.get("base")
        if not base or not result.get("writes", True):
            return (shown,)
        return (shown, NextStep("Chat with it", "playground", {"base": base}))


KIND = ExportAdapter()


def _target(folder: str) -> Path:
    return Path(folder).expanduser().absolute()


def _provenance(row: Adapter, base: Base) -> Provenance:
    trained = row.source == "trained"
    return Provenance(
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        base_licence=base.licence,
        base_source=base.origin if base.source == "hub" else base.folder,
        base_revision=fetched_revision(folder_of(base)) if base.source == "hub" else "",
        adapter_name=row.name,
        adapter_digest=row.digest,
        dataset_name=row.dataset_name,
        config=row.config,
        train_loss=row.train_loss,
        validation_loss=row.validation_loss,
        base_template=base.template,
        tokenizer_hash=row.tokenizer_hash,
        template_hash=row.template_hash,
        parents=() if trained else tuple(f"{one['name']} × {one['weight']:g}" for one in row.parents),
        learnt_on=", ".join(one["name"] for one in row.parents) if trained else "",
    )


def _settle(registry: Registry, target: Path) -> None:
    """An export that was registered is finished, even if its process was killed before it could say so."""
    if any(Path(one.folder) == target for one in registry.all(Export)):
        settle(target)


def _as_base(folder: Path, row: Adapter, report: Report, warned: list[str]) -> tuple[Base, Manifest] | None:
    """The merged model as a base: it can be trained and merged again, and nobody takes it for the one it came
    from. Its name is chosen when it is registered.

    None, with a warning, where its base came in before somebody looked whether it can be one.
    """
    from app.jobs.registering import described_base

    name = f"{row.name} merged"[:110]
    try:
        return described_base(folder, name=name, source="merged", origin=row.name, owned=False, report=report)
    except InvalidModel as error:
        warned.append(f"The merged model is written, but is not among the base models here. {error}")
        return None


def _registered(registry: Registry, merged: tuple[Base, Manifest], target: Path) -> str:
    from app.jobs.registering import register_base

    row, manifest = merged
    row.name = free_name(row.name, registry.names(Base))
    return register_base(registry, row, manifest, target).name
