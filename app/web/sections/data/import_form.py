"""Bringing data in on the page: upload, what was detected, the mapping, the validation rows, Import."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.shared.data_import import ImportRequest, look_at
from app.web.parts.shell import QUIET, WORKING, Shell, inform, refusal, told
from app.web.sections.data.data_markup import look_html, preview_html
from core.data.formats import DATA_FORMATS
from core.data.mapping import TEMPLATED, Candidate, DataMapping, all_roles
from core.data.split import KINDS, Split
from core.data.zipped import readable
from core.errors import InvalidInput
from storage.tables import Dataset

_NONE = ""
_TEMPLATE_HELP = {
    "user": "User's turn, such as: Classify: {text}",
    "assistant": "Assistant's turn, such as: The class is {label}",
    "system": "System prompt, such as: You are brief.",
}
_SPLITS = {
    "share": "a share of the rows",
    "count": "a number of rows",
    "file": "a file of its own",
    "none": "none",
}


class ImportPanel:
    """Lays itself out where it is made."""

    def __init__(self, shell: Shell) -> None:
        self._shell, self._workbench = shell, shell.workbench
        self.awaited = gr.State("")  # the name of a data set that is being imported here
        with gr.Row(equal_height=True):
            self._upload = gr.File(
                label="Upload files of rows",
                file_types=list(readable()),
                file_count="multiple",
                height=150,
                scale=2,
                elem_id="data-upload",
            )
            with gr.Column(scale=2):
                self._origin = gr.Textbox(
                    value="",
                    label="Or a path, or a data set of the hub",
                    info="/data/rows.jsonl, or owner/name, such as openai/gsm8k.",
                )
                self._name = gr.Textbox(value="", label="Name", info="Empty: taken from the file.")
                with gr.Row():
                    self._add = gr.Button("Import", variant="primary")
                    self.sample = gr.Button("Use the sample data")
        gr.Markdown(
            "JSONL, JSON, CSV, TSV, Parquet, plain text, also packed with gzip, or a zip of them. "
            f"Recognised: {_recognised()}. Any other columns can be mapped.",
            elem_classes="quiet",
        )
        with gr.Column(visible=False, elem_id="look") as self._looked:
            self._found = gr.HTML()
            self._candidates: gr.State = gr.State([])
            self._choice = gr.Radio([], label="What do the columns mean?", visible=False, interactive=True)
            with gr.Row():
                with gr.Column(scale=1, min_width=420):
                    self._mapping_fields()
                    self._split_fields()
                with gr.Column(scale=1, min_width=420):
                    self._preview = gr.HTML()
        self._bind()

    def _mapping_fields(self) -> None:
        with gr.Accordion("Mapping: which column is what", open=False) as self._mapping:
            with gr.Row():
                self._format = gr.Dropdown(format_choices(), value=_NONE, label="Format", interactive=True)
                self._like = gr.Dropdown(
                    [_NONE], value=_NONE, label="Or as another data set was read", interactive=True
                )
            self._columns: dict[str, gr.Dropdown] = {}
            with gr.Row():
                for role, label in all_roles().items():
                    self._columns[role] = gr.Dropdown(
                        [_NONE],
                        value=_NONE,
                        label=label,
                        interactive=True,
                        visible=False,
                        min_width=180,
                        allow_custom_value=True,
                    )
            gr.Markdown(
                "A template makes a turn from columns in braces, and goes before the column chosen above.",
                elem_classes="quiet",
            )
            self._templates = {
                role: gr.Textbox(value="", label=f"Template: {_TEMPLATE_HELP[role]}", lines=1, max_lines=4)
                for role in ("user", "assistant", "system")
            }
            with gr.Row():
                self._separator = gr.Textbox(
                    value="", label="Separator between question and answer, such as ||", min_width=200
                )
                self._special = gr.Checkbox(
                    False,
                    label="Special tokens in plain text are meant",
                    info="The rows were rendered with a chat template before.",
                )

    def _split_fields(self) -> None:
        with gr.Accordion("Validation rows and checks", open=False):
            self._split_kind = gr.Radio(
                [(words, kind) for kind, words in _SPLITS.items()],
                value="share",
                label="Rows kept for validation",
                interactive=True,
            )
            with gr.Row():
                self._share = gr.Number(5, label="Share (%)", minimum=0.01, maximum=50, min_width=110)
                self._count = gr.Number(
                    100, label="Number of rows", precision=0, minimum=1, visible=False, min_width=110
                )
                self._seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110)
                self._stratify = gr.Checkbox(False, label="Stratified by label", min_width=140)
            self._validation = gr.File(
                label="Validation file",
                file_types=list(readable()),
                file_count="multiple",
                height=110,
                visible=False,
            )
            self._near = gr.Checkbox(True, label="Look for near duplicates (a second pass)")

    def _bind(self) -> None:
        fields = [
            self._format,
            *self._columns.values(),
            *self._templates.values(),
            self._separator,
            self._special,
        ]
        shown = [
            self._looked,
            self._found,
            self._candidates,
            self._choice,
            self._mapping,
            *fields,
            self._preview,
        ]
        look = told(self._look)
        gr.on(
            [self._upload.change, self._origin.submit, self._origin.blur],
            look,
            [self._upload, self._origin],
            shown,
            **WORKING,
        )
        self._choice.input(self._choose, [self._candidates, self._choice], fields, **QUIET)
        self._like.input(told(self._as_another), self._like, fields, **QUIET)
        self._shell.refresh(self._others, [], [self._like])
        self._format.input(self._show_roles, self._format, list(self._columns.values()), **QUIET)
        events = [field.change for field in fields]  # type: ignore[attr-defined]
        shown_from = [self._upload, self._origin, *fields]
        gr.on(events, self._show, shown_from, self._preview, trigger_mode="always_last", **QUIET)
        self._split_kind.input(
            _split_parts,
            self._split_kind,
            [self._share, self._count, self._seed, self._stratify, self._validation],
            **QUIET,
        )
        split = [
            self._split_kind,
            self._share,
            self._count,
            self._seed,
            self._stratify,
            self._validation,
            self._near,
        ]
        self._add.click(
            told(self._import),
            [self._upload, self._origin, self._name, *split, *fields],
            [self._upload, self._origin, self._name, self._looked, self.awaited],
            concurrency_id="import",
            **WORKING,
        )

    # Handlers.

    def _look(self, files: list[str] | None, origin: str) -> list[Any]:
        path = _first(files, origin)
        if path is None:
            return [
                gr.Column(visible=False),
                "",
                [],
                gr.Radio(choices=[], visible=False),
                gr.Accordion(open=False),
                *self._filled(None, ()),
                "",
            ]
        look = look_at(path)
        candidates = look.detection.candidates
        undecided = look.chosen is None
        choices = [
            (f"{one.mapping.sentence()} ({one.reason})", number) for number, one in enumerate(candidates)
        ]
        return [
            gr.Column(visible=True),
            look_html(look),
            [one.mapping.to_dict() for one in candidates],
            gr.Radio(choices=choices, value=None if undecided else 0, visible=undecided and bool(candidates)),
            gr.Accordion(open=undecided and not candidates),
            *self._filled(look.chosen, look.detection.columns),
            preview_html(look.rows),
        ]

    def _filled(self, chosen: Candidate | None, columns: tuple[str, ...]) -> list[Any]:
        """The mapping's fields, as a candidate fills them."""
        mapping = chosen.mapping if chosen else None
        form, roles = (mapping.format, mapping.data_format.roles) if mapping else (_NONE, ())
        return [
            form,
            *(
                gr.Dropdown(
                    choices=[_NONE, *columns],
                    value=mapping.columns.get(role, _NONE) if mapping else _NONE,
                    visible=role in roles,
                )
                for role in self._columns
            ),
            *(mapping.templates.get(role, "") if mapping else "" for role in self._templates),
            mapping.separator if mapping else "",
            mapping.special_tokens if mapping else False,
        ]

    def _others(self) -> gr.Dropdown:
        return gr.Dropdown(
            choices=[_NONE, *(row.name for row in self._workbench.registry.all(Dataset) if row.mapping)]
        )

    def _as_another(self, name: str) -> list[Any]:
        if not name:
            return [gr.skip()] * (1 + len(self._columns) + len(self._templates) + 2)
        return self._choose([self._workbench.registry.find(Dataset, name).mapping], 0)

    def _choose(self, candidates: list[dict[str, Any]], number: int) -> list[Any]:
        mapping = DataMapping.parse(candidates[number])
        roles = mapping.data_format.roles
        return [
            mapping.format,
            *(
                gr.Dropdown(value=mapping.columns.get(role, _NONE), visible=role in roles)
                for role in self._columns
            ),
            *(mapping.templates.get(role, "") for role in self._templates),
            mapping.separator,
            mapping.special_tokens,
        ]

    def _show_roles(self, form: str) -> list[Any]:
        roles = DATA_FORMATS.get(form).roles if form else ()
        return [gr.Dropdown(visible=role in roles) for role in self._columns]

    def _show(self, files: list[str] | None, origin: str, *values: Any) -> str:
        """The first rows as the fields say, or what is still missing in them."""
        try:
            path, mapping = _first(files, origin), self._mapping_of(values)
            return preview_html(look_at(path, mapping).rows) if path and mapping else ""
        except InvalidInput as error:
            return f"<p class='hint'>{escape(str(error))}</p>"

    def _mapping_of(self, values: tuple[Any, ...]) -> DataMapping | None:
        """The mapping that the fields describe; None while no format is chosen. Raises InvalidConfig."""
        name, rest = values[0], list(values[1:])
        if not name:
            return None
        form = DATA_FORMATS.get(name)
        columns = {
            role: value
            for role, value in zip(self._columns, rest, strict=False)
            if value and role in form.roles
        }
        rest = rest[len(self._columns) :]
        templates = {
            role: text
            for role, text in zip(self._templates, rest, strict=False)
            if text and role in TEMPLATED
        }
        separator, special = rest[len(self._templates) :]
        return DataMapping(
            name,
            columns,
            templates,
            separator if form.separated else "",
            bool(special) and form.may_hold_special_tokens,
        )

    def _import(
        self,
        files: list[str] | None,
        origin: str,
        name: str,
        kind: str,
        share: float,
        count: float,
        seed: float,
        stratify: bool,
        validation: list[str] | None,
        near: bool,
        *values: Any,
    ) -> tuple[object, ...]:
        given = list(files or []) or ([origin.strip()] if origin.strip() else [])
        if not given:
            raise refusal("Choose a file to upload first.")
        if kind == "file" and not validation:
            raise refusal("Upload the validation file, or choose another way to keep validation rows.")
        mapping = self._mapping_of(values)
        path = _first(files, origin)
        if path is not None and mapping is None:
            look_at(path).detection.require(path.name)  # says what there is to choose
        assert kind in KINDS
        split = Split(
            kind,
            (share or 0) / 100 if kind == "share" else 0.05,
            int(count or 0),
            int(seed or 0),
            bool(stratify),
        )
        request = ImportRequest(
            given,
            name.strip(),
            validation if kind == "file" and validation else (),
            mapping.to_dict() if mapping else None,
            split,
            near,
        )
        self._workbench.datasets.import_files(request)
        inform("The data set appears below when it has been read and checked.", "Importing")
        return None, "", "", gr.Column(visible=False), request.name or request.default_name


def format_choices() -> list[tuple[str, str]]:
    """What the mapping's form offers as formats: (as it is shown, its name), and none to begin with."""
    return [(_NONE, _NONE), *((one.label, one.name) for one in DATA_FORMATS.all().values())]


def _recognised() -> str:
    return ", ".join(one.said or f"**{one.label}**" for one in DATA_FORMATS.all().values())


def _split_parts(kind: str) -> list[Any]:
    """Which fields a way of splitting needs: share, count, seed, stratify, validation file."""
    drawn = kind in ("share", "count")
    return [
        gr.Number(visible=kind == "share"),
        gr.Number(visible=kind == "count"),
        gr.Number(visible=drawn),
        gr.Checkbox(visible=drawn),
        gr.File(visible=kind == "file"),
    ]


def _first(files: list[str] | None, origin: str) -> Path | None:
    """The file to look at: the first uploaded, or the one at a path.

    None for a hub id, which is not fetched to look at it.
    """
    if files:
        return Path(files[0])
    path = Path(origin.strip()).expanduser()
    return path if origin.strip() and path.is_file() else None
