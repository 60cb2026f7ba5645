"""The rail at the left edge: a link to each section, with an icon of one set (24 by 24, lines of 1.7)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

_PATHS = {
    "home": "M4 11l8-7 8 7v8a1 1 0 0 1-1 1h-4v-6h-6v6H5a1 1 0 0 1-1-1z",
    "models": "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
    "data": (
        "M5 6c0-1.7 3.1-3 7-3s7 1.3 7 3-3.1 3-7 3-7-1.3-7-3zm0 0v12c0 1.7 3.1 3 7 3s7-1.3 7-3V6"
        "M5 12c0 1.7 3.1 3 7 3s7-1.3 7-3"
    ),
    "train": "M3 18c3 0 3-11 6-11s3 7 6 7 3-4 6-4M3 21h18",
    "runs": "M4 6h10M4 12h16M4 18h7M18 4v4M8 10v4M15 16v4",
    "adapters": "M12 3l8 4-8 4-8-4zM4 12l8 4 8-4M4 17l8 4 8-4",
    "playground": "M4 5h16v11H9l-5 4zM8 9h8M8 12h5",
    "export": "M12 15V4M8 8l4-4 4 4M5 14v5a1 1 0 0 0 1 1h12a1 1 0 0 0 1-1v-5",
    "settings": "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4M4 12h6M14 12h6M12 10v4",
}


def rail(sections: Sequence[tuple[str, str]]) -> gr.HTML:
    """Links to the sections, each given by its key and its title."""
    links = "".join(
        f"<a href='?section={key}' data-section='{key}' data-title='{escape(title)}'>{icon(key)}"
        f"<span>{escape(title)}</span></a>"
        for key, title in sections
    )
    image = "<img src='/workbench/icon.svg' alt=''>"
    brand = f"<a class='brand' href='?section=home' aria-label='LoRA Workbench'>{image}</a>"
    return gr.HTML(f"<nav id='rail' aria-label='Sections'>{brand}{links}</nav>", elem_id="rail-block")


def icon(section: str) -> str:
    """A section's icon; it takes the colour of the text around it."""
    stroke = "stroke='currentColor' stroke-width='1.7' stroke-linecap='round' stroke-linejoin='round'"
    return (
        f"<svg viewBox='0 0 24 24' width='20' height='20' fill='none' {stroke} aria-hidden='true'>"
        f"<path d='{_PATHS[section]}'/></svg>"
    )
