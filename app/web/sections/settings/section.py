"""Settings: what people set for this home folder; the same stands in its settings.toml."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.workbench import Workbench
from app.shared.user_settings import Preference, Preferences
from app.web.api.api_key import api_key
from app.web.parts.options_form import option_field
from app.web.parts.shell import QUIET_QUEUED, Shell, inform, told
from app.web.sections.settings.machines_view import KEY, key_field, key_update, machines_view
from app.web.sections.settings.storage_view import storage_view
from core.errors import InvalidConfig

TAB, TITLE = "settings", "Settings"
_MACHINES = "Several cards and machines"
_CHOSEN = (gr.Checkbox, gr.Dropdown)
_GROUPS = (
    ("Look", ("theme", "density", "notifications")),
    ("Work", ("default_base", "offline", "quota")),
    ("Window and address", ("on_close", "host", "port", "api_key")),
    (_MACHINES, ("spread", "join_address", KEY)),
)


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    options = {one.name: one for one in Preferences.options()}
    fields: dict[str, Any] = {}
    refused: dict[str, gr.HTML] = {}  # beside each field that takes what is typed
    fault = gr.HTML()
    with gr.Row(elem_classes="settings-groups"):
        for title, names in _GROUPS:
            with gr.Column(min_width=260):
                gr.HTML(f"<h2 class='group-title'>{escape(title)}</h2>")
                for name in names:
                    fields[name] = _field(name, option_field(options[name]))
                    if not isinstance(fields[name], _CHOSEN):
                        refused[name] = gr.HTML(elem_classes="field-fault")
                if title == _MACHINES:
                    machines_view(shell)
    about = gr.HTML()
    storage_view(shell)
    shown = gr.State({})

    def show(before: dict[str, Any]) -> tuple[object, ...]:
        try:
            now = {one.name: one for one in workbench.preferences.all()}
        except InvalidConfig as error:
            return (
                before,
                f"<p class='fault' role='alert'>{escape(str(error))}</p>",
                about_html(workbench, ()),
                *([gr.skip()] * (len(fields) + len(refused))),
            )
        states = {name: [one.value, one.overruled, list(one.choices)] for name, one in now.items()}
        updates = [
            gr.skip() if states[name] == before.get(name) else _update(field, now[name])
            for name, field in fields.items()
        ]
        # A field that gets what counts holds nothing any more that was refused.
        gone = [gr.skip() if states[name] == before.get(name) else "" for name in refused]
        return states, "", about_html(workbench, list(now.values())), *updates, *gone

    shell.refresh(show, [shown], [shown, fault, about, *fields.values(), *refused.values()])
    for name, field in fields.items():
        typed = name in refused
        save = functools.partial(_save_typed if typed else _save, workbench, name)
        events = [field.submit, field.blur] if typed else [field.input]
        shell.soon(
            gr.on(
                events,
                told(save),
                field,
                refused.get(name),
                trigger_mode="always_last",
                concurrency_id="settings",
                **QUIET_QUEUED,
            )
        )


def _field(name: str, made: Component) -> Component:
    """A choice among the bases that are here is a dropdown, though what is stored is text."""
    if name == KEY:
        return key_field(made)
    if name != "default_base":
        return made
    label, info = made.label, made.info
    made.unrender()
    return gr.Dropdown([("None", "")], value="", label=label, info=info, interactive=True)


def _update(field: Component, one: Preference) -> object:
    if one.name == KEY:
        return key_update(one)
    about: dict[str, Any] = {"value": one.value, "interactive": not one.overruled}
    if isinstance(field, gr.Dropdown):
        about["choices"] = [(choice or "None", choice) for choice in one.choices]
    return type(field)(**about)


def _save_typed(workbench: Workbench, name: str, value: object) -> str:
    """Set one; returns what to say beside its field, where what was typed stays, if that is refused."""
    try:
        _save(workbench, name, value)
    except InvalidConfig as error:
        return refused_html(workbench.preferences.find(name), str(error))
    return ""


def _save(workbench: Workbench, name: str, value: object) -> None:
    """Set one, if it is another value than what counts now; a key that nothing was typed for stays."""
    now = workbench.preferences.find(name)
    if (value is None and now.option.kind is str) or (name == KEY and not value) or now.value == value:
        return
    workbench.preferences.change({name: value})
    inform(f"{now.option.label} is set.", "Saved")


def refused_html(one: Preference, why: str) -> str:
    """Why what was typed is not set, with the label that the page has for it, and what it stays at."""
    inner = f"{one.name} "
    said = f"{one.option.label} {why.removeprefix(inner)}" if why.startswith(inner) else why
    value = f"{one.told:g}" if one.option.kind is float else str(one.told)
    stays = f"at {value} {one.option.unit}".rstrip() if value else "empty"
    return f"<p class='fault' role='alert'>Not set: {escape(said)} It stays {escape(stays)}.</p>"


def about_html(workbench: Workbench, preferences: Sequence[Preference]) -> str:
    """Where this stands, and what is given from outside."""
    settings = workbench.settings
    lines = [
        f"Home folder: <code>{escape(str(settings.home))}</code>.",
        f"The same stands in <code>{escape(str(settings.settings_file))}</code>, which may be edited.",
        "Other programs reach the models under <code>/v1</code> of this page's address, in OpenAI's form, "
        f"and under <code>/api</code> in Ollama's, with the key {_key(workbench)}.",
        "Another device opens the page with the address that <code>lora-workbench address</code> prints.",
    ]
    lines += [
        f"{escape(one.option.label)} is given by the {escape(one.source)}, which counts before the file."
        for one in preferences
        if one.overruled
    ]
    return "".join(f"<p class='hint'>{line}</p>" for line in lines)


def _key(workbench: Workbench) -> str:
    """The key of the API; a dash where what is set wrongly is told beside it."""
    try:
        return f"<code>{escape(api_key(workbench.settings, workbench.preferences))}</code>"
    except InvalidConfig:
        return "–"
