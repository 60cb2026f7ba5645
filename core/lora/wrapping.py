"""Put LoRA layers into a model: each linear layer is wrapped once, and stays wrapped. Other modules are when
an adapter first has numbers of its own for them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.errors import InvalidAdapter
from core.lora.expert_layer import ExpertParameter, expert_shapes
from core.lora.expert_wrapping import wrapped_experts
from core.lora.layer import Adapted, LoraEmbedding, LoraLinear, Place, is_linear, where_and_in
from core.lora.wholes import BIAS, BIAS_ON_B, WEIGHT, Wholes, module_of

_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})


class ModelLayers(dict[str, LoraLinear]):
    """The wrapped linear layers of a model by path, and on demand its other modules."""

    def __init__(self, model: PreTrainedModel, layers: Mapping[str, LoraLinear]) -> None:
        super().__init__(layers)
        self.model = model

    def __missing__(self, path: str) -> LoraEmbedding | ExpertParameter:
        """An embedding or a fused parameter of experts: no linear layers, but they can have factors, too."""
        owner, _, name = path.rpartition(".")
        if expert_shapes(self.model.get_submodule(owner)):
            return wrapped_experts(self.model, owner).fused[name]  # type: ignore[return-value]
        module = self.place(path)
        if not isinstance(module, LoraEmbedding):
            raise KeyError(path)
        return module

    def place(self, path: str) -> Place:
        """The module at this path, wrapped."""
        module = self.model.get_submodule(path)
        if not isinstance(module, (LoraLinear, Adapted)):
            module = LoraEmbedding(module) if isinstance(module, nn.Embedding) else Adapted(module)
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, module)
        return module

    def stored(self, name: str) -> Tensor:
        """The base's own numbers of a whole parameter, or the zeros that a bias on B starts from."""
        if name.endswith(BIAS_ON_B):
            layer = self[module_of(name)]
            device, dtype = where_and_in(layer.base)
            return torch.zeros(layer.out_features, device=device, dtype=dtype)
        module = self.model.get_submodule(module_of(name))
        found: Tensor = getattr(getattr(module, "base", module), name.rpartition(".")[2])
        return found

    def require(self, own: Mapping[str, Tensor]) -> None:
        """Raise InvalidAdapter, with what differs, unless the base has parameters of these shapes."""
        for name, tensor in own.items():
            try:
                shape = tuple(self.stored(name).shape)
            except (AttributeError, KeyError):
                raise InvalidAdapter(f"The base has no {name}, which the adapter has of its own.") from None
            if shape != tuple(tensor.shape):
                raise InvalidAdapter(
                    f"{name} of the adapter is {list(tensor.shape)}; in this base it is {list(shape)}."
                )


def wholes_of(model: PreTrainedModel) -> Wholes:
    """What of a model that writes text an adapter can have of its own; nothing of one that reads pictures,
    too, whose files name these parts in many ways.
    """
    if text_prefixes(model) != ("",):
        return Wholes()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {module: path for path, module in model.named_modules() if not path.endswith(".base")}
    tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", False)
    experts = {
        f"{path}.{name}": shape
        for module, path in paths.items()
        for name, shape in expert_shapes(module).items()
    }
    shapes = {
        f"{path}{name}": tuple(one.shape)
        for module, path in paths.items()
        for name, one in ((WEIGHT, _own(module, "weight")), (BIAS, _own(module, "bias")))
        if one is not None and (module is embedding or module is head or (name == BIAS and _adds(module)))
    }
    return Wholes(paths[embedding], paths.get(head, ""), tied, shapes, experts)


def _own(module: nn.Module, name: str) -> Tensor | None:
    """A parameter of the module itself, wrapped or not."""
    inner = getattr(module, "base", module)
    return inner._parameters.get(name) if isinstance(inner, nn.Module) else None


def _adds(module: nn.Module) -> bool:
    """Whether a module's bias is added to what it computes otherwise."""
    inner = getattr(module, "base", module)
    return is_linear(inner) or isinstance(inner, nn.LayerNorm)


def wrap_linear_layers(model: PreTrainedModel) -> ModelLayers:
    """Freeze `model` and wrap each linear layer in a LoraLinear, in place. Returns them by module path.

    An output head that shares its weight with the input embedding is left alone: an adapter on it could not
    be merged without changing the embedding too. So are the layers of _is_left_alone().
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", False)
    text = text_prefixes(model)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if is_linear(module) and f"{path}.".startswith(text)
    ]
    layers = {}
    for path, module in found:
        if (module is head and tied) or _is_left_alone(model, path, module):
            continue
        layers[path] = LoraLinear(module)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[path])
    return ModelLayers(model, layers)


def _is_left_alone(model: PreTrainedModel, path: str, module: nn.Module) -> bool:
    """Whether a linear layer gets no adapters: routers of experts stay as they are, what gives Mamba's time
    steps is used by its weight alone, and PEFT refuses what kernels of Mamba 2 use so
    (peft/tuners/tuners_utils.py).
    """
    name = path.rpartition(".")[2]
    refused = name == "out_proj" and model.config.model_type in _MAMBA
    return "Router" in type(module).__name__ or name == "dt_proj" or refused


def text_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """What the paths of all begin with that takes part where text is read: of a model that reads pictures,
    too, without what reads these and carries them over.
    """
    if getattr(model.config, "vision_config", None) is None:
        return ("",)
    text = (model.get_decoder(), model.get_output_embeddings())
    return tuple(f"{path}." for path, module in model.named_modules() if any(module is one for one in text))


def head_path(model: PreTrainedModel) -> str | None:
    """The module path of the output head."""
    head = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is head), None)
