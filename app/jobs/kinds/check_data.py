"""The job that checks rows with a base's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from app.jobs.kinds import Arguments, JobContext, JobKind
from core.data.dataset_file import DatasetFile
from core.data.formats import Example
from core.data.importing import Summary
from core.data.version import Version
from core.events import Progress
from core.files.publish import published_folder
from storage.tables import Base

REPORT_FILE = "report.json"
_TEMPLATE_ROWS = 20


class CheckData(JobKind):
    """Arguments: of (what is checked, in words), rows, version (folders; version may be empty), digest (of
    the rows), base, max_length, out (a new folder).
    """

    name, label, order = "check_data", "Check data with a base", 20
    help = "Count tokens, try the chat template and find what only a base's tokenizer shows."
    place = "Data, Report, or data report --base"

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Check {arguments['of']} with {arguments['base']}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound."""
        context.registry.find(Base, arguments["base"])
        return dict(arguments)

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Writes report and findings into the folder `out`. Result: the report."""
        from core.base_model.tokenizer import end_token_ids, load_tokenizer
        from core.data.rendering import Renderer
        from core.data.token_report import token_findings, token_report
        from core.data.token_view import check_template
        from core.data.tokens import tokenised

        report = context.report
        report(Progress("Loading the tokenizer"))
        base, folder = context.registry.find(Base, arguments["base"]), Path(arguments["rows"])
        tokenizer = load_tokenizer(Path(base.folder), base.template)
        summary = Summary.read(folder)
        renderer = Renderer(tokenizer, special_tokens=bool(summary and summary.mapping.get("special_tokens")))
        rows, ends = DatasetFile(folder), end_token_ids(Path(base.folder), tokenizer)
        file = tokenised(
            rows.all_stored(),
            arguments["digest"],
            renderer,
            context.settings.cache,
            total=len(rows),
            report=report,
        )
        if arguments["version"]:
            version = Version.read(Path(arguments["version"]))
            keep, validation = version.usable(rows), version.validation
        else:
            keep, validation = (
                np.array([not fault for fault in rows.column("fault")]),
                np.zeros(len(rows), bool),
            )
        report(Progress("Counting"))
        length = min(int(arguments["max_length"]), base.context_length or 1 << 30)
        found = token_findings(file, keep, length, ends)
        content: Arguments = {
            "report": asdict(token_report(file, keep, validation, length, found)),
            "template": [asdict(one) for one in check_template(renderer, ends, _some(rows, keep))],
        }
        with published_folder(Path(arguments["out"])) as out:
            found.write(out)
            (out / REPORT_FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        report_made: Arguments = content["report"]
        return report_made


KIND = CheckData()


def _some(rows: DatasetFile, keep: np.ndarray) -> list[Example]:
    return [rows[int(index)] for index in np.flatnonzero(keep)[:_TEMPLATE_ROWS]]
