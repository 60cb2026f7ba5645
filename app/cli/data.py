"""The commands about data sets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from app.cli.console import Console, guarded
from app.cli.options import Home, Json, Yes, open_workbench
from app.service.data_import import ImportRequest, import_dataset, is_hub_id, mapping_from, read_rows
from app.service.datasets import BaseCheck, read_check
from app.service.workbench import Workbench, require_text
from core.data.dataset_file import DatasetFile, Findings
from core.data.findings import ERROR, KINDS
from core.data.importing import Summary
from core.data.split import COUNT, FILE, NONE, SHARE, Split
from core.data.version import Mask
from core.errors import InvalidConfig
from core.train.config import TrainConfig
from storage.tables import Base, Dataset

data = typer.Typer(
    no_args_is_help=True,
    help="Data sets: check, add, report, exclude, restore, split, versions, use, list, show, remove.",
)

Files = Annotated[
    list[str],
    typer.Argument(
        help=(
            "Files (.jsonl .json .csv .tsv .parquet .txt .md .zip), or a hub id (owner/name); add "
            "also takes the word sample."
        )
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="ROLE=COLUMN",
        help="Which column is what, such as user=question; repeatable. "
        "Roles: system, user, assistant, text, label, turns, input, history, id, parent, role, content.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="The user's turn put together from columns: 'Classify: {text}'. "
        "Or another role's: 'system=You are brief.'; repeatable.",
    ),
]
Separator = Annotated[
    str, typer.Option(help="What stands between question and answer in each line, such as '||'.")
]
Like = Annotated[str, typer.Option(metavar="NAME", help="Read it with the mapping of this data set.")]
Near = Annotated[
    bool,
    typer.Option("--near-duplicates/--no-near-duplicates", help="Look for near duplicates in a second pass."),
]
Share = Annotated[
    float | None,
    typer.Option(min=0, max=0.5, help="Share of the rows for validation; 0 for none. Default 0.05."),
]
Count = Annotated[int | None, typer.Option(min=1, help="Number of rows for validation.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the split.")]
Stratify = Annotated[
    bool, typer.Option("--stratify", help="Each label gives its share of the validation rows.")
]
BaseName = Annotated[
    str, typer.Option("--base", help="Check with this base's tokenizer and chat template, too.")
]
_LENGTH = next(option.default for option in TrainConfig.options() if option.name == "max_length")
MaxLength = Annotated[int, typer.Option(min=8, help="Longest row, in tokens.")]
_SHOWN = 40  # findings printed; all with --json or as CSV


@data.command("add")
@guarded
def data_add(
    files: Files,
    name: Annotated[str, typer.Option(help="Name to show; default the file's.")] = "",
    map_: Map = None,
    template: Template = None,
    separator: Separator = "",
    validation: Annotated[
        list[str] | None, typer.Option(help="A file whose rows are for validation only; repeatable.")
    ] = None,
    share: Share = None,
    count: Count = None,
    seed: Seed = 0,
    stratify: Stratify = False,
    near: Near = True,
    like: Like = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Import a data set: one or several files, a zip of them, or a data set of the hub."""
    workbench, console = open_workbench(home), Console(json)
    if "sample" in files:
        if len(files) > 1 or map_ or template or separator or like or validation:
            raise typer.BadParameter(
                "sample is a data set of its own; leave out the other files and options."
            )
        row = workbench.datasets.add_sample(name)
    else:
        require_text(*files, name)
        mapping = _mapping(workbench, files, map_, template, separator, like)
        split = _split(share, count, seed, stratify, has_file=bool(validation))
        for_validation = [str(one) for one in _existing(validation or [])]
        request = ImportRequest(
            [str(one) for one in _existing(files)], name, for_validation, mapping, split, near
        )
        with console.progress() as progress:
            row = import_dataset(workbench.registry, request, progress.report)
    console.row(row, leave_out=() if json else ("preview", "mapping", "digest"))
    if row.faulty_rows:
        console.say(
            f"Rows with errors: {row.faulty_rows:,}. See them: data report {row.name!r}. "
            f"Leave them out: data exclude {row.name!r} --errors"
        )


def _existing(files: list[str]) -> list[Path]:
    found = [Path(file).expanduser() for file in files]
    for path in found:
        if not path.is_file() and not (len(files) == 1 and is_hub_id(str(path))):
            raise typer.BadParameter(f"{path} is not a file.")
    return found


def _mapping(
    workbench: Workbench,
    files: list[str],
    pairs: list[str] | None,
    templates: list[str] | None,
    separator: str,
    like: str,
) -> dict[str, Any] | None:
    """What was said about the columns; None if nothing was."""
    if like:
        row = workbench.registry.find(Dataset, like)
        if pairs or templates or separator:
            raise InvalidConfig(
                "--like takes the whole mapping of a data set; leave out --map, --template and --separator."
            )
        if not row.mapping:
            raise InvalidConfig(
                f"{like} was imported by an earlier version of the workbench, which kept no mapping."
            )
        return row.mapping
    return mapping_from(_existing(files)[0], pairs or [], templates or [], separator)


def _split(
    share: float | None, count: int | None, seed: int, stratify: bool, *, has_file: bool = False
) -> Split:
    if sum(one is not None for one in (share, count)) + has_file > 1:
        raise InvalidConfig("Give one of --share, --count and --validation.")
    if has_file:
        return Split(FILE)
    if count is not None:
        return Split(COUNT, count=count, seed=seed, stratify=stratify)
    return (
        Split(NONE)
        if share == 0
        else Split(SHARE, share=0.05 if share is None else share, seed=seed, stratify=stratify)
    )


@data.command("check")
@guarded
def data_check(
    file: Files,
    base: BaseName = "",
    max_length: MaxLength = _LENGTH,
    map_: Map = None,
    template: Template = None,
    separator: Separator = "",
    like: Like = "",
    near: Near = True,
    home: Home = None,
    json: Json = False,
) -> None:
    """Give the whole report on a file without registering it. Exit code 1 if rows have errors."""
    workbench, console = open_workbench(home), Console(json)
    require_text(*file)
    with (
        tempfile.TemporaryDirectory(prefix="check-", dir=workbench.settings.staging) as staging,
        console.progress() as progress,
    ):
        folder = Path(staging) / "rows"
        mapping = _mapping(workbench, file, map_, template, separator, like)
        request = ImportRequest([str(one) for one in _existing(file)], "check", (), mapping, Split(), near)
        summary = read_rows(request, Path(staging), folder, progress.report)
        checked = (
            _check_with(workbench, folder, base, max_length, Path(staging) / "check", progress)
            if base
            else None
        )
        content = _report(summary, DatasetFile(folder), Findings.read(folder), checked)
    _show(console, content)
    if content["errors"]:
        raise typer.Exit(1)


def _check_with(
    workbench: Workbench, folder: Path, base: str, max_length: int, out: Path, progress: Any
) -> BaseCheck:
    job = workbench.check_rows(folder, base, max_length, out)
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
        "warnings": sum(one.kind.level != ERROR for one in still),
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


def _show(console: Console, content: dict[str, Any]) -> None:
    shown = [
        ("Rows", f"{content['rows']:,}"),
        ("Rows with errors", f"{content['errors']:,}"),
        ("Warnings", f"{content['warnings']:,}"),
    ]
    shown += [("Left out", f"{content['left_out']:,} rows")] if content["left_out"] else []
    shown += [("Hint", hint) for hint in content["hints"]]
    if tokens := content["tokens"]:
        shown += [
            ("Tokens", f"{tokens['tokens']:,}, {tokens['trained_tokens']:,} of them trained on"),
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


@data.command("report")
@guarded
def data_report(
    name: str,
    csv: Annotated[Path | None, typer.Option(help="Write all findings to this new CSV file.")] = None,
    base: BaseName = "",
    max_length: MaxLength = _LENGTH,
    home: Home = None,
    json: Json = False,
) -> None:
    """The report on a data set that is in: what was found, by row; with --base also what that base's
    tokenizer shows.
    """
    workbench, console = open_workbench(home), Console(json)
    row = workbench.registry.find(Dataset, name)
    checked = _checked(workbench, console, row, base, max_length) if base else None
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
    _show(console, _report(summary, opened.rows, opened.findings, checked, opened.version.excluded))


def _checked(
    workbench: Workbench, console: Console, row: Dataset, base: str, max_length: int
) -> BaseCheck | None:
    model = workbench.registry.find(Base, base)
    if workbench.datasets.checked(row, model, max_length) is None:
        with console.progress() as progress:
            workbench.jobs.wait(workbench.check_data(row.name, base, max_length), progress.job)
    return workbench.datasets.checked(row, model, max_length)


@data.command("exclude")
@guarded
def data_exclude(
    name: str,
    errors: Annotated[bool, typer.Option("--errors", help="All rows with errors.")] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="All rows with this finding, such as duplicate; repeatable.")
    ] = None,
    base: BaseName = "",
    max_length: MaxLength = _LENGTH,
    home: Home = None,
    json: Json = False,
) -> None:
    """Leave rows out, as a new version. They are kept, and can be brought back with restore."""
    workbench, console = open_workbench(home), Console(json)
    unknown = [one for one in kind or [] if one not in KINDS]
    if unknown or not (errors or kind):
        raise typer.BadParameter(f"give --errors, or --kind with one of: {', '.join(KINDS)}")
    codes = [
        one.code for one in KINDS.values() if (errors and one.level == ERROR) or one.code in (kind or [])
    ]
    checked = (
        _checked(workbench, console, workbench.registry.find(Dataset, name), base, max_length)
        if base
        else None
    )
    _changed(console, workbench.datasets.leave_out(name, codes, base=checked))


@data.command("restore")
@guarded
def data_restore(name: str, home: Home = None, json: Json = False) -> None:
    """Bring back all rows that were left out, as a new version."""
    _changed(Console(json), open_workbench(home).datasets.bring_back(name))


@data.command("split")
@guarded
def data_split(
    name: str,
    share: Share = None,
    count: Count = None,
    seed: Seed = 0,
    stratify: Stratify = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Choose the validation rows anew, as a new version."""
    _changed(Console(json), open_workbench(home).datasets.split(name, _split(share, count, seed, stratify)))


@data.command("versions")
@guarded
def data_versions(name: str, home: Home = None, json: Json = False) -> None:
    """List the versions of a data set, the newest first."""
    registry = open_workbench(home).registry
    rows = registry.datasets.versions(registry.find(Dataset, name).id or 0)
    Console(json).table(
        rows,
        ["number", "parent", "change", "rows", "validation_rows", "excluded_rows", "faulty_rows", "digest"],
    )


@data.command("use")
@guarded
def data_use(
    name: str,
    number: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    home: Home = None,
    json: Json = False,
) -> None:
    """Make an earlier version the newest again."""
    _changed(Console(json), open_workbench(home).datasets.go_back(name, number))


def _changed(console: Console, row: Dataset) -> None:
    content = {
        key: getattr(row, key)
        for key in ("name", "version", "rows", "validation_rows", "excluded_rows", "faulty_rows", "digest")
    }
    console.result(
        content,
        [
            ("Data set", f"{row.name}, version {row.version}"),
            ("Rows", f"{row.rows:,}, {row.excluded_rows:,} left out"),
            ("Validation", f"{row.validation_rows:,}"),
            ("Rows with errors", f"{row.faulty_rows:,}"),
        ],
    )


@data.command("list")
@guarded
def data_list(home: Home = None, json: Json = False) -> None:
    """List the data sets."""
    columns = [
        "name",
        "version",
        "format",
        "rows",
        "validation_rows",
        "excluded_rows",
        "faulty_rows",
        "size_bytes",
        "source_name",
    ]
    Console(json).table(open_workbench(home).registry.all(Dataset), columns)


@data.command("show")
@guarded
def data_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show a data set and its first rows."""
    Console(json).row(open_workbench(home).registry.find(Dataset, name))


@data.command("remove")
@guarded
def data_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Delete a data set with all its versions."""
    console = Console(json)
    console.confirm(f"Delete the data set {name}?", yes)
    open_workbench(home).datasets.remove(name)
    console.result({"removed": name}, [("Removed", name)])
