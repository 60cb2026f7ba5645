"""Bringing data in on the page: upload, what was detected, the mapping, the first rows, Import."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app.shared.data_import import ImportRequest, look_at
from app.web.parts.shell import FOLLOWING, QUIET, WORKING, Handler, Shell, inform, refusal, told
from app.web.sections.data.chat_fields import ChatFields, chat_asked
from app.web.sections.data.data_markup import look_html, preview_html
from app.web.sections.data.mapping_fields import NONE, MappingFields
from app.web.sections.data.split_fields import SplitFields, split_asked
from core.data.formats import DATA_FORMATS
from core.data.mapping import DataMapping
from core.data.zipped import readable
from core.errors import InvalidInput
from core.hub_address import DATA_SET, hub_id_in
from storage.tables import Dataset

_PAIRS = "prompt and completion"
"""The format that is begun with where nothing is known of the columns: most have one that asks and one that
answers."""


class ImportPanel:
    """Lays itself out where it is made, from the upload down to its button."""

    def __init__(self, shell: Shell) -> None:
        self._shell, self._workbench = shell, shell.workbench
        self.sample = gr.Button("Use the sample conversations", size="md", scale=0)
        self._upload = gr.File(
            label="Or upload files of rows",
            file_types=list(readable()),
            file_count="multiple",
            height=120,
            elem_id="data-upload",
        )
        self._origin = gr.Textbox(
            value="",
            label="Or a path, or a data set of the hub",
            info="/data/rows.jsonl, a folder of such files, or owner/name, such as openai/gsm8k.",
        )
        self._hint = gr.Markdown(
            "JSONL, JSON, CSV, TSV, Parquet, plain text, also packed with gzip, or a zip of them. "
            f"Recognised: {_recognised()}. Any other columns can be mapped.",
            elem_classes="quiet",
        )
        with gr.Column(visible=False, elem_id="look") as self._looked:
            self._found = gr.HTML()
            self._candidates: gr.State = gr.State([])
            self._choice = gr.Radio([], label="What do the columns mean?", visible=False, interactive=True)
            with gr.Accordion("Mapping: which column is what", open=False) as self._mapping:
                self._fields = MappingFields()
        with gr.Accordion("Validation rows and checks", open=False):
            self._split = SplitFields()
        with gr.Accordion("Conversations and chat template", open=False):
            self._chat = ChatFields()
        self._name = gr.Textbox(value="", label="Name", info="Empty: taken from the file.")
        with gr.Column(visible=False, elem_id="first-rows") as self._first_rows:
            self._preview = gr.HTML()
        with gr.Row(elem_classes="sheet-foot"):
            self.add = gr.Button("Import", variant="primary", size="md", scale=0)
        self._bind()

    @property
    def importing(self) -> tuple[Handler, list[Component]]:
        """The handler of the button, with its inputs; it gives the name of the data set that is to come."""
        inputs = [self._upload, self._origin, self._name]
        inputs += [*self._split.every, *self._chat.every, *self._fields.every]
        return told(self._import), inputs

    def _bind(self) -> None:
        fields = self._fields.every
        self._shown = [
            self._looked,
            self._first_rows,
            self._hint,
            self._found,
            self._candidates,
            self._choice,
            self._mapping,
            *fields,
            self._preview,
        ]
        gr.on(
            [self._upload.change, self._origin.submit, self._origin.blur],
            told(self._look),
            [self._upload, self._origin],
            self._shown,
            trigger_mode="always_last",
            **WORKING,
        )
        like, form = self._fields.like, self._fields.format
        filled = (
            self._choice.input(self._choose, [self._candidates, self._choice], fields, **FOLLOWING),
            like.input(told(self._as_another), like, fields, **FOLLOWING),
        )
        self._shell.refresh(self._others, [], [like])
        form.input(self._fields.roles_shown, form, list(self._fields.columns.values()), **FOLLOWING)
        shown = self._show, [self._upload, self._origin, *fields], self._preview
        changes = [field.change for field in fields]  # type: ignore[attr-defined]
        # Of fields that are filled together one tells its change before the next has its value, and one that
        # comes into sight with its value tells none; so all are asked once more when they are in place.
        for event in (gr.on(changes, *shown, **FOLLOWING), *filled):
            event.then(*shown, **QUIET)

    def empty(self, event: Any) -> None:
        """After an event that went well, be ready for the next."""
        given = [self._upload, self._origin, self._name]
        emptied = event.success(lambda: (None, "", ""), None, given, **QUIET)
        emptied.then(told(self._look), given[:2], self._shown, **QUIET)

    # Handlers.

    def _look(self, files: list[str] | None, origin: str) -> list[Any]:
        path = _first(files, _alone(files, origin))
        if path is None:
            nothing = [gr.Column(visible=False), gr.Column(visible=False), gr.Markdown(visible=True), "", []]
            hidden = [gr.Radio(choices=[], visible=False), gr.Accordion(open=False)]
            return [*nothing, *hidden, *self._fields.filled(None, ()), ""]
        look = look_at(path)
        candidates = look.detection.candidates
        undecided = look.chosen is None
        choices = [
            (f"{one.mapping.sentence()} ({one.reason})", number) for number, one in enumerate(candidates)
        ]
        mapping = look.chosen.mapping if look.chosen else None
        unknown = undecided and not candidates and not look.detection.preferences
        return [
            gr.Column(visible=True),
            gr.Column(visible=True),
            gr.Markdown(visible=False),
            look_html(look),
            [one.mapping.to_dict() for one in candidates],
            gr.Radio(choices=choices, value=None if undecided else 0, visible=undecided and bool(candidates)),
            gr.Accordion(open=undecided and not candidates),
            *self._fields.filled(mapping, look.detection.columns, _PAIRS if unknown else NONE),
            preview_html(look.rows),
        ]

    def _others(self) -> gr.Dropdown:
        return gr.Dropdown(
            choices=[NONE, *(row.name for row in self._workbench.registry.all(Dataset) if row.mapping)]
        )

    def _as_another(self, name: str) -> list[Any]:
        if not name:
            return [gr.skip()] * len(self._fields.every)
        return self._fields.filled(DataMapping.parse(self._workbench.registry.find(Dataset, name).mapping))

    def _choose(self, candidates: list[dict[str, Any]], number: int) -> list[Any]:
        return self._fields.filled(DataMapping.parse(candidates[number]))

    def _show(self, files: list[str] | None, origin: str, *values: Any) -> str:
        """The first rows as the fields say, or what is still missing in them."""
        try:
            path, mapping = _first(files, origin), self._fields.mapping_of(values)
            return preview_html(look_at(path, mapping).rows) if path and mapping else ""
        except InvalidInput as error:
            return f"<p class='hint'>{escape(str(error))}</p>"

    def _import(self, files: list[str] | None, origin: str, name: str, *values: Any) -> str:
        given = [hub_id_in(one, DATA_SET) for one in [_alone(files, origin).strip()] if one]
        given = given or list(files or [])
        if not given:
            raise refusal("Choose a file to upload first, or give a path.")
        count = len(self._split.every)
        asked, rest = split_asked(values[:count]), values[count:]
        chat = chat_asked(rest[: len(self._chat.every)])
        mapping = self._fields.mapping_of(rest[len(self._chat.every) :])
        path = _first(files, origin)
        if path is not None and mapping is None:
            look_at(path).detection.require(path.name)  # says what there is to choose
        request = ImportRequest(
            given,
            name.strip(),
            asked.validation,
            mapping.to_dict() if mapping else None,
            asked.split,
            asked.near_duplicates,
            chat,
        )
        self._workbench.datasets.import_files(request)
        inform("The data set appears in the list when it has been read and checked.", "Importing")
        return request.name or request.default_name


def _recognised() -> str:
    return ", ".join(one.said or f"**{one.label}**" for one in DATA_FORMATS.all().values())


def _alone(files: list[str] | None, origin: str) -> str:
    """The path or hub id. Raises gr.Error where files were uploaded, too: one would be left aside."""
    if files and origin.strip():
        raise refusal(
            f"Files were uploaded, and {origin.strip()} is named as well: take one of the two away."
        )
    return origin


def _first(files: list[str] | None, origin: str) -> Path | None:
    """What to look at: the first file uploaded, or the file or folder at a path.

    None for a hub id, which is not fetched to look at it.
    """
    if files:
        return Path(files[0])
    path = Path(origin.strip()).expanduser()
    return path if origin.strip() and path.exists() else None
