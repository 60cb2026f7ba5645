"""A Plotly figure in the page's own look. The browser brings Plotly's script when the first one is shown."""

from __future__ import annotations

from typing import Any

import gradio as gr
import plotly.graph_objects as go

from app.web.parts.scripts import script


def chart(title: str, **about: Any) -> gr.HTML:
    """A place for a figure; its value comes from `drawn`, and it takes no room without one."""
    classes = ["chart", *about.pop("elem_classes", [])]
    return gr.HTML(
        value="",
        label=title,
        html_template="<div class='chart-slot'></div>",
        js_on_load=script("chart.js", title=title),
        elem_classes=classes,
        **about,
    )


def drawn(figure: go.Figure | None) -> str:
    """A figure as the value of a chart; fonts, colours of lines and grid are the page's."""
    if figure is None:
        return ""
    figure.layout.template = None
    return str(figure.to_json())
