"""Where each tensor of each layer lies in the one row of numbers that an adapter is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.lora.kinds import AdapterKind
from core.lora.targets import LayerShapes


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in a row."""

    first: int
    shape: tuple[int, ...]
    count: int

    def of(self, rows: Tensor, origin: int = 0) -> Tensor:
        """The tensor as a view [..., *shape] of rows [..., P], cut off before number `origin`."""
        first = self.first - origin
        return rows[..., first : first + self.count].view(*rows.shape[:-1], *self.shape)


class Layout:
    """First every layer's tensors of the first trained name, then those of the next; behind the trained ones
    those that stay as they started. So the trained numbers are one piece, and those of a name are one.
    """

    def __init__(self, kind: AdapterKind, shapes: LayerShapes, ranks: Mapping[str, int]) -> None:
        """shapes (in, out) and the ranks that are laid out, both by module path."""
        layers = {path: kind.tensors(*shapes[path], ranks[path]) for path in shapes}
        tensors = [one for tensors in layers.values() for one in tensors]
        self.trained = tuple(dict.fromkeys(one.name for one in tensors if one.trained))
        frozen = tuple(dict.fromkeys(one.name for one in tensors if not one.trained))
        self.spans: dict[str, slice] = {}
        """Of each name's numbers in a row."""
        self.places: dict[str, dict[str, Place]] = {path: {} for path in shapes}
        """By module path and name."""
        self.size = self.trained_size = 0
        for name in (*self.trained, *frozen):
            begin = self.size
            for path, own in layers.items():
                for one in own:
                    if one.name == name:
                        self.places[path][name] = Place(self.size, one.shape, one.count)
                        self.size += one.count
            self.spans[name] = slice(begin, self.size)
            if name in self.trained:
                self.trained_size = self.size

    def views(self, rows: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        """Path, name and view [..., *shape] of every tensor, from the numbers [..., span] of some names."""
        for path, places in self.places.items():
            for name, place in places.items():
                if name in rows:
                    yield path, name, place.of(rows[name], self.spans[name].start)

    def of(self, row: Tensor) -> dict[str, dict[str, Tensor]]:
        """Every tensor of a whole row, or of its trained part, as views by path and name."""
        found: dict[str, dict[str, Tensor]] = {path: {} for path in self.places}
        names = [name for name, span in self.spans.items() if span.stop <= row.shape[-1]]
        for path, name, view in self.views({name: row[..., self.spans[name]] for name in names}):
            found[path][name] = view
        return found


def corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The view of a tensor's last dimensions where one of lower rank, with this shape, has its numbers."""
    inside: tuple[Any, ...] = (..., *(slice(length) for length in shape))
    return tensor[inside]
