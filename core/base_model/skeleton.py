"""The linear layers of a base model, found on a model without weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from core.base_model.classifier import head_parts, replace_module
from core.base_model.model_config import is_writing, load_config, model_class, refusing
from core.base_model.tensors import empty_with_head
from core.lora.wholes import Wholes
from core.lora.wrapping import head_path, wholes_of, wrap_linear_layers


@dataclass(frozen=True)
class Skeleton:
    """The layers an adapter can target: (in_features, out_features) by path; which store W transposed, the
    embedding among them; the head.
    """

    shapes: dict[str, tuple[int, int]]
    transposed: frozenset[str]
    head: str | None
    wholes: Wholes = field(default_factory=Wholes)
    """What an adapter can have of its own beside its factors."""


def skeleton(folder: Path) -> Skeleton:
    """Build the model of `folder` on the meta device and list its linear layers.

    Raises InvalidModel if transformers does not know the architecture.
    """
    config = load_config(folder)
    if not is_writing(config):
        return _of_classifier(folder)
    with refusing(f"transformers cannot build {folder.name} ({config.model_type})"), torch.device("meta"):
        model = model_class(config)(config)
        model.tie_weights()
    head, wholes = head_path(model), wholes_of(model)
    return _listed(model, head, wholes)


def tied_parameters(folder: Path) -> tuple[str, str] | None:
    """The paths of the embedding's weight and of the output head's if config.json ties the two, else None.

    Raises InvalidModel.
    """
    config = load_config(folder)
    if not is_writing(config) or not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return None
    with refusing(f"transformers cannot build {folder.name} ({config.model_type})"), torch.device("meta"):
        model = model_class(config)(config)
    embedding, head = model.get_input_embeddings(), head_path(model)
    path = next(path for path, module in model.named_modules() if module is embedding)
    return (f"{path}.weight", f"{head}.weight") if head else None


def _of_classifier(folder: Path) -> Skeleton:
    """Of a base without a head that writes text: the layers that all its adapters share."""
    model, missing = empty_with_head(folder)
    for path in head_parts(model, missing):
        replace_module(model, path, nn.Identity())
    return _listed(model, None, Wholes())


def _listed(model: PreTrainedModel, head: str | None, wholes: Wholes) -> Skeleton:
    layers = wrap_linear_layers(model)
    return Skeleton(
        shapes={path: (layer.in_features, layer.out_features) for path, layer in layers.items()},
        transposed=frozenset(path for path, layer in layers.items() if layer.transposed)
        | {wholes.embedding}
        | {path for path in wholes.experts if model.get_submodule(path.rpartition(".")[0]).is_transposed},
        head=head if head in layers else None,
        wholes=wholes,
    )
