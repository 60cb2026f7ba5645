"""What handlers give the page: one value for each output.

Gradio refuses too few values for several outputs, but takes a list for the one value of a single output, and
an update inside a list for a value: what was meant to appear then never does, and nobody is told.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.utils import is_prop_update

_HOLD_LISTS = (gr.BrowserState, gr.Chatbot, gr.CheckboxGroup, gr.File, gr.State)


class WrongAnswer(TypeError):
    """A handler gave something else than one value for each of its outputs."""


def check_answers(page: gr.Blocks) -> None:
    """Have every handler of a page that is built looked at whenever it answers."""
    for event in page.fns.values():
        if event.fn is not None:
            event.fn = checked(event.fn, event.outputs)


def checked(handler: Callable[..., Any], outputs: Sequence[Block]) -> Callable[..., Any]:
    """The handler, which raises WrongAnswer where its answer does not fit `outputs`."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streaming(*values: Any, **named: Any) -> Iterator[Any]:
            for answer in handler(*values, **named):
                answers(handler, outputs, answer)
                yield answer

        return streaming

    @functools.wraps(handler)
    def once(*values: Any, **named: Any) -> Any:
        answer = handler(*values, **named)
        answers(handler, outputs, answer)
        return answer

    return once


def answers(handler: Callable[..., Any], outputs: Sequence[Block], answer: Any) -> list[Any]:
    """The answer as one value for each output. All of several may be skipped at once, or be given by output.

    Raises WrongAnswer.
    """
    found = _one_each(outputs, answer)
    if len(found) != len(outputs) or not all(map(_can_be, outputs, found)):
        wanted = ", ".join(
            f"{type(one).__name__} {getattr(one, 'label', None) or ''}".strip() for one in outputs
        )
        name = getattr(handler, "__qualname__", repr(handler))
        raise WrongAnswer(f"{name} gives {str(answer)[:300]} for {len(outputs)} outputs: {wanted or 'none'}.")
    return found


def _one_each(outputs: Sequence[Block], answer: Any) -> list[Any]:
    if isinstance(answer, dict) and answer and all(isinstance(key, Block) for key in answer):
        return [answer.get(one, gr.skip()) for one in outputs]  # Gradio itself refuses others than outputs
    if not outputs:
        return [] if answer is None else [answer]
    if len(outputs) == 1:
        return [answer]
    if isinstance(answer, dict) and answer == gr.skip():
        return [answer] * len(outputs)
    return list(answer) if isinstance(answer, (list, tuple)) else [answer]


def _can_be(output: Block, value: Any) -> bool:
    """Whether a value can be what an output becomes: no list, unless it holds lists, and none of updates."""
    if not isinstance(value, (list, tuple)):
        return True
    several = isinstance(output, _HOLD_LISTS) or bool(getattr(output, "multiselect", False))
    return several and not any(isinstance(one, Block) or is_prop_update(one) for one in value)
