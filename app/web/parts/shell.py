"""What every tab shares: the service, the signal that something changed, and how a handler refuses."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from gradio.events import Dependency

from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.errors import USER_ERRORS
from app.web.parts.answers import answers

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[..., Any]
Choices = Sequence[str] | Sequence[tuple[str, Any]]
FIRST = object()
"""Stands for whatever comes first."""
CURRENT = object()
"""Stands for the current choice."""
_AGAIN = " seen at "
_READ_SECONDS = 6

log = logging.getLogger("page")


@dataclass(frozen=True)
class Refresh:
    """One handler that brings components up to date."""

    handler: Handler
    inputs: list[Component]
    outputs: list[Block]

    def answer(self, given: Mapping[Block, Any]) -> list[Any]:
        """What becomes of each output. Raises WrongAnswer."""
        return answers(self.handler, self.outputs, self.handler(*[given[one] for one in self.inputs]))


def _news(refresh: Refresh, given: Mapping[Block, Any]) -> dict[Block, Any]:
    """What changes on the page. What cannot be shown, as it went in the meantime, keeps nothing else back.

    A state that stays as it was is not news: somebody may have pressed a button that sets it while this was
    looked up, and would be answered with what was before.
    """
    try:
        answer = refresh.answer(given)
    except (*USER_ERRORS, OSError) as error:
        log.warning("a part of the page is not up to date", exc_info=error)
        return {}
    return {
        one: value
        for one, value in zip(refresh.outputs, answer, strict=True)
        if value != gr.skip() and not (isinstance(one, gr.State) and one in given and value == given[one])
    }


def count_of(changed: str) -> str:
    """The change count that a section has last seen."""
    return changed.partition(_AGAIN)[0]


@dataclass(frozen=True)
class Shell:
    """The page around the tabs."""

    workbench: Workbench
    page: gr.Blocks
    changed: gr.State
    """The registry's change count as this section has last seen it, and what made it look again between two
    counts; while it is closed it may stay behind.
    """
    go: gr.HTML
    """Given an address by `there`, leads to it."""
    kept: Mapping[str, gr.BrowserState] = field(default_factory=dict)
    """What the browser keeps, by name; see kept.py."""
    triggers: list[Any] = field(default_factory=list)
    """What brings this section up to date beside the registry's changes, such as a choice in its list."""
    refreshes: list[Refresh] = field(default_factory=list)
    """What follows the registry in this section, until follow() binds it."""

    def refresh(self, handler: Handler, inputs: Sequence[Component], outputs: Sequence[Block]) -> None:
        """Call `handler` when its section is first opened, and when the registry has changed: at once while
        it is open, or when it is opened again.
        """
        self.refreshes.append(Refresh(handler, list(inputs), list(outputs)))

    def decide(self, handler: Handler, inputs: Sequence[Component], outputs: Sequence[Block]) -> None:
        """As refresh, but before all others of the section, which then see what states it has decided."""
        self.refreshes.insert(0, Refresh(handler, list(inputs), list(outputs)))

    def also_after(self, event: Any) -> None:
        """Bring this section up to date after an event as well, at once."""
        self.triggers.append(event)

    def soon(self, event: Dependency) -> None:
        """After an event, whether it went well or not, bring this section up to date.

        All that follows the registry is shown on this one path: answers on two may arrive in the wrong order,
        and what the older one says would stay.
        """
        event.then(self._look_again, None, self.changed, **QUIET_QUEUED)

    def _look_again(self) -> str:
        return f"{self.workbench.changes()}{_AGAIN}{time.time()}"

    def follow(self) -> None:
        """Bind all that refreshes this section, as one event.

        The browser spends its time by the event: it walks all components of the page for each input and
        output of each.
        """
        inputs = list(dict.fromkeys(one for refresh in self.refreshes for one in refresh.inputs))
        outputs = list(dict.fromkeys(one for refresh in self.refreshes for one in refresh.outputs))

        def everything(*values: Any) -> dict[Block, Any]:
            given: dict[Block, Any] = dict(zip(inputs, values, strict=True))
            found: dict[Block, Any] = dict.fromkeys(outputs, gr.skip())
            for refresh in self.refreshes:
                new = _news(refresh, given)
                found |= new
                given |= {one: value for one, value in new.items() if isinstance(one, gr.State)}
            return found

        gr.on(
            [self.changed.change, *self.triggers],
            everything,
            inputs,
            outputs,
            **FOLLOWING,
        )


QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "show_progress_on": [],
    "queue": False,
    "api_visibility": "private",
}
"""For handlers that answer at once and need no spinner."""

QUIET_QUEUED: dict[str, Any] = QUIET | {"queue": True}
"""The same where others listen to a gr.State that changes, since Gradio tells them on that path only; also
for what streams.
"""

FOLLOWING: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
"""For what shows what was chosen: a choice that is made while the answer to another is on its way counts,
too, which Gradio loses otherwise. The handler is not to ask for the event: it would be given the first one's.
"""

WORKING: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
"""For handlers that may take a moment."""


def told(handler: Callable[P, R]) -> Callable[P, R]:
    """Show a refusal as a message on the page, escaped; anything unexpected is left to Gradio and its log."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streaming(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            with _refusals_shown():
                yield from handler(*args, **kwargs)

        return streaming  # type: ignore[return-value]

    @functools.wraps(handler)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _refusals_shown():
            return handler(*args, **kwargs)

    return wrapper


@contextmanager
def _refusals_shown() -> Iterator[None]:
    try:
        yield
    except (*USER_ERRORS, OSError) as error:
        raise refusal(plain_sentence(error)) from None


def refusal(sentence: str) -> gr.Error:
    """The message for something that was not done."""
    return gr.Error(escape(sentence), duration=12, title="Not done", print_exception=False)


def inform(sentence: str, title: str = "Done") -> None:
    """Say beside the page that something was done.

    Gradio would take markup in it, such as a name's, as markup.
    """
    gr.Info(escape(sentence), title=title, duration=_READ_SECONDS)


def choose_from(choices: Choices, current: Any, otherwise: Any = FIRST, shown: Any = CURRENT) -> gr.Dropdown:
    """A dropdown's update: new choices, and `otherwise` in place of a choice that is no longer among them.

    By default that is the first where nothing was chosen yet, and nothing where somebody chose what is gone:
    what is done next is not to be done to another. shown: what the dropdown has, where that is another than
    the current choice, as after a reload.
    """
    values = values_of(choices)
    first = next(iter(values), None) if current in (None, "") else None
    wanted = first if otherwise is FIRST else otherwise
    return offered(choices, current if current in values else wanted, current if shown is CURRENT else shown)


def choose_many(
    choices: Choices, current: Sequence[Any] | None, otherwise: Sequence[Any] = (), shown: Any = CURRENT
) -> gr.Dropdown:
    """The same where several can be chosen: those that are still there, or `otherwise` where none is."""
    values = values_of(choices)
    before = current if shown is CURRENT else shown
    return offered(
        choices, [one for one in current or [] if one in values] or list(otherwise), list(before or [])
    )


def offered(choices: Choices, wanted: Any, current: Any) -> gr.Dropdown:
    """A dropdown's update that sends no choice where the current one stays: the user may have chosen anew
    meanwhile.
    """
    return (
        gr.Dropdown(choices=list(choices))
        if wanted == current
        else gr.Dropdown(choices=list(choices), value=wanted)
    )


def values_of(choices: Choices) -> list[Any]:
    """What is chosen, whatever it is called."""
    return [one[1] if isinstance(one, tuple) else one for one in choices]
