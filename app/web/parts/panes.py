"""How a section is laid out: a list beside what is chosen in it, side sheets, and a question before something
is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.web.parts.shell import QUIET, WORKING, refusal, told


@contextmanager
def split(section: str) -> Iterator[None]:
    """A row of two columns, made by `left` and `right`; the bar between them can be moved, and stays so."""
    with gr.Row(elem_id=f"split-{section}", elem_classes="split"):
        yield


@contextmanager
def left() -> Iterator[None]:
    """The column of the list."""
    with gr.Column(elem_classes="pane list-pane", min_width=0):
        yield


@contextmanager
def right() -> Iterator[None]:
    """The column of what is chosen; it scrolls by itself."""
    with gr.Column(elem_classes="pane detail-pane", min_width=0):
        yield


@contextmanager
def bar() -> Iterator[gr.Row]:
    """A line of buttons as wide as their words."""
    with gr.Row(elem_classes="action-bar") as line:
        yield line


@contextmanager
def sheet(key: str, title: str, help: str = "", *, beside: bool = False) -> Iterator[None]:
    """A sheet at the right edge, closed until a button made by `opener` is pressed, or `data-opens='key'` in
    HTML; Escape, its cross or a click beside it close it.

    beside: where there is room, the section is narrower meanwhile, and can be used: a click leaves it open.
    """
    classes = ["sheet", "leaves-room"] if beside else ["sheet"]
    with gr.Column(elem_id=f"sheet-{key}", elem_classes=classes, min_width=0):
        about = f"<p class='hint'>{escape(help)}</p>" if help else ""
        gr.HTML(
            f"<header class='sheet-head'><h2>{escape(title)}</h2>"
            f"<button type='button' data-close aria-label='Close'>✕</button></header>{about}"
        )
        yield


def opener(key: str, text: str, variant: str = "secondary", **about: Any) -> gr.Button:
    """A button that opens the sheet of this key."""
    return gr.Button(
        text,
        variant=variant,  # type: ignore[arg-type]
        size="md",
        scale=0,
        min_width=0,
        elem_classes=[f"opens-{key}", *about.pop("elem_classes", [])],
        **about,
    )


def close_sheet(event: Dependency, key: str) -> None:
    """After an event that went well, close the sheet."""
    event.success(None, None, None, js=f"() => window.workbench.closeSheet('{key}')", **QUIET)


def ask_first(
    key: str,
    text: str,
    question: str,
    remember: Callable[..., Any],
    act: Callable[..., Any],
    inputs: Sequence[Component],
    outputs: Sequence[Component] = (),
    asks: gr.Button | None = None,
    **button: Any,
) -> Dependency:
    """A button that asks before it acts. Returns the event of having acted.

    `remember(*inputs)` is called when the question is put; what it returns is given to `act(remembered,
    *inputs)`, which can refuse where it is about something else by then. asks: the button, where it was laid
    out elsewhere by `opener`, such as in a sheet, which cannot hold another one.
    """
    asked = gr.State(None)
    ask = asks or opener(key, text, variant="stop", **button)
    with sheet(key, text.removesuffix(" …")):
        gr.HTML(f"<p class='lead'>{escape(question)}</p>")
        with bar():
            yes = gr.Button(f"{text.removesuffix(' …')} it", variant="stop", size="md", scale=0)
            gr.Button("Keep it", size="md", scale=0).click(
                None, None, None, js="() => window.workbench.closeSheet()", **QUIET
            )
    ask.click(told(remember), list(inputs), asked, **QUIET)
    done = yes.click(told(act), [asked, *inputs], list(outputs) or None, **WORKING)
    close_sheet(done, key)
    return done


def require_same(name: str, asked: int | None, now: int | None) -> None:
    """Refuse to do to what is called `name` now what was asked about another that had the name."""
    if now != asked:
        raise refusal(f"{name} is another one by now than the one you were asked about; look at it first.")
