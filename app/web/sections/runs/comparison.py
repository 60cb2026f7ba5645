"""Runs beside each other on the page: a table with what differs marked, and figures of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from app.service.comparing import Compared, Comparison
from app.web.parts.markup import duration, number, state_badge
from app.web.sections.data.charts import INK

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_HEIGHT = 340
_SCALE = [[0.0, "#f97316"], [0.5, "#a78bfa"], [1.0, "#14b8a6"]]  # seen on light and dark; the best is teal


def comparison_html(found: Comparison) -> str:
    """The table, the best run first."""
    if not found.rows:
        return ""
    head = [
        "Run",
        "State",
        *found.differing,
        "Steps",
        "Train loss",
        "Validation",
        "Best validation",
        "Time",
        "Energy",
    ]
    names = "".join(
        f"<th class='{'differs' if name in found.differing else ''}'>{escape(name)}</th>" for name in head
    )
    body = "".join(
        _row(one, found.differing, best=index == 0 and len(found.rows) > 1 and math.isfinite(one.score))
        for index, one in enumerate(found.rows)
    )
    same = ", ".join(
        f"{name} = {_shown(value)}" for name, value in found.same.items() if value not in ("", None)
    )
    caveats = "".join(f"<p class='fault'>{escape(one)}</p>" for one in found.caveats)
    return (
        "<div class='wide'><table class='rows "
        f"compared'><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{caveats}<p class='hint'>The same in all: {escape(same)}</p>"
    )


def _row(one: Compared, differing: Sequence[str], *, best: bool) -> str:
    options = "".join(f"<td class='differs'>{escape(_shown(one.options[name]))}</td>" for name in differing)
    energy = "–" if one.kilowatt_hours is None else f"{one.kilowatt_hours:.4f} kWh"
    figures = [
        f"{one.steps:,}",
        number(one.train_loss),
        number(one.validation_loss),
        number(one.best_validation_loss),
        duration(one.seconds),
        energy,
    ]
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in figures)
    name = f"{one.run.id} · {escape(one.run.name)}{' <b class=best>best</b>' if best else ''}"
    return f"<tr><td>{name}</td><td>{state_badge(one.run.state)}</td>{options}{cells}</tr>"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def parallel_coordinates(found: Comparison) -> Figure | None:
    """One line a run through what differs to its loss; None if there is nothing to draw."""
    rows = [one for one in found.rows if one.score < float("inf")]
    if len(rows) < 2 or not found.differing:
        return None
    from plotly.graph_objects import Figure, Parcoords  # half a second, not needed before somebody compares

    scores = [one.score for one in rows]
    dimensions = [_dimension(name, [one.options[name] for one in rows]) for name in found.differing]
    lines = {
        "color": scores,
        "colorscale": _SCALE,
        "reversescale": True,
        "showscale": True,
        "colorbar": {"title": "loss"},
    }
    figure = Figure(
        Parcoords(
            line=lines,
            dimensions=[*dimensions, {"label": "loss", "values": scores}],
            labelfont={"color": INK, "size": 12},
            rangefont={"color": "rgba(0,0,0,0)"},
            tickfont={"color": INK, "size": 12, "shadow": "none"},
        )
    )
    return _laid_out(figure)


def _dimension(name: str, values: Sequence[Any]) -> dict[str, Any]:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        ticks = sorted(set(values))
        return {
            "label": name,
            "values": values,
            "tickvals": ticks,
            "ticktext": [_shown(one) for one in ticks],
        }
    kinds = sorted({_shown(value) for value in values})
    return {
        "label": name,
        "values": [kinds.index(_shown(value)) for value in values],
        "tickvals": list(range(len(kinds))),
        "ticktext": kinds,
    }


def heat_map(found: Comparison) -> Figure | None:
    """The lowest loss for each pair of values of the first two options that differ; None if fewer do."""
    rows = [one for one in found.rows if one.score < float("inf")]
    if len(rows) < 2 or len(found.differing) < 2:
        return None
    from plotly.graph_objects import Figure, Heatmap

    across, down = found.differing[:2]
    x, y = (_in_order({one.options[name] for one in rows}) for name in (across, down))
    lowest: dict[tuple[Any, Any], float] = {}
    for one in rows:
        place = (one.options[across], one.options[down])
        lowest[place] = min(one.score, lowest.get(place, float("inf")))
    grid = [[lowest.get((column, line)) for column in x] for line in y]
    texts = [["" if cell is None else f"{cell:.4f}" for cell in line] for line in grid]
    cells = Heatmap(
        z=grid,
        x=[_shown(one) for one in x],
        y=[_shown(one) for one in y],
        colorscale=_SCALE,
        reversescale=True,
        text=texts,
        texttemplate="%{text}",
        textfont={"color": "#0b1220", "size": 13},
        colorbar={"title": "loss"},
    )
    figure = Figure(cells)
    figure.update_xaxes(title=across, type="category", showgrid=False)
    figure.update_yaxes(title=down, type="category", showgrid=False)
    return _laid_out(figure)


def _in_order(values: set[Any]) -> list[Any]:
    return sorted(
        values, key=lambda one: (isinstance(one, str), one if isinstance(one, (int, float)) else 0, str(one))
    )


def _laid_out(figure: Figure) -> Figure:
    return figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        height=_HEIGHT,
        margin={"l": 70, "r": 40, "t": 50, "b": 50},
    )
