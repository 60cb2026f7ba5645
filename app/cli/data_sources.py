"""How the command line says what to read, as what, and which rows are for validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from app.service.workbench import Workbench
from app.shared.data_import import is_hub_id, mapping_from
from core.data.detection import detect_file
from core.data.mapping import DataMapping
from core.data.split import COUNT, FILE, NONE, SHARE, Split
from core.errors import InvalidConfig
from core.hub_address import DATA_SET, hub_id_in
from storage.tables import Dataset

Files = Annotated[
    list[str],
    typer.Argument(
        help=(
            "Files (.jsonl .ndjson .json .csv .tsv .parquet .txt .md, each also as .gz, or .zip), folders of "
            "them, or a hub id (owner/name); add also takes the word sample."
        )
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="ROLE=COLUMN",
        help="Which column is what, such as user=question; repeatable. "
        "Roles: system, user, assistant, text, label, turns, tools, template_kwargs, input, history, id, "
        "parent, role, "
        "content.",
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
SpecialTokens = Annotated[
    bool,
    typer.Option(
        "--special-tokens",
        help="Special tokens in plain text are meant: the rows were rendered with a chat template before.",
    ),
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

FoldSystem = Annotated[
    bool,
    typer.Option(
        "--fold-system",
        help="Put a system turn in front of the first question, where a base's chat template has none.",
    ),
]
JoinTurns = Annotated[bool, typer.Option("--join-turns", help="Join neighbouring turns of one speaker.")]
TemplateKwargs = Annotated[
    str,
    typer.Option(
        metavar="JSON", help="""What the chat template is given, such as '{"enable_thinking": false}'."""
    ),
]


def existing_files(files: list[str]) -> list[Path]:
    found = [Path(hub_id_in(file, DATA_SET)).expanduser() for file in files]
    for path in found:
        if not path.exists() and not (len(files) == 1 and is_hub_id(str(path))):
            raise typer.BadParameter(f"There is no {path} here: neither a file nor a folder.")
    return found


def given_mapping(
    workbench: Workbench,
    files: list[str],
    pairs: list[str] | None,
    templates: list[str] | None,
    separator: str,
    like: str,
    special_tokens: bool,
) -> dict[str, Any] | None:
    """What was said about the columns; None if nothing was."""
    if like:
        row = workbench.registry.find(Dataset, like)
        if pairs or templates or separator or special_tokens:
            raise InvalidConfig(
                "--like takes the whole mapping of a data set; leave out --map, --template, --separator and "
                "--special-tokens."
            )
        if not row.mapping:
            raise InvalidConfig(
                f"{like} was imported by an earlier version of the workbench, which kept no mapping."
            )
        return row.mapping
    first = existing_files(files)[0]
    found = mapping_from(first, pairs or [], templates or [], separator)
    return _with_special_tokens(first, found) if special_tokens else found


def _with_special_tokens(first: Path, given: dict[str, Any] | None) -> dict[str, Any]:
    """The mapping that was given, or that the first file is read by, with special tokens that are meant."""
    if given is None and not first.exists():
        raise InvalidConfig("--special-tokens of a data set of the hub needs --map text=COLUMN beside it.")
    mapping = DataMapping.parse(given) if given else detect_file(first).require(first.name).mapping
    if not mapping.data_format.may_hold_special_tokens:
        raise InvalidConfig(
            f"--special-tokens is for plain texts; these rows are read as {mapping.data_format.label}, whose "
            "special tokens the chat template writes. To read one column as text: --map text=COLUMN."
        )
    return replace(mapping, special_tokens=True).to_dict()


def given_split(
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
