"""The job that imports a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep
from app.shared.data_import import ImportRequest, imported
from app.shared.text import require_text
from storage.tables import Dataset


class ImportData(JobKind):
    """Arguments: those of an ImportRequest."""

    name, label, order = "import_data", "Import a data set", 10
    help = "Read, check, split and register files or a data set of the hub."
    place = "Data, or data add"
    keeps = (Dataset,)

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Import {Path(arguments['files'][0]).name}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NameTaken."""
        request = ImportRequest.parse(dict(arguments))
        require_text(*request.files, *request.validation, request.name)
        context.registry.require_free(Dataset, request.name or request.default_name)
        return request.to_dict()

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: its name and what was found."""
        request = ImportRequest.parse(dict(arguments))
        row, change = imported(context.registry, request, context.report)

        def register() -> Arguments:
            context.registry.datasets.add(row, change)
            return {"name": row.name, "rows": row.rows, "faulty": row.faulty_rows, "warnings": row.warnings}

        return context.conclude(register)

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        name = result["name"]
        return NextStep("Look at it", "data", {"name": name}), NextStep(
            "Train on it", "train", {"data": name}
        )


KIND = ImportData()
