"""How an adapter that spreads its ranks has spread them: a map of each layer's rank over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.chart import chart, drawn
from storage.tables import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_STEPS = 200  # that are drawn; more are thinner than a pixel
_READABLE = 60  # layers that are named at the map's side


def rank_chart() -> gr.HTML:
    """The place of the map; `ranks_drawn` fills it."""
    return chart("Rank of each layer over the steps", elem_classes=["tall"])


def ranks_drawn(workbench: Workbench, run: Run) -> list[object]:
    """The tab, which is there for a run that spreads its ranks, and the map's value."""
    ranks = workbench.registry.measurements.ranks(run.id or 0)
    return [gr.Tab(visible=bool(ranks)), drawn(rank_map(ranks))]


def rank_map(ranks: Mapping[int, Mapping[str, int]]) -> Figure | None:
    """Layers down, steps across, each cell a rank; None where there are none."""
    if not ranks:
        return None
    from plotly.graph_objects import Figure, Heatmap

    every = sorted(ranks)
    steps = sorted({*every[:: -(-len(every) // _MOST_STEPS)], every[-1]})
    layers = list(ranks[steps[0]])
    names, highest = _short(layers), max(ranks[every[0]].values())
    cells = Heatmap(
        z=[[ranks[step].get(layer) for step in steps] for layer in layers],
        x=[str(step) for step in steps],
        y=names,
        zmin=0,
        autocolorscale=True,
        colorbar={"title": "Rank", "dtick": max(1, highest // 8)},
        hovertemplate="%{y}<br>step %{x}: rank %{z}<extra></extra>",
    )
    figure = Figure(cells)
    named = len(layers) <= _READABLE
    figure.update_xaxes(title="Step", type="category", nticks=12)
    figure.update_yaxes(type="category", autorange="reversed", showticklabels=named, ticks="")
    figure.update_layout(margin={"l": 190 if named else 40, "r": 20, "t": 20, "b": 50})
    return figure


def _short(layers: list[str]) -> list[str]:
    """Without what all of them begin with."""
    parts = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    return [".".join(one[shared:]) for one in parts]
