"""What a browser keeps from one visit to the next."""

from __future__ import annotations

from typing import Any

import gradio as gr

_FIRST: dict[str, Any] = {"data": None, "train": "", "playground": "", "sampling": "", "judge": ""}


def kept_states() -> dict[str, gr.BrowserState]:
    """One for each purpose, by name. They are laid out in the section that the page opens with: Gradio reads
    what was kept when its section is shown, which in another one is after the page has asked for it, and
    beside the sections it mistakes the place of the first.
    """
    return {
        name: gr.BrowserState(first, storage_key=f"lora-workbench-{name}", secret=name)
        for name, first in _FIRST.items()
    }
