"""Figures of runs that differ in some options: which of these go with a low loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.service.baselines import FULL
from app.service.comparing import Compared, Comparison
from app.web.parts.markup import duration
from app.web.sections.runs.comparison import label_of, plain, shortened

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SCALE = [[0.0, "#f97316"], [0.5, "#a78bfa"], [1.0, "#14b8a6"]]  # seen on light and dark; the best is teal
_MOST_AXES = 8


def parallel_coordinates(found: Comparison) -> Figure | None:
    """One line a run through what differs to its loss; None if there is nothing to draw."""
    rows = _measured(found)
    if len(rows) < 2 or not found.differing:
        return None
    from plotly.graph_objects import Figure, Parcoords  # half a second, not needed before somebody compares

    scores = [one.score for one in rows]
    dimensions = [
        _dimension(name, [one.options[name] for one in rows]) for name in found.differing[:_MOST_AXES]
    ]
    ends = [min(scores), max(scores)]
    loss = {"label": "Loss", "values": scores, "tickvals": ends, "ticktext": [f"{one:.4f}" for one in ends]}
    figure = Figure(
        Parcoords(
            line={"color": scores, "colorscale": _SCALE, "reversescale": True, "showscale": False},
            dimensions=[*dimensions, loss],
            labelside="top",
            rangefont={"color": "rgba(0,0,0,0)"},
            labelfont={"size": 12},
            tickfont={"size": 12, "shadow": "none"},
        )
    )
    return figure.update_layout(
        height=340,
        margin={"l": 80, "r": 80, "t": 76, "b": 24},
        title={"text": "Each run, through its options to its loss", "y": 0.98, "yanchor": "top"},
    )


def _dimension(name: str, values: Sequence[Any]) -> dict[str, Any]:
    label = shortened(label_of(name))
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        ticks = sorted(set(values))
        if len(ticks) > 6:
            ticks = [ticks[0], ticks[len(ticks) // 2], ticks[-1]]
        return {
            "label": label,
            "values": values,
            "tickvals": ticks,
            "ticktext": [plain(name, one) for one in ticks],
        }
    kinds = sorted({plain(name, value) for value in values})
    return {
        "label": label,
        "values": [kinds.index(plain(name, value)) for value in values],
        "tickvals": list(range(len(kinds))),
        "ticktext": [shortened(one) for one in kinds],
    }


def heat_map(found: Comparison) -> Figure | None:
    """The lowest loss for each pair of values of the first two options that differ; None if fewer do."""
    rows = _measured(found)
    if len(rows) < 2 or len(found.differing) < 2:
        return None
    from plotly.graph_objects import Figure, Heatmap

    across, down = found.differing[:2]
    x, y = (_in_order({_comparable(one.options[name]) for one in rows}) for name in (across, down))
    lowest = _lowest(rows, across, down)
    grid = [[lowest.get((column, line)) for column in x] for line in y]
    full = [[f"{plain(across, column)}, {plain(down, line)}" for column in x] for line in y]
    cells = Heatmap(
        z=grid,
        x=list(range(len(x))),
        y=list(range(len(y))),
        customdata=full,
        hovertemplate="%{customdata}: %{z:.4f}<extra></extra>",
        colorscale=_SCALE,
        reversescale=True,
        text=[["" if cell is None else f"{cell:.4f}" for cell in line] for line in grid],
        texttemplate="%{text}",
        textfont={"color": "#0b1220", "size": 13},
        colorbar={"title": {"text": "Loss"}, "thickness": 12},
    )
    figure = Figure(cells)
    for axis, name, values in ((figure.update_xaxes, across, x), (figure.update_yaxes, down, y)):
        words = [shortened(plain(name, one)) for one in values]
        ticks = {"tickvals": list(range(len(values))), "ticktext": words}
        axis(title=label_of(name), showgrid=False, zeroline=False, automargin=True, **ticks)
    return figure.update_layout(height=340, title={"text": "The lowest loss of each pair"})


def quality_against_cost(found: Comparison) -> Figure | None:
    """The lowest validation loss of each run over the parameters that it trains; None unless two differ."""
    rows = [one for one in found.rows if one.parameters and one.best_validation_loss is not None]
    if len({one.parameters for one in rows}) < 2:
        return None
    from plotly.graph_objects import Figure, Scatter

    rows.sort(key=lambda one: one.parameters or 0)
    figure = Figure(
        Scatter(
            x=[one.parameters for one in rows],
            y=[one.best_validation_loss for one in rows],
            customdata=[[one.run.name, duration(one.seconds)] for one in rows],
            hovertemplate="%{customdata[0]}: %{y:.4f}, %{x:,} parameters, %{customdata[1]}<extra></extra>",
            text=[_cost_words(one) for one in rows],
            textposition="top center",
            mode="lines+markers+text",
            line={"color": "#a78bfa", "width": 1, "dash": "dot"},
            marker={"color": [one.best_validation_loss for one in rows], "colorscale": _SCALE, "size": 12}
            | {"reversescale": True},
        )
    )
    figure.update_xaxes(type="log", title="Trained parameters", automargin=True, showgrid=False)
    figure.update_yaxes(title="Best validation loss", automargin=True, zeroline=False)
    return figure.update_layout(height=340, title={"text": "Quality against cost"})


def _cost_words(one: Compared) -> str:
    lora = one.run.config.get("lora", {})
    return "full" if lora.get("kind") == FULL else f"r = {lora.get('rank')}"


def _measured(found: Comparison) -> list[Compared]:
    return [one for one in found.rows if math.isfinite(one.score)]


def _lowest(rows: Sequence[Compared], across: str, down: str) -> dict[tuple[Any, Any], float]:
    lowest: dict[tuple[Any, Any], float] = {}
    for one in rows:
        place = (_comparable(one.options[across]), _comparable(one.options[down]))
        lowest[place] = min(one.score, lowest.get(place, math.inf))
    return lowest


def _comparable(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value


def _in_order(values: set[Any]) -> list[Any]:
    return sorted(
        values, key=lambda one: (isinstance(one, str), one if isinstance(one, (int, float)) else 0, str(one))
    )
