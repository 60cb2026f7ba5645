"""Figures of a data set: bars, with the same numbers as a table folded away below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.web.parts.chart import chart, drawn

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_INK = "#8792a5"  # legible on both backgrounds


@dataclass(frozen=True)
class Part:
    """A figure, and its numbers."""

    figure: Figure
    head: tuple[str, str]
    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class FigurePlaces:
    """Places for figures beside each other; one without a figure takes no room."""

    charts: list[gr.HTML]
    tables: list[gr.HTML]

    @property
    def outputs(self) -> list[gr.HTML]:
        """What `filled` gives values for."""
        return [*self.charts, *self.tables]

    def filled(self, parts: Sequence[Part | None]) -> list[str]:
        """The values of all places, by one part or None for each."""
        return [*(drawn(part.figure if part else None) for part in parts), *map(_folded, parts)]


def figure_places(titles: Sequence[str]) -> FigurePlaces:
    """Lay out a place for each title."""
    charts, tables = [], []
    with gr.Row(elem_classes="figures"):
        for title in titles:
            with gr.Column(elem_classes="figure", min_width=0):
                gr.HTML(f"<h3>{escape(title)}</h3>")
                charts.append(chart(title))
                tables.append(gr.HTML())
    return FigurePlaces(charts, tables)


def _folded(part: Part | None) -> str:
    if part is None:
        return ""
    return f"<details><summary>As a table</summary><div>{table(part.head, part.rows)}</div></details>"


def counted(values: dict[str, int], x_title: str, y_title: str = "rows") -> Part | None:
    """One bar a name; None without any."""
    if not values:
        return None
    rows = [(name, f"{count:,}") for name, count in values.items()]
    figure = _figure(list(values), list(values.values()), x_title, y_title)
    figure.update_xaxes(type="category")
    return Part(figure, (x_title, y_title), rows)


def histogram(bins: Sequence[Sequence[float]], x_title: str, marked: float | None = None) -> Part:
    """Bars from [from, to, count] bins, with a line at `marked`."""
    figure = _figure([(a + b) / 2 for a, b, _ in bins], [count for *_, count in bins], x_title, "rows")
    figure.update_traces(
        width=[b - a for a, b, _ in bins],
        customdata=[[a, b] for a, b, _ in bins],
        hovertemplate="%{customdata[0]:,.3~g} to %{customdata[1]:,.3~g}: %{y:,}<extra></extra>",
    )
    if marked is not None and bins and marked <= bins[-1][1]:
        figure.add_vline(x=marked, line_dash="dot", line_color=_INK, annotation_text="max length")
    rows = [(f"{a:,.3g} to {b:,.3g}", f"{int(count):,}") for a, b, count in bins if count]
    return Part(figure, (x_title, "rows"), rows)


def _figure(x: list[Any], y: list[Any], x_title: str, y_title: str) -> Figure:
    from plotly.graph_objects import Bar, Figure  # half a second, not needed before somebody looks

    figure = Figure(Bar(x=x, y=y))
    figure.update_layout(
        bargap=0.08,
        margin={"t": 8},  # its title stands above it
        xaxis={"title": {"text": x_title}},
        yaxis={"title": {"text": y_title}},
    )
    return figure


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "") -> str:
    """An HTML table; every cell is escaped."""
    if not rows:
        return f"<p class='hint'>{escape(empty)}</p>" if empty else ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table class='rows'><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
