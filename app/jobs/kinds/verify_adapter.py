"""The job that verifies adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind
from app.shared.bases import base_for, source_of
from app.shared.references import name_in, refer, referred
from core.base_model.source import check_unchanged
from core.errors import InvalidAdapter, InvalidModel, WrongBase
from core.events import Progress
from storage.errors import StorageError
from storage.tables import Adapter


class VerifyAdapter(JobKind):
    """Arguments: adapter (empty: all), deep (the bases are hashed anew, touched or not)."""

    name, label, order = "verify_adapter", "Verify adapters", 50
    help = "Check digest, layers, shapes, numbers and base of one adapter or all."
    place = "Adapters, or adapters verify"

    def title(self, arguments: Mapping[str, Any]) -> str:
        adapter = arguments["adapter"]
        return f"Verify {name_in(adapter)}" if adapter else "Verify all adapters"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound."""
        given = arguments.get("adapter", "")
        adapter = refer(referred(context.registry, Adapter, given)) if given else ""
        return {"adapter": adapter, "deep": bool(arguments.get("deep", False))}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Check one adapter, or all: digest, keys, shapes, finite numbers, B not zero, and its base.

        Result: problems by name.
        """
        from app.jobs.adapters import load_row

        registry, report = context.registry, context.report
        rows = (
            [referred(registry, Adapter, arguments["adapter"])]
            if arguments.get("adapter")
            else registry.all(Adapter)
        )
        problems: dict[str, str] = {}
        checked: set[int | None] = set()
        for number, row in enumerate(rows):
            report(Progress(f"Verifying {row.name}", number / len(rows)))
            try:
                base = base_for(registry, row)
                if base.id not in checked:
                    check_unchanged(source_of(registry, base), afresh=arguments.get("deep", False))
                    checked.add(base.id)
                if not load_row(registry, row, base).is_trained():
                    problems[row.name] = "Every B is zero: it was never trained and does nothing."
            except (InvalidAdapter, InvalidModel, WrongBase, StorageError) as error:
                problems[row.name] = str(error)
        return {"checked": [row.name for row in rows], "problems": problems}


KIND = VerifyAdapter()
