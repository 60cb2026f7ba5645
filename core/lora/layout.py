"""Where each tensor of each layer lies in the one row of numbers that an adapter is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.lora.kinds import AdapterKind, LayerTensor, largest
from core.lora.targets import LayerShapes

HEAD = ""
"""The path under which a head's parameters stand: no module's."""


@dataclass(frozen=True)
class Place:
    """Where one layer's tensor lies in a row: it is the corner of what lies there, and mostly all of it."""

    first: int
    whole: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, rows: Tensor, origin: int = 0) -> Tensor:
        """The tensor as a view [..., *shape] of rows [..., P] that are cut off before number `origin`."""
        first = self.first - origin
        lying = rows[..., first : first + math.prod(self.whole)].view(*rows.shape[:-1], *self.whole)
        return lying if self.shape == self.whole else corner(lying, self.shape)


class Layout:
    """First every layer's tensors of the first trained name, then those of the next; behind the trained ones
    those that stay as they started. So the trained numbers are one piece, and those of a name are one. What
    layers share lies there once.
    """

    def __init__(
        self,
        kind: AdapterKind,
        shapes: LayerShapes,
        ranks: Mapping[str, int],
        *,
        frozen: Collection[str] = (),
        training: bool = True,
        head: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """shapes (in, out) and the ranks that are laid out, both by module path; `frozen` names tensors that
        stay as they started although they could be trained. What only training needs is left out without
        `training`. head: whole parameters that are trained beside the layers, by path; they stand under no
        module, behind the trained ones.
        """
        layers = {path: kind.layer_tensors(shapes[path], ranks[path]) for path in shapes}
        if not training:
            layers = {path: tuple(one for one in own if one.kept) for path, own in layers.items()}
        tensors = [one for own in layers.values() for one in own]
        names = tuple(dict.fromkeys(one.name for one in tensors))
        learning = {one.name for one in tensors if one.trained} - set(frozen)
        own = tuple(name for name in names if name in learning)
        self.trained = (*own, *(head or {}))
        staying = tuple(name for name in names if name not in learning)
        self.size = 0
        self.spans: dict[str, slice] = {}
        """Of each name's numbers in a row."""
        paths = [*shapes, HEAD] if head else shapes
        self.places: dict[str, dict[str, Place]] = {path: {} for path in paths}
        """By module path and name."""
        for name in own:
            self._lay_out_layers(kind, layers, name)
        for name, shape in (head or {}).items():
            self._lay_out(name, {HEAD: LayerTensor(name, shape)}, shared=False)
        for name in staying:
            self._lay_out_layers(kind, layers, name)
        self.trained_size = max((self.spans[name].stop for name in self.trained), default=0)

    def _lay_out_layers(
        self, kind: AdapterKind, layers: Mapping[str, tuple[LayerTensor, ...]], name: str
    ) -> None:
        named = {path: one for path, own in layers.items() for one in own if one.name == name}
        self._lay_out(name, named, shared=name in kind.shared)

    def _lay_out(self, name: str, tensors: Mapping[str, LayerTensor], *, shared: bool) -> None:
        """Give the tensors of one name, by module path, their places behind those that have one."""
        begin, whole = self.size, largest([one.shape for one in tensors.values()])
        for path, one in tensors.items():
            if shared:
                self.places[path][name] = Place(begin, whole, one.shape)
            else:
                self.places[path][name] = Place(self.size, one.shape, one.shape)
                self.size += one.count
        self.size += math.prod(whole) if shared else 0
        self.spans[name] = slice(begin, self.size)

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
    """The view of a tensor's last dimensions where a smaller one with this shape has its numbers."""
    inside: tuple[Any, ...] = (..., *(slice(length) for length in shape))
    return tensor[inside]
