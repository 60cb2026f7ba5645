"""The fields that say how conversations are fitted to a base's chat template, and what that is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from core.data.chat_options import AS_THEY_ARE, ChatOptions, parsed_kwargs


class ChatFields:
    """Lays itself out where it is made. `every` are its fields, in the order of their values."""

    def __init__(self) -> None:
        with gr.Row():
            self._fold = gr.Checkbox(
                False,
                label="System turn into the first question",
                info="Where a base's chat template has no system turn; other bases keep it apart.",
            )
            self._join = gr.Checkbox(
                False,
                label="Join neighbouring turns of one speaker",
                info="For chat templates that demand that speakers take turns.",
            )
        self._kwargs = gr.Textbox(
            value="",
            label="Given to the chat template, as JSON",
            info='Such as {"enable_thinking": false}. What a row gives itself goes before it.',
        )
        self.every: list[Component] = [self._fold, self._join, self._kwargs]


def chat_asked(values: Sequence[Any]) -> ChatOptions:
    """What the fields' values ask for. Raises InvalidConfig."""
    fold, join, given = values
    return ChatOptions(bool(fold), bool(join), parsed_kwargs(given or ""))


def chat_values(chat: ChatOptions = AS_THEY_ARE) -> list[Any]:
    """The fields' values for these options."""
    given = chat.to_dict()["template_kwargs"]
    return [chat.fold_system, chat.join_turns, json.dumps(given, ensure_ascii=False) if given else ""]
