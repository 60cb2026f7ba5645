"""What an evaluation of a classifier has found: figures, a table by label, and the confusions as a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.web.parts.chart import chart, drawn
from app.web.parts.markup import empty, facts
from core.data.labels import REGRESSION
from core.train.label_report import most_confused, table_lines
from storage.tables import LabelTable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_NOTHING = "The table by label comes with the first evaluation; it needs rows that are kept for validation."
_READABLE = 40  # labels that are named at the map's sides


def label_view() -> list[Any]:
    """Places for the figures, the map and the table; `label_values` fills them."""
    figures = gr.HTML()
    confusions = chart(
        "Confusions: rows by their own label and by the one that was told", elem_classes=["tall"]
    )
    return [figures, confusions, gr.HTML()]


def label_values(table: LabelTable | None) -> list[str]:
    """The values of the three places."""
    if table is None:
        return [empty(_NOTHING), "", ""]
    by_label = "" if table.content["problem_type"] == REGRESSION else _by_label(table.content)
    return [_figures(table), drawn(confusion_map(table.content)), by_label]


def _figures(table: LabelTable) -> str:
    """The figures, and what is taken for something else most often."""
    report = table.content
    if report["problem_type"] == REGRESSION:
        figures = [("Mean absolute error", f"{report['mean_error']:.4g}")]
        figures += [("R²", f"{report['r2']:.4f}")] if "r2" in report else []
        return facts(figures, f"At step {table.step}")
    figures = [
        ("Accuracy", f"{report['accuracy']:.1f} %"),
        ("Macro-F1", f"{report['macro_f1']:.1f} %"),
        ("Rows", f"{sum(row[3] for row in report['by_label']):,}"),
    ]
    return f"{facts(figures, f'At step {table.step}')}{_confused(report)}"


def _by_label(report: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(label)}</td>{_share(precision)}{_share(recall)}{_share(f1)}"
        f"<td class='number'>{support:,}</td></tr>"
        for label, precision, recall, f1, support in table_lines(report)
    )
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("Label", "Precision", "Recall", "F1", "Rows"))
    hint = "<p class='hint'>The lowest F1 first. Rows: how many have this label.</p>"
    return (
        f"<div class='card'><h3>By label</h3>{hint}<div class='label-table' tabindex='0' role='region' "
        f"aria-label='By label'><table class='rows'><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _share(value: float) -> str:
    return f"<td class='number'>{100 * value:.1f} %</td>"


def _confused(report: Mapping[str, Any]) -> str:
    pairs = most_confused(report)
    if not pairs:
        return ""
    lines = "".join(
        f"<li><b>{escape(own)}</b> told as <b>{escape(told)}</b>: {count:,}</li>"
        for own, told, count in pairs
    )
    return f"<div class='card'><h3>Most often confused</h3><ul>{lines}</ul></div>"


def confusion_map(report: Mapping[str, Any]) -> Figure | None:
    """Rows by their own label (down) and by the one that was told (across); None where a text has several
    labels, or is told a number.
    """
    counts: Sequence[Sequence[int]] = report.get("confusion", [])
    if not counts:
        return None
    from plotly.graph_objects import Figure, Heatmap

    labels = [str(label)[:40] for label in report["labels"]]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    few = len(labels) <= 15
    cells = Heatmap(
        z=shares,
        x=labels,
        y=labels,
        customdata=counts,
        text=counts if few else None,
        texttemplate="%{text}" if few else None,
        autocolorscale=True,
        zmin=0,
        zmax=1,
        colorbar={"title": "", "tickformat": ".0%"},
        hovertemplate="%{y}<br>told as %{x}<br>%{customdata} rows, %{z:.0%} of this label<extra></extra>",
    )
    figure = Figure(cells)
    named = len(labels) <= _READABLE
    axis = {"type": "category", "showticklabels": named, "ticks": ""}
    figure.update_xaxes(title="Told", **axis)
    figure.update_yaxes(title="Own label", autorange="reversed", **axis)
    figure.update_layout(margin={"l": 140, "r": 20, "t": 40, "b": 120 if named else 50})
    return figure
