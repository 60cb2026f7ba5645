"""Whole parameters of a model, replaced: how full fine-tuning trains and answers while the base stays as it
is.

A WholeBank has one slot, which holds numbers of its own for some of the model's parameters. While it is in
use they stand in the base's place, in every module that shares the parameter, so a tied head is the embedding
here, too. Nothing is ever written into the base's own numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.errors import InvalidAdapter
from core.lora.adapter import AdapterWeights
from core.lora.bank import AdapterBank, Layers
from core.lora.kinds.full import KIND as FULL
from core.lora.layer import Adapted, LoraLinear, where_and_in
from core.lora.mixed_bank import MixedBank, loaded_bank

Place = tuple[nn.Module, str]
"""A module and its own name for a parameter."""


def parameter_places(model: nn.Module) -> dict[str, list[Place]]:
    """All places of each of a model's parameters, by its first path there, as the model calls it without our
    wrappers.
    """
    modules = dict(model.named_modules())
    ours = (LoraLinear, Adapted)
    wrapped = {f"{path}.base": path for path, module in modules.items() if isinstance(module, ours)}
    first: dict[int, str] = {}
    found: dict[str, list[Place]] = {}
    for path, module in modules.items():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            inside = wrapped.get(path, path)
            called = first.setdefault(id(parameter), f"{inside}.{name}" if inside else name)
            found.setdefault(called, []).append((module, name))
    return found


def base_numbers(model: nn.Module, paths: Sequence[str]) -> dict[str, Tensor]:
    """The base's own numbers of these parameters, by path; no copies."""
    places = parameter_places(model)
    return {path: getattr(*places[path][0]).detach() for path in paths}


class WholeBank(AdapterBank):
    """Numbers of its own for whole parameters of one model, in one slot."""

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype | None = None,
        trainable: bool = False,
    ) -> None:
        """shapes: of the parameters, by path. Those that the model does not have are a classifier's head and
        stand where that is computed. dtype as in AdapterBank.
        """
        super().__init__(layers, [], 1, {}, kind=FULL, dtype=dtype, trainable=trainable, head=shapes)
        self.work = self.flat  # a copy that computes is made within use(), and let go of behind it
        self._places = {path: own for path, own in parameter_places(model).items() if path in shapes}

    @contextmanager
    def use(self, slots: Tensor | None = None) -> Iterator[None]:
        """Within the block the model computes with these numbers, in the dtype that it computes in."""
        own = self.head(0)
        computing = {path: own[path].to(self._work_dtype) for path in self._places}
        with _in_place([(place, computing[path]) for path, found in self._places.items() for place in found]):
            yield

    @torch.no_grad()
    def change(self, slot: int) -> float:
        """The most that a number differs from the base's own."""
        own = self.head(slot)
        return max(
            float((own[path] - getattr(*found[0]).to(own[path].dtype)).abs().max())
            for path, found in self._places.items()
        )

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter's parameters into the slot."""
        given = {**adapter.head, **adapter.whole}
        self._place(slot, {}, {path: given[path] for path in self.head_shapes})


@contextmanager
def _in_place(numbers: Sequence[tuple[Place, Tensor]]) -> Iterator[None]:
    """Within the block each module has this tensor in the place of its parameter."""
    before = [(module, name, module._parameters[name]) for (module, name), _ in numbers]
    for (module, name), tensor in numbers:
        module._parameters[name] = tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter


def computing_bank(
    model: nn.Module, layers: Layers, adapters: Sequence[AdapterWeights | None]
) -> MixedBank | WholeBank:
    """A bank that holds these adapters in order, to compute with and not to train; one that replaces whole
    parameters is there alone.

    Raises InvalidAdapter if its parameters are not the model's.
    """
    if not any(adapter is not None and adapter.whole for adapter in adapters):
        return loaded_bank(layers, adapters)
    (adapter,) = adapters
    assert adapter is not None
    return whole_bank(model, layers, adapter)


def whole_bank(model: nn.Module, layers: Layers, adapter: AdapterWeights) -> WholeBank:
    """A bank that holds this adapter's parameters, in the base's dtype. Raises InvalidAdapter as
    require_parameters().
    """
    require_parameters(model, adapter)
    _, dtype = where_and_in(next(iter(layers.values())).base)
    bank = WholeBank(
        model, layers, {path: tuple(one.shape) for path, one in adapter.whole.items()}, dtype=dtype
    )
    bank.load(0, adapter)
    return bank.requires_grad_(False).eval()


def require_parameters(model: nn.Module, adapter: AdapterWeights) -> None:
    """Raise InvalidAdapter unless the parameters that the adapter replaces are the model's, and of its
    shapes.
    """
    places = parameter_places(model)
    for path, tensor in adapter.whole.items():
        if path not in places:
            raise InvalidAdapter(f"The base has no parameter {path[:120]}; the weights are another model's.")
        wanted = tuple(getattr(*places[path][0]).shape)
        if tuple(tensor.shape) != wanted:
            raise InvalidAdapter(
                f"{path} is {list(tensor.shape)}, but the base has {list(wanted)} there; the weights are "
                "another model's."
            )


def batches_of(adapters: Sequence[AdapterWeights | None]) -> list[list[int]]:
    """Which of these adapters compute together, by their places: all that are added to the base, and each by
    itself that replaces whole parameters.
    """
    alone = [[at] for at, one in enumerate(adapters) if one is not None and one.whole]
    together = [at for at, one in enumerate(adapters) if one is None or not one.whole]
    return [*([together] if together else []), *alone]
