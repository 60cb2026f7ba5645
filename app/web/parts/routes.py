"""Addresses of the page: a section, and what is chosen or wished in it; assets/frame.js follows them."""

from __future__ import annotations

import time
from html import escape
from urllib.parse import urlencode

import gradio as gr

from app.web.parts.scripts import script

_GO = "watch('value', () => { if (props.value) window.workbench.go(props.value); });"


def address(section: str, **about: object) -> str:
    """The address of a section: `name` is what is chosen in it, anything else a wish that it knows."""
    return "?" + urlencode({"section": section} | {key: str(value) for key, value in about.items()})


def link(text: str, section: str, **about: object) -> str:
    """A link to a section as HTML."""
    return f"<a class='go' href='{escape(address(section, **about))}'>{escape(text)}</a>"


def there(section: str, **about: object) -> str:
    """What a handler gives `Shell.go` to lead there, also twice in a row."""
    return address(section, **about, at=time.time())


def router() -> gr.HTML:
    """A component that leads to each address that it is given."""
    return gr.HTML(value="", html_template="<i hidden></i>", js_on_load=_GO, elem_classes="unseen")


def wish(section: str, parameter: str) -> gr.HTML:
    """A component that holds what an address wishes of a section under `parameter`, and triggers `submit` for
    each such address.
    """
    return gr.HTML(
        value="",
        html_template="<i hidden></i>",
        js_on_load=script("wish.js", section=section, parameter=parameter),
        elem_classes="unseen",
    )
