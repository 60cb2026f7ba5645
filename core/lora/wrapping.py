"""Put LoRA layers into a model: each linear layer is wrapped once, and stays wrapped."""

from __future__ import annotations

from transformers import PreTrainedModel

from core.lora.layer import LoraLinear, is_linear


def wrap_linear_layers(model: PreTrainedModel) -> dict[str, LoraLinear]:
    """Freeze `model` and wrap each linear layer in a LoraLinear, in place. Returns them by module path.

    An output head that shares its weight with the input embedding is left alone: an adapter on it could not
    be merged without changing the embedding too.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", False)
    found = [(path, module) for path, module in model.named_modules() if is_linear(module)]
    layers = {}
    for path, module in found:
        if module is head and tied:
            continue
        layers[path] = LoraLinear(module)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[path])
    return layers


def head_path(model: PreTrainedModel) -> str | None:
    """The module path of the output head."""
    head = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is head), None)
