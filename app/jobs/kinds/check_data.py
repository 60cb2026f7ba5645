"""The job that checks rows with a base's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.jobs.kinds import Arguments, JobContext, JobKind
from app.shared.references import name_in, refer, referred
from core.data.chat_options import ChatOptions
from core.data.dataset_file import DatasetFile, Findings
from core.data.formats import Example
from core.data.importing import Summary
from core.data.version import Mask, Version
from core.events import Progress
from core.files.publish import published_folder
from storage.tables import Base

if TYPE_CHECKING:
    from core.data.rendering import Renderer

REPORT_FILE = "report.json"
_TEMPLATE_ROWS = 20


class CheckData(JobKind):
    """Arguments: of (what is checked, in words), rows, version (folders; version may be empty), chat (options
    of the conversation where there is no version), digest (of the rows), base, max_length, out (a new
    folder).
    """

    name, label, order = "check_data", "Check data with a base", 20
    help = "Count tokens, try the chat template and find what only a base's tokenizer shows."
    place = "Data, Report, or data report --base"

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Check {arguments['of']} with {name_in(arguments['base'])}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound."""
        base = referred(context.registry, Base, arguments["base"])
        return {**arguments, "base": refer(base)}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Writes report and findings into the folder `out`. Result: the report."""
        from core.data.token_report import token_findings, token_report
        from core.data.token_view import check_template
        from core.data.tokens import tokenised

        base = referred(context.registry, Base, arguments["base"])
        folder = Path(arguments["rows"])
        context.report(Progress("Loading the tokenizer"))
        chat = _chat(arguments)
        renderer, ends = _renderer(base, folder, chat)
        rows, cache = DatasetFile(folder), context.settings.cache
        stored, digest, total = rows.all_stored(), arguments["digest"], len(rows)
        file = tokenised(stored, digest, renderer, cache, total=total, report=context.report)
        keep, validation = _parts(rows, arguments["version"])
        context.report(Progress("Counting"))
        longest = base.context_length or 1 << 30
        length = min(int(arguments["max_length"]), longest)
        found = token_findings(file, keep, length, ends)
        report = asdict(token_report(file, keep, validation, length, found, longest))
        template = [asdict(one) for one in check_template(renderer, ends, _some(rows, keep))]
        _publish(Path(arguments["out"]), found, {"report": report, "template": template})
        return report


KIND = CheckData()


def _chat(arguments: Mapping[str, Any]) -> ChatOptions:
    if arguments["version"]:
        return Version.read(Path(arguments["version"])).chat
    return ChatOptions.parse(arguments.get("chat", {}))


def _renderer(base: Base, folder: Path, chat: ChatOptions) -> tuple[Renderer, Collection[int]]:
    """The renderer of a base for the rows in `folder`, and the tokens that end a turn."""
    from core.base_model.tokenizer import end_token_ids, load_tokenizer
    from core.data.rendering import Renderer

    tokenizer, summary = load_tokenizer(Path(base.folder), base.template), Summary.read(folder)
    special_tokens = bool(summary and summary.mapping.get("special_tokens"))
    renderer = Renderer(tokenizer, special_tokens=special_tokens, chat=chat)
    return renderer, end_token_ids(Path(base.folder), renderer)


def _parts(rows: DatasetFile, version: str) -> tuple[Mask, Mask]:
    """Which rows are used, and which of them for validation; without a version all that have no fault."""
    if version:
        found = Version.read(Path(version))
        return found.usable(rows), found.validation
    return np.array([not fault for fault in rows.column("fault")]), np.zeros(len(rows), bool)


def _publish(folder: Path, found: Findings, content: Arguments) -> None:
    with published_folder(folder) as out:
        found.write(out)
        (out / REPORT_FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _some(rows: DatasetFile, keep: np.ndarray) -> list[Example]:
    return [rows[int(index)] for index in np.flatnonzero(keep)[:_TEMPLATE_ROWS]]
