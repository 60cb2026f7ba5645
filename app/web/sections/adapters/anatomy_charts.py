"""Heat maps of what is inside an adapter: one cell for each layer and module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURES = {
    "Change (‖ΔW‖ / ‖W‖)": ("relative", ".2%"),
    "Rank that holds 99 %": ("rank_held", "d"),
    "Effective rank": ("effective_rank", ".1f"),
    "‖ΔW‖": ("delta_norm", ".3g"),
}
_NUMBER = re.compile(r"\.(\d+)\.")


def anatomy_map(modules: Sequence[Mapping[str, Any]], measure: str) -> Figure:
    """One measure of every layer of an adapter."""
    key, form = MEASURES[measure]
    return _heat_map({one["path"]: one[key] for one in modules}, measure, form)


def similarity_map(similarity: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """How much of the directions two adapters share in each layer, all their directions counted."""
    return _heat_map(
        {path: phi[-1][-1] for path, phi in similarity.items()},
        "Shared directions, by layer and module",
        ".2f",
        highest=1.0,
    )


def similarity_grid(similarity: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """φ(i, j), the mean over all layers with the most common shape: the figure of the LoRA paper's section
    7.2.
    """
    from plotly.graph_objects import Figure, Heatmap

    shapes = [(len(phi), len(phi[0])) for phi in similarity.values()]
    shape = max(set(shapes), key=shapes.count)
    alike = [phi for phi in similarity.values() if (len(phi), len(phi[0])) == shape]
    grid = [[sum(phi[i][j] for phi in alike) / len(alike) for j in range(shape[1])] for i in range(shape[0])]
    cells = Heatmap(
        z=grid,
        x=list(range(1, shape[1] + 1)),
        y=list(range(1, shape[0] + 1)),
        autocolorscale=True,
        zmin=0,
        zmax=1,
        hovertemplate="first %{y} of this, first %{x} of the other<br>φ %{z:.2f}<extra></extra>",
    )
    figure = Figure(cells)
    figure.update_xaxes(title="first j directions of the other")
    figure.update_yaxes(title="first i directions of this")
    return _laid_out(figure, 340, "Shared directions, by how many of each are counted")


def _heat_map(
    values: Mapping[str, float | None], title: str, form: str, highest: float | None = None
) -> Figure:
    from plotly.graph_objects import Figure, Heatmap  # half a second, not needed before somebody looks inside

    layers = sorted({_layer(path) for path in values}, key=lambda one: (one == "", int(one or 0)))
    modules = list(dict.fromkeys(_module(path) for path in values))
    cells = {(_module(path), _layer(path)): value for path, value in values.items()}
    grid = [[cells.get((module, layer)) for layer in layers] for module in modules]
    limits = {} if highest is None else {"zmin": 0, "zmax": highest}
    figure = Figure(
        Heatmap(
            z=grid,
            x=[layer or "–" for layer in layers],
            y=modules,
            autocolorscale=True,
            colorbar={"title": "", "tickformat": form},
            hovertemplate=f"layer %{{x}}, %{{y}}<br>{title} %{{z:{form}}}<extra></extra>",
            xgap=1,
            ygap=1,
            **limits,
        )
    )
    figure.update_xaxes(title="Layer", type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return _laid_out(figure, 110 + 32 * len(modules), title)


def _layer(path: str) -> str:
    found = _NUMBER.search(path)
    return found[1] if found else ""


def _module(path: str) -> str:
    return path.rpartition(".")[2]


def _laid_out(figure: Figure, height: int, title: str) -> Figure:
    return figure.update_layout(height=height, title=title, margin={"l": 90, "r": 20, "t": 36, "b": 48})
