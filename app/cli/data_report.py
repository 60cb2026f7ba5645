"""The report on a file, or on a data set that is in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded
from app.cli.data_sources import (
    Files,
    FoldSystem,
    JoinTurns,
    Like,
    Map,
    Near,
    Separator,
    SpecialTokens,
    Template,
    TemplateKwargs,
    existing_files,
    given_mapping,
)
from app.service.datasets import BaseCheck, read_check
from app.service.workbench import Workbench
from app.shared.data_import import ImportRequest, read_rows
from app.shared.text import require_text
from core.data.chat_options import ChatOptions, parsed_kwargs
from core.data.dataset_file import DatasetFile, Findings
from core.data.findings import ERROR, WARNING
from core.data.importing import Summary
from core.data.mapping import DataMapping
from core.data.split import Split
from core.data.version import Mask
from core.train.config import TrainConfig
from storage.tables import Base, Dataset

BaseName = Annotated[
    str, typer.Option("--base", help="Check with this base's tokenizer and chat template, too.")
]
DEFAULT_LENGTH = next(option.default for option in TrainConfig.options() if option.name == "max_length")
MaxLength = Annotated[int, typer.Option(min=8, help="Longest row, in tokens.")]
_SHOWN = 40  # findings printed; all with --json or as CSV


@guarded
def data_check(
    file: Files,
    base: BaseName = "",
    max_length: MaxLength = DEFAULT_LENGTH,
    map_: Map = None,
    template: Template = None,
    separator: Separator = "",
    special_tokens: SpecialTokens = False,
    like: Like = "",
    near: Near = True,
    fold_system: FoldSystem = False,
    join_turns: JoinTurns = False,
    template_kwargs: TemplateKwargs = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Give the whole report on a file without registering it. Exit code 1 if rows have errors."""
    workbench, console = open_workbench(home), Console(json)
    require_text(*file)
    chat = ChatOptions(fold_system, join_turns, parsed_kwargs(template_kwargs))
    with (
        tempfile.TemporaryDirectory(prefix="check-", dir=workbench.settings.staging) as staging,
        console.progress() as progress,
    ):
        folder = Path(staging) / "rows"
        mapping = given_mapping(workbench, file, map_, template, separator, like, special_tokens)
        request = ImportRequest(
            [str(one) for one in existing_files(file)], "check", (), mapping, Split(), near
        )
        summary = read_rows(request, Path(staging), folder, progress.report)
        checked = (
            _check_with(workbench, folder, base, max_length, Path(staging) / "check", progress, chat)
            if base
            else None
        )
        content = _report(summary, DatasetFile(folder), Findings.read(folder), checked)
    _show(console, content, DataMapping.parse(summary.mapping).sentence())
    if content["errors"]:
        raise typer.Exit(1)


def _check_with(
    workbench: Workbench,
    folder: Path,
    base: str,
    max_length: int,
    out: Path,
    progress: Any,
    chat: ChatOptions,
) -> BaseCheck:
    job = workbench.datasets.check_rows(folder, base, max_length, out, chat)
    try:
        workbench.jobs.wait(job, progress.job)
    except KeyboardInterrupt:
        workbench.jobs.cancel(job)
        raise
    return read_check(out)


def _report(
    summary: Summary,
    rows: DatasetFile,
    found: Findings,
    checked: BaseCheck | None,
    excluded: Mask | None = None,
) -> dict[str, Any]:
    """Everything that was found; what is left out counts no more."""
    numbers, files = rows.column("row"), rows.column("file")
    findings = [*found.some(), *(checked.findings.some() if checked else [])]
    out = np.zeros(len(rows), bool) if excluded is None else excluded
    still = [one for one in findings if one.index < 0 or not out[one.index]]
    about = [
        {
            "file": summary.sources[files[one.index] or 0] if one.index >= 0 else "",
            "row": numbers[one.index] if one.index >= 0 else None,
            "level": one.kind.level,
            "code": one.code,
            "finding": one.kind.title,
            "detail": one.detail,
            "remedy": one.kind.remedy,
            "left_out": bool(one.index >= 0 and out[one.index]),
        }
        for one in findings
    ]
    errors = {one.index for one in still if one.kind.level == ERROR}
    return {
        "rows": summary.rows,
        "errors": len(errors),
        "warnings": sum(one.kind.level == WARNING for one in still),
        "left_out": int(out.sum()),
        "mapping": summary.mapping,
        "hints": summary.hints,
        "counts": summary.counts | (checked.findings.counts() if checked else {}),
        "turns": summary.turns,
        "roles": summary.roles,
        "labels": summary.labels,
        "findings": about,
        "tokens": checked.report if checked else None,
        "template": checked.template if checked else None,
    }


def _sequences(tokens: dict[str, Any]) -> list[tuple[str, str]]:
    """What the rows become, where some become several sequences."""
    if tokens.get("sequences", 0) <= tokens["rows"]:
        return []
    said = f"{tokens['rows']:,} rows become {tokens['sequences']:,}, one row up to {tokens['most_sequences']}"
    return [("Sequences", f"{said}; an epoch computes {tokens['computed_tokens']:,} tokens")]


def _show(console: Console, content: dict[str, Any], read_as: str) -> None:
    shown = [
        ("Read as", read_as),
        ("Rows", f"{content['rows']:,}"),
        ("Rows with errors", f"{content['errors']:,}"),
        ("Warnings", f"{content['warnings']:,}"),
    ]
    shown += [("Left out", f"{content['left_out']:,} rows")] if content["left_out"] else []
    shown += [("Hint", hint) for hint in content["hints"]]
    if tokens := content["tokens"]:
        shown += [
            ("Tokens", f"{tokens['tokens']:,}, {tokens['trained_tokens']:,} of them trained on"),
            *_sequences(tokens),
            (
                "Longest row",
                (
                    f"{tokens['percentiles']['100']:,} tokens; 99 % have {tokens['percentiles']['99']:,} or "
                    "fewer"
                ),
            ),
            ("Recommended max_length", f"{tokens['recommended_max_length']:,}"),
            ("Over max_length", f"{tokens['over_length_rows']:,} rows at {tokens['max_length']:,}"),
        ]
    for check in content["template"] or []:
        shown.append((f"{'✓' if check['passed'] else '✗'} {check['title']}", check["detail"]))
    listed = [one for one in content["findings"] if not one["left_out"]]
    for one in listed[:_SHOWN]:
        place = f"{one['file']} row {one['row']}" if one["row"] is not None else "all rows"
        shown.append((f"{place}", f"{one['level']}: {one['finding']}. {one['detail']}"))
    if len(listed) > _SHOWN:
        shown.append(("…", f"{len(listed) - _SHOWN:,} more; all of them with --json"))
    console.result(content, shown)


@guarded
def data_report(
    name: str,
    csv: Annotated[Path | None, typer.Option(help="Write all findings to this new CSV file.")] = None,
    base: BaseName = "",
    max_length: MaxLength = DEFAULT_LENGTH,
    home: Home = None,
    json: Json = False,
) -> None:
    """The report on a data set that is in: what was found, by row; with --base also what that base's
    tokenizer shows.
    """
    workbench, console = open_workbench(home), Console(json)
    row = workbench.registry.find(Dataset, name)
    checked = checked_with(workbench, console, row, base, max_length) if base else None
    if csv is not None:
        if csv.expanduser().exists() or not csv.expanduser().parent.is_dir():
            raise typer.BadParameter(
                f"{csv} is there already, or its folder is not; name a new file in a folder that is there."
            )
        with csv.expanduser().open("x", encoding="utf-8", newline="") as file:
            file.writelines(workbench.datasets.csv(row, checked))
        console.result({"csv": str(csv)}, [("Written", str(csv))])
        return
    opened = workbench.datasets.open(row)
    summary = opened.summary or Summary(row.rows, [row.source_name], row.mapping)
    content = _report(summary, opened.rows, opened.findings, checked, opened.version.excluded)
    _show(console, content, row.reason)


def checked_with(
    workbench: Workbench, console: Console, row: Dataset, base: str, max_length: int
) -> BaseCheck | None:
    model = workbench.registry.find(Base, base)
    if workbench.datasets.checked(row, model, max_length) is None:
        with console.progress() as progress:
            workbench.jobs.wait(workbench.datasets.check(row.name, base, max_length), progress.job)
    return workbench.datasets.checked(row, model, max_length)
