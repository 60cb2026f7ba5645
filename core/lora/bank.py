"""Banks: K adapters side by side on the wrapped layers of one model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights
from core.lora.config import LoraConfig
from core.lora.dropout import Dropout, DropoutState
from core.lora.expert_layer import AdaptedLayer, ExpertParameter, ExpertStack
from core.lora.kinds import AdapterKind
from core.lora.kinds.lora import KIND as LORA
from core.lora.layer import Adaptable, LayerStack, LoraEmbedding, plain_weight, where_and_in
from core.lora.layout import HEAD, Layout, corner
from core.lora.on_top import stacked
from core.lora.ops import factor_dtype
from core.lora.stack import AdapterStack, EmbeddingStack
from core.lora.tiles import in_tiles
from core.lora.whole_places import trained_wholes
from core.lora.whole_stack import OwnModule, in_use
from core.lora.wholes import Wholes
from core.lora.wrapping import ModelLayers
from core.options import Config
from core.sending import sent

# Gradients of a stack's slices are slices too, which torch warns costs time. Beside one pass over them it
# does not.
warnings.filterwarnings("ignore", message=".*gradient layout contract.*")

Layers = Mapping[str, AdaptedLayer]
"""The wrapped layers of a model by module path, in the model's order."""


class AdapterBank(nn.Module):
    """K adapters of one kind, side by side on the targeted layers of one model. Several banks can exist; one
    is in use at a time.

    All numbers lie in one tensor, flat [K, P], as core/lora/layout.py says: the trained ones first, for LoRA
    every layer's A and then every layer's B. So one adapter is one row, its gradient is one row, and an
    optimiser's step over it is one kernel.
    """

    def __init__(
        self,
        layers: Layers,
        targets: Sequence[str],
        slots: int,
        rank: int | Mapping[str, int],
        *,
        kind: AdapterKind = LORA,
        dropout: Sequence[float] = (),
        dtype: torch.dtype | None = None,
        trainable: bool = False,
        frozen: Collection[str] = (),
        head: Mapping[str, tuple[int, ...]] | None = None,
        wholes: Wholes | None = None,
    ) -> None:
        """rank is the largest that a slot will hold, for all layers or by module path; dropout is one rate
        for each slot. dtype is factor_dtype() of the base's if nothing is said. `frozen` names tensors that
        get no gradients although the kind can train them. head: the largest shapes of whole parameters, by
        path; a slot's own are the corners of these. With `wholes` they are of the base that `layers`, which
        ModelLayers then are, belong to, and every slot computes with its own; else of classifiers' heads.
        """
        super().__init__()
        self.kind = kind
        self._layers = {path: layers[path] for path in targets}
        self._numbers = {
            path: number for number, path in enumerate(layers)
        }  # in the model, whatever is targeted
        self.slots = slots
        self.ranks = {path: rank if isinstance(rank, int) else rank[path] for path in targets}
        device, self._work_dtype = where_and_in(next(iter(layers.values())).base)
        dtype = dtype or factor_dtype(self._work_dtype)
        self.dropout = DropoutState(torch.tensor(dropout, device=device)) if any(dropout) else None
        shapes = {path: _shape(layer) for path, layer in self._layers.items()}
        padded = {path: _padded(self.ranks[path], device) for path in targets}
        self.head_shapes = dict(head or {})
        self._heads: dict[int, dict[str, nn.Parameter]] = {}
        self.layout = Layout(kind, shapes, padded, frozen=frozen, training=trainable, head=self.head_shapes)
        self.flat = torch.zeros(slots, self.layout.size, device=device, dtype=dtype)
        self.work = (
            self.flat if dtype == self._work_dtype else torch.zeros_like(self.flat, dtype=self._work_dtype)
        )
        self.grad = torch.zeros_like(self.flat[:, : self.layout.trained_size]) if trainable else None
        self.scale = torch.zeros(len(targets), slots, device=device, dtype=torch.float32)
        self._held: dict[int, dict[str, int]] = {}
        self.factors = self._stacks()
        self._modules.update({path.replace(".", "/"): module for path, module in self.factors.items()})
        self.places: dict[str, Adaptable] = dict(self._layers)
        """The modules of the base in which these adapters take part, by path."""
        self.stacks: dict[str, LayerStack] = dict(self.factors)
        """What each of them computes with."""
        self.own: list[OwnModule] = []
        """Those of them that compute with whole weights."""
        if wholes is not None and isinstance(layers, ModelLayers):
            for path, (place, stack) in trained_wholes(self, layers, wholes).items():
                self.places[path], self.stacks[path] = place, stack
            self.own = [one for one in self.stacks.values() if isinstance(one, OwnModule)]

    def _stacks(self) -> dict[str, AdapterStack]:
        """Each layer's tensors as views into the flat tensors."""
        stored, work = self.layout.of(self.flat), self.layout.of(self.work)
        gradients = None if self.grad is None else self.layout.of(self.grad)
        stacks, trained = {}, self.layout.trained
        for index, path in enumerate(self._layers):
            number = self._numbers.get(path, len(self._numbers))  # an embedding is none of the layers
            dropout = Dropout(self.dropout, number) if self.dropout else None
            scale = self.scale[index]
            made = _SPECIAL.get(type(self._layers[path])) or self.kind.stack()
            one = made(self.kind, stored[path], work[path], trained, scale, dropout)
            if gradients is None:
                one.requires_grad_(False)
            else:
                for name, gradient in gradients[path].items():
                    getattr(one, name).grad = gradient
            one.prepare(self._layers[path].base)
            stacks[path] = one
        return stacks

    @contextmanager
    def use(self, slots: Tensor | None = None) -> Iterator[None]:
        """Within the block the model computes with this bank: row group i uses adapter slots[i] (None: all in
        order).
        """
        with in_tiles(slots, self.slots), in_use(self.places, self.stacks, slots, self.own):
            yield

    def is_on(self, module: nn.Module) -> bool:
        """Whether adapters of this bank take part in this module of the base itself."""
        return any(place is module for place in self.places.values())

    def refresh(self) -> None:
        """Bring the working copy up to date after the stored factors have changed."""
        if self.work is not self.flat:
            self.work.copy_(self.flat)

    def initialise(
        self,
        slot: int,
        config: LoraConfig,
        own: Config,
        targets: Sequence[str],
        seed: int,
        head: Mapping[str, Tensor] | None = None,
        below: Mapping[str, LayerFactors] | None = None,
    ) -> None:
        """Start a fresh adapter on `targets` in `slot`, as its kind says, and with this head if it is to have
        one; `own` are the kind's own options. below: what it learns on top of, by module path.

        Drawn on the CPU, so the same seed gives the same factors on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for path, layer in self._layers.items():
            if path in targets:
                tensors = self._fresh(layer, config.rank_of(path), generator, own)
                scale = self.kind.scale(config, path)
                layers[path] = self.kind.layer(self.kind.started(tensors, scale), scale)
        self._place(slot, stacked(layers, below or {}), head or {})

    def _fresh(
        self, layer: AdaptedLayer, rank: int, generator: torch.Generator, own: Config
    ) -> Mapping[str, Tensor]:
        if isinstance(layer, ExpertParameter):
            return self.kind.start_experts(layer.shape, rank, generator, own)
        begin = self.kind.start_embedding if isinstance(layer, LoraEmbedding) else self.kind.start
        weight = plain_weight(layer.base) if self.kind.starts_from_weight else torch.empty(0)
        return begin(layer.in_features, layer.out_features, rank, weight, generator, own)

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into `slot`; layers it does not target become the plain base there. Of tied
        parameters the one that is laid out counts.
        """
        own = {name: one for name, one in adapter.head.items() if name in self.head_shapes}
        self._place(slot, adapter.layers, own)

    def clear(self, slot: int) -> None:
        """Make `slot` the plain base."""
        self._place(slot, {}, {})

    @torch.no_grad()
    def _place(self, slot: int, layers: Mapping[str, LayerWeights], head: Mapping[str, Tensor]) -> None:
        """Lay the tensors out on the CPU, padded with zeros to the stacks' ranks, and copy them to the device
        at once.
        """
        assert not set(layers) - set(self._layers), "a part of an adapter would be left out"
        self._held[slot] = {path: self.kind.rank(layer) for path, layer in layers.items()}
        row, scales = torch.zeros(self.flat.shape[1], dtype=self.flat.dtype), torch.zeros(len(self.factors))
        views = self.layout.of(row)
        for index, path in enumerate(self._layers):
            if (own := layers.get(path)) is None:
                continue
            for name, tensor in own.tensors.items():
                corner(views[path][name], tuple(tensor.shape)).copy_(tensor)
            scales[index] = own.scale
        for name, tensor in head.items():
            corner(views[HEAD][name], tuple(tensor.shape)).copy_(tensor)
        self._take_head(slot, {name: tuple(tensor.shape) for name, tensor in head.items()})
        self.flat[slot].copy_(row)
        self.scale[:, slot].copy_(scales)
        if self.work is not self.flat:
            self.work[slot].copy_(self.flat[slot])
        if self.grad is None:
            for path, stack in self.factors.items():
                stack.placed(slot, layers.get(path), self._layers[path].base)

    @torch.no_grad()
    def export(self, slot: int, ranks: Mapping[str, int]) -> dict[str, LayerWeights]:
        """The layers of `slot` cut to `ranks` by module path, as copies on the CPU."""
        cut = self._cut(self.layout.of(self.flat[slot]), ranks)
        return {
            path: self.kind.layer(tensors, float(self.factors[path].scale[slot]))
            for path, tensors in cut.items()
        }

    def head(self, slot: int) -> dict[str, nn.Parameter]:
        """The whole parameters in `slot`, such as those of a classifier's head, by path, in the shapes that
        they have; their gradients add up as the factors' do.
        """
        return self._heads[slot]

    def _take_head(self, slot: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The head in `slot` has these shapes from now on."""
        self._heads[slot] = {}
        for name, shape in shapes.items():
            place = self.layout.places[HEAD][name]
            parameter = nn.Parameter(
                corner(place.of(self.flat[slot]), shape), requires_grad=self.grad is not None
            )
            if self.grad is not None:
                parameter.grad = corner(place.of(self.grad[slot]), shape)
            self._heads[slot][name] = parameter

    @torch.no_grad()
    def export_head(self, slot: int) -> dict[str, Tensor]:
        """The head in `slot`, as copies on the CPU."""
        return {name: one.detach().cpu().clone() for name, one in self._heads[slot].items()}

    def _cut(
        self, views: Mapping[str, Mapping[str, Tensor]], ranks: Mapping[str, int]
    ) -> dict[str, dict[str, Tensor]]:
        """Tensors of one adapter cut to `ranks` by module path, as copies on the CPU."""
        found: dict[str, dict[str, Tensor]] = {}
        for path, rank in ranks.items():
            own = self.kind.layer_tensors(_shape(self._layers[path]), rank)
            shapes = {one.name: one.shape for one in own}
            found[path] = {
                name: corner(view, shapes[name]).cpu().clone() for name, view in views[path].items()
            }
        return found

    # While it trains.

    @torch.no_grad()
    def change(self, slot: int) -> float:
        """The most that the adapter in `slot` adds to an output of any layer, for two random tokens; 0 only
        where nothing is added at all.
        """
        self.eval()  # without dropout
        generator, largest = torch.Generator().manual_seed(0), 0.0
        for path in self.held(slot):
            layer = self._layers[path]
            x = self._random_tokens(layer, generator)
            y = x if isinstance(layer, ExpertParameter) else layer.base(x)
            added = self.factors[path].added(x, y, layer.base, None)
            largest = max(largest, float(added[slot].abs().max()))
        return largest

    def _random_tokens(self, layer: AdaptedLayer, generator: torch.Generator) -> Tensor:
        """Two for each slot, [K, 2, in]; of an embedding their ids, [K, 2]."""
        device, dtype = where_and_in(layer.base)
        if isinstance(layer, LoraEmbedding):
            return torch.randint(layer.in_features, (self.slots, 2), generator=generator).to(device)
        return torch.randn(self.slots, 2, layer.in_features, generator=generator).to(device, dtype)

    @property
    def gives_up_products(self) -> bool:
        """Whether a compiled layer that is to keep a little less gives up whole products, which cost a third
        of the time to compute again, and not the norms and activations: as where nothing keeps the inputs.
        """
        return not any(stack.keeps_inputs for stack in self.factors.values())

    @property
    def drops(self) -> bool:
        """Whether an adapter has dropout."""
        return self.dropout is not None

    def key_dropout(self, keys: Sequence[int]) -> None:
        """The masks of the next micro-batch follow from these, one for each slot."""
        if self.dropout is not None:
            self.dropout.keys.copy_(sent(keys, self.dropout.keys.device, torch.int32))

    def begin_rows(self, first: int) -> None:
        """The next batch begins with row `first` of its micro-batch."""
        if self.dropout is not None:
            self.dropout.first_row.fill_(first)

    def begin_batch(self, row_length: int) -> None:
        """Rows of the next batch have so many tokens each; 0 where it is more than one pass."""
        if self.dropout is not None:
            self.dropout.row_length = row_length

    def begin_tokens(self, first: int) -> None:
        """What is computed next begins with token `first` of its rows."""
        if self.dropout is not None:
            self.dropout.first_token = first

    def place(self, slot: int) -> tuple[AdapterBank, int]:
        """The bank that holds this slot's adapter, and its slot there."""
        return self, slot

    def gradient(self, slot: int) -> Tensor:
        """Of all of a slot's trained numbers, as a view."""
        assert self.grad is not None
        return self.grad[slot]

    def gradient_norms(self) -> Tensor:
        """Of each slot, [K]."""
        assert self.grad is not None
        return torch.linalg.vector_norm(self.grad, dim=1)

    def forget_gradients(self, slots: Sequence[int] | None = None) -> None:
        """Begin the sums of these slots anew; by default of all."""
        assert self.grad is not None
        if slots is None or len(slots) == self.slots:
            self.grad.zero_()
        elif slots:
            self.grad.index_fill_(0, sent(slots, self.grad.device), 0.0)

    def row(self, slot: int) -> dict[str, dict[str, Tensor]]:
        """The layers' stored tensors of one adapter as views by module path and name, padded as they are laid
        out.
        """
        found = self.layout.of(self.flat[slot])
        found.pop(HEAD, None)
        return found

    def held(self, slot: int) -> dict[str, int]:
        """The rank of the adapter in `slot` on each of its layers, by module path."""
        return self._held.get(slot, {})

    def parameters_of(self, slot: int) -> dict[str, nn.Parameter]:
        """One adapter's trained numbers by the tensors' names, each flat and with its gradient, for an
        optimiser of its own.
        """
        assert self.grad is not None
        found = {}
        for name in self.layout.trained:
            span = self.layout.spans[name]
            found[name] = nn.Parameter(self.flat[slot, span])
            found[name].grad = self.grad[slot, span]
        return found

    def by_layer(
        self, rows: Mapping[str, Tensor], ranks: Mapping[str, int], slot: int
    ) -> dict[str, dict[str, Tensor]]:
        """Flat numbers of the adapter in `slot` (such as an optimiser's moments) by name, as tensors by path
        and name, float32 copies on the CPU.
        """
        views: dict[str, dict[str, Tensor]] = {path: {} for path in self.layout.places}
        for path, name, view in self.layout.views(rows):
            views[path][name] = view.float()
        found = self._cut(views, ranks)
        if self.head_shapes and rows:
            shapes = {name: tuple(one.shape) for name, one in self._heads[slot].items()}
            found[HEAD] = {
                name: corner(views[HEAD][name], shape).cpu().clone() for name, shape in shapes.items()
            }
        return found

    def flat_of(self, layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The reverse of by_layer(): flat numbers by name in this bank's layout, on its device, zero where
        nothing is given.
        """
        spans = self.layout.spans
        rows = {name: torch.zeros(spans[name].stop - spans[name].start) for name in self.layout.trained}
        for path, name, view in self.layout.views(rows):
            if path in layers:
                own = layers[path][name]
                corner(view, tuple(own.shape)).copy_(own)
        return {name: row.to(self.flat.device) for name, row in rows.items()}

    def take(self, slot: int, other: AdapterBank, theirs: int) -> None:
        """Copy the adapter in another bank's slot `theirs` into `slot`, with its gradient; ranks may be laid
        out larger.
        """
        self._held[slot] = other.held(theirs)
        for mine, yours in ((self.flat, other.flat), (self.grad, other.grad)):
            if mine is not None and yours is not None:
                mine[slot].zero_()
                into = self.layout.of(mine[slot])
                for path, tensors in other.layout.of(yours[theirs]).items():
                    for name, view in tensors.items():
                        corner(into[path][name], tuple(view.shape)).copy_(view)
        for path, factors in self.factors.items():
            factors.scale[slot] = other.factors[path].scale[theirs] if path in other.factors else 0.0
        self._take_head(slot, {name: tuple(one.shape) for name, one in other.head(theirs).items()})
        self.refresh()

    def laid_out_like(self, other: AdapterBank, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Flat numbers of one adapter by name (such as an optimiser's moments) from the layout of `other` in
        this bank's.
        """
        spans = self.layout.spans
        laid_out = {name: row.new_zeros(spans[name].stop - spans[name].start) for name, row in rows.items()}
        into = {(path, name): view for path, name, view in self.layout.views(laid_out)}
        for path, name, view in other.layout.views(rows):
            corner(into[path, name], tuple(view.shape)).copy_(view)
        return laid_out


_SPECIAL: Mapping[type, type[AdapterStack]] = {LoraEmbedding: EmbeddingStack, ExpertParameter: ExpertStack}
"""What computes with the adapters on layers that are not linear ones."""


def _shape(layer: AdaptedLayer) -> tuple[int, int]:
    """(in, out); of experts with their number."""
    return layer.shape if isinstance(layer, ExpertParameter) else (layer.in_features, layer.out_features)


def _padded(rank: int, device: torch.device) -> int:
    """Tensor cores want rows of 16 bytes, so a stack's rank is a multiple of 8 there; the rest stays zero."""
    return -(-rank // 8) * 8 if device.type == "cuda" else rank
