"""A lineage drawn as boxes and lines; each box leads to what it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from app.service.lineage import Lineage, Node
from app.web.parts.routes import address

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 190, 46, 56, 14
_MOST_SHOWN = 8
_SECTIONS = {"base": "models", "data": "data", "run": "runs", "adapter": "adapters", "export": "export"}


def lineage_svg(found: Lineage) -> str:
    """Columns from left to right: what it was made of, the adapter, what was made of it."""
    columns = [*found.before, [found.adapter]]
    if found.after:
        more = len(found.after) - _MOST_SHOWN
        columns.append(
            [*found.after[:_MOST_SHOWN], *([Node("more", f"and {more} more")] if more > 0 else [])]
        )
    height = max(len(column) for column in columns) * (_HEIGHT + _GAP_Y) - _GAP_Y
    width = len(columns) * (_WIDTH + _GAP_X) - _GAP_X
    places = [_places(column, at, height) for at, column in enumerate(columns)]
    lines = [_line(start, end) for left, right in pairwise(places) for start in left for end in right]
    boxes = [
        _box(node, place, node is found.adapter)
        for column, spots in zip(columns, places, strict=True)
        for node, place in zip(column, spots, strict=True)
    ]
    label, box = f"Lineage of {escape(found.adapter.name)}", f"-1 -1 {width + 2} {height + 2}"
    drawn = f"{''.join(lines)}{''.join(boxes)}"
    size = f"width='{width + 2}' height='{height + 2}'"
    return (
        f"<div class='wide'><svg class='lineage' role='group' aria-label='{label}' viewBox='{box}' "
        f"{size}>{drawn}</svg></div>"
    )


Place = tuple[float, float]


def _places(column: Sequence[Node], at: int, height: float) -> list[Place]:
    used = len(column) * (_HEIGHT + _GAP_Y) - _GAP_Y
    return [
        (at * (_WIDTH + _GAP_X), (height - used) / 2 + row * (_HEIGHT + _GAP_Y)) for row in range(len(column))
    ]


def _line(start: Place, end: Place) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH, start[1] + _HEIGHT / 2, end[0], end[1] + _HEIGHT / 2
    middle = (x1 + x2) / 2
    return f"<path d='M{x1:g},{y1:g} C{middle:g},{y1:g} {middle:g},{y2:g} {x2:g},{y2:g}'/>"


def _box(node: Node, place: Place, own: bool) -> str:
    """A box, which is a link where what it stands for is still here."""
    x, y = place
    kind = f"{node.kind}: {node.note}" if node.note else node.kind
    drawn = (
        f"<g class='{'own' if own else ''}'><title>{escape(node.kind)} {escape(node.name)} "
        f"{escape(node.note)}</title>"
        f"<rect x='{x:g}' y='{y:g}' width='{_WIDTH}' height='{_HEIGHT}' rx='8'/>"
        f"<text x='{x + 10:g}' y='{y + 19:g}'>{escape(_short(node.name, 24))}</text>"
        f"<text class='kind' x='{x + 10:g}' y='{y + 36:g}'>{escape(_short(kind, 30))}</text></g>"
    )
    if own or not node.key:
        return drawn
    return f"<a class='go' href='{escape(address(_SECTIONS[node.kind], name=node.key))}'>{drawn}</a>"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
