"""The key with which other machines join a run, which the page never gets, and what is typed on them."""

from __future__ import annotations

from html import escape

import gradio as gr
from gradio.components import Component

from app.shared.errors import USER_ERRORS
from app.shared.join_address import is_this_machine_alone, parsed_address
from app.shared.user_settings import Preference
from app.web.parts.markup import command_html
from app.web.parts.scripts import script
from app.web.parts.shell import QUIET_QUEUED, Shell, inform, told

KEY = "join_key"


def key_field(made: Component) -> Component:
    """A field to type a key into, which shows none."""
    made.unrender()
    return gr.Textbox(
        type="password",
        label=made.label,
        info=made.info,
        interactive=True,
        html_attributes=gr.InputHTMLAttributes(autocomplete="new-password"),
    )


def key_update(one: Preference) -> gr.Textbox:
    """The field as it is to be, empty, with whether there is a key."""
    said = "A key is set; type another one to change it" if one.value else "No key is set"
    return gr.Textbox(value="", placeholder=said, interactive=not one.overruled)


def machines_view(shell: Shell) -> None:
    """What to type on the other machines, and a button that takes the key away."""
    workbench = shell.workbench
    others = gr.HTML(js_on_load=script("copy.js"))
    with gr.Row(elem_classes="asked"):
        forget = gr.Button("Forget the key", size="md", scale=0, min_width=140, visible=False)

    def show() -> tuple[str, gr.Button]:
        try:
            key, address = (workbench.preferences.find(name) for name in (KEY, "join_address"))
        except USER_ERRORS:  # the section says so
            return "", gr.Button(visible=False)
        is_set = bool(key.value) and not key.overruled
        return others_html(address.value, has_key=bool(key.value)), gr.Button(visible=is_set)

    @told
    def forget_it() -> None:
        workbench.preferences.reset([KEY])
        inform("No other machine can join any more.", "Key forgotten")

    shell.refresh(show, [], [others, forget])
    shell.soon(forget.click(forget_it, None, None, **QUIET_QUEUED))


def others_html(address: str, *, has_key: bool) -> str:
    """What is typed on each other machine, or what is missing before."""
    if not has_key:
        return _hint("Several machines train one run together (Train, Machines) once a key is set here.")
    if is_this_machine_alone(parsed_address(address)[0]):
        return _hint(f"{escape(address)} is reached from this machine alone: set one that the others reach.")
    typed = f"lora-workbench settings set join_key KEY\nlora-workbench worker --join {address}"
    return command_html("On each other machine", typed)


def _hint(text: str) -> str:
    return f"<p class='hint'>{text}</p>"
