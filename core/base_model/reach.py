"""What a model's own forward pass does with its linear layers: whether adapters on them would take part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.errors import InvalidModel
from core.lora.layer import LoraLinear

_PROBE = (3, 5)  # rows and tokens

Notice = Callable[[str, Tensor, Tensor], None]
"""What is told of each call of a layer: its path, what it was given, and what it gave."""


def require_reached(model: PreTrainedModel, layers: Mapping[str, LoraLinear]) -> None:
    """Raise InvalidModel, with their names, for linear layers on which adapters of several rows could not
    take part: those whose weight a forward pass uses without calling them, and those that are given other
    things than the rows in their order, such as the tokens that go to one expert.
    """
    rows, length = _PROBE
    given: dict[str, int] = {}
    _watch(model, layers, lambda path, x, _: given.update({path: x.shape[0]}))
    left_out = [path for path in layers if given.get(path) not in (rows, rows * length)]
    if left_out:
        raise InvalidModel(
            f"{type(model).__name__} computes {', '.join(left_out[:3])} ({len(left_out)} such layers) on "
            f"{model.device.type} by their weights alone, on other things than the rows of a batch, or not "
            "at all, so adapters on them cannot be used. Where a package with kernels for such layers is "
            "installed, remove it."
        )


def let_outputs_be_changed(model: PreTrainedModel, layers: Mapping[str, LoraLinear]) -> None:
    """Have layers whose output the model's code writes to give a copy, which autograd lets it write to."""
    given: dict[str, tuple[Tensor, int]] = {}
    _watch(model, layers, lambda path, _, y: given.update({path: (y, y._version)}))
    for path, (output, version) in given.items():
        if output._version != version:
            layers[path].register_forward_hook(lambda _, __, y: y.clone())


@torch.no_grad()
def _watch(model: PreTrainedModel, layers: Mapping[str, LoraLinear], notice: Notice) -> None:
    """Tell of each layer's call in one pass over a few rows."""
    with ExitStack() as hooks:
        for path, layer in layers.items():
            hook = layer.register_forward_hook(lambda _, given, y, path=path: notice(path, given[0], y))
            hooks.callback(hook.remove)
        model(input_ids=torch.zeros(_PROBE, dtype=torch.long, device=model.device), use_cache=False)
