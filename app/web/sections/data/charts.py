"""Plotly figures of a data set, and the tables that stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK = "#8792a5"  # legible on both backgrounds
_BAR = "#3b82f6"
_HEIGHT = 230


def bars(values: dict[str, int], x_title: str, y_title: str = "rows") -> Figure:
    """One bar a name."""
    return _figure(list(values), list(values.values()), x_title, y_title)


def histogram(
    bins: Sequence[Sequence[float]], x_title: str, y_title: str = "rows", marked: float | None = None
) -> Figure:
    """Bars from [from, to, count] bins, with a line at `marked`."""
    figure = _figure([(a + b) / 2 for a, b, _ in bins], [count for *_, count in bins], x_title, y_title)
    figure.update_traces(
        width=[b - a for a, b, _ in bins],
        customdata=[[a, b] for a, b, _ in bins],
        hovertemplate="%{customdata[0]:,.3~g} to %{customdata[1]:,.3~g}: %{y:,}<extra></extra>",
    )
    if marked is not None and bins and marked <= bins[-1][1]:
        figure.add_vline(x=marked, line_dash="dot", line_color="#d97706")
    return figure


def _figure(x: list[Any], y: list[Any], x_title: str, y_title: str) -> Figure:
    from plotly.graph_objects import Bar, Figure  # half a second, not needed before somebody looks

    figure = Figure(Bar(x=x, y=y, marker_color=_BAR))
    axis = {"gridcolor": "rgba(135,146,165,.25)", "zeroline": False}
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        height=_HEIGHT,
        bargap=0.08,
        margin={"l": 48, "r": 12, "t": 12, "b": 44},
        xaxis={**axis, "title": x_title},
        yaxis={**axis, "title": y_title},
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
