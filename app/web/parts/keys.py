"""The sheet that tells the page's keys."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.web.parts.panes import sheet

_KEYS = (
    ("g, then h m d t r a p e s", "Home, Models, Data, Train, Runs, Adapters, Playground, Export, Settings"),
    ("/", "Search the list"),
    ("↑ ↓", "Go through the list; Home and End to its ends"),
    ("Space", "Choose the row; in Runs, add it to the comparison or take it out"),
    ("← →", "Go through the tabs; on the bar beside a list, change its width"),
    ("Enter, Shift+Enter", "In the playground: send, new line"),
    ("1 … 8, t, b, n", "While judging: this one is best, a tie, all bad, the next prompt"),
    ("Esc", "Close a sheet; leave a field; in the playground, stop the answers"),
    ("?", "These keys"),
)


def keys_sheet() -> None:
    """Lay it out; `?` opens it."""
    with sheet("keys", "Keys"):
        rows = "".join(f"<dt><kbd>{escape(keys)}</kbd></dt><dd>{escape(what)}</dd>" for keys, what in _KEYS)
        gr.HTML(f"<dl class='facts'>{rows}</dl>")
