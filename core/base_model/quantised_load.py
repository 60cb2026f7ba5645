"""A base's linear layers quantised by bitsandbytes while its files are read, one tensor after another, or
rounded to FP8 on their way to the device; or one decoder layer after another, where each process is to keep a
part of it.

transformers decides which layers: all but the output head. What it has loaded is taken over as it lies in
memory, in layers of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.base_model.quantisation import FP8, NF4, in_few_bits, require_quantising
from core.errors import InvalidModel
from core.lora.fp8 import CAPABILITY, packed_rows
from core.lora.layer import linear_shape
from core.lora.quantised import FP8 as FP8_WEIGHTS
from core.lora.quantised import INT8 as INT8_WEIGHTS
from core.lora.quantised import NF4 as NF4_WEIGHTS
from core.lora.quantised import Packed, QuantisedLinear

_DEVICES = ("cuda", "cpu")


def quantising(quantisation: str, device: torch.device) -> dict[str, Any]:
    """What load_weights() is to tell transformers so that linear layers are quantised on `device`, each when
    it has been read. take_over() has to follow.

    Raises InvalidConfig without bitsandbytes, InvalidModel for a device that it does not know.
    """
    require_bitsandbytes(quantisation, device)
    how = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        if quantisation == NF4
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": how, "device_map": {"": device}}


def require_bitsandbytes(quantisation: str, device: torch.device) -> None:
    """Raise as quantising() where bitsandbytes cannot quantise on `device`."""
    require_quantising(quantisation)
    if device.type not in _DEVICES:
        raise InvalidModel(
            f"A base can be held in {quantisation} on an NVIDIA or AMD GPU or on a CPU, not on {device.type}."
        )
    # Its CPU part would like to fetch a kernel from the hub, and warns that it cannot.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def require_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise InvalidModel where frozen products cannot be computed in FP8."""
    where = f"the {device.type.upper()} of this machine"
    if device.type == "cuda" and not torch.version.hip:
        where = torch.cuda.get_device_name(device)
        if torch.cuda.get_device_capability(device) >= CAPABILITY and dtype == torch.bfloat16:
            return
    raise InvalidModel(
        "quantisation=fp8 needs an NVIDIA GPU that computes in FP8 (Ada, Hopper, Blackwell: RTX "
        f"40 and later, L4, L40, H100 and later) and a base in bfloat16; here it is {where} and "
        f"{str(dtype)[6:]}. Choose quantisation=int8 or nf4 for the memory, or none."
    )


def to_fp8(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Put a QuantisedLinear in FP8 in the place of each linear layer that in_few_bits() names, on `device`,
    one after another.
    """
    linear = {path: module for path, module in model.named_modules() if _is_plain_linear(module)}
    head = next((path for path, one in linear.items() if one is model.get_output_embeddings()), None)
    shapes = {path: linear_shape(module) for path, module in linear.items()}
    for path in in_few_bits(shapes, head, FP8):
        _replace(model, path, linear[path], lambda weight: _in_fp8(weight.to(device), model.dtype))
    return model


def quantise(within: nn.Module, head: nn.Module | None, quantisation: str, device: torch.device) -> None:
    """Quantise the linear layers of a part of a plain model on `device`, but for its output head, one after
    another: those, and to the numbers, that transformers quantises while it loads the model.
    """
    for path, module in list(within.named_modules()):
        if _is_plain_linear(module) and module is not head:
            _replace(within, path, module, lambda weight: packed(weight.to(device), quantisation))


def _is_plain_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, Conv1D)


def _replace(within: nn.Module, path: str, module: Any, pack: Callable[[torch.Tensor], Packed]) -> None:
    """Put a QuantisedLinear in the place of a linear layer, with what `pack` makes of its W [out, in]."""
    transposed = isinstance(module, Conv1D)
    own = pack((module.weight.t() if transposed else module.weight).detach())
    within.set_submodule(path, QuantisedLinear(own, module.bias, transposed=transposed))


def _in_fp8(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    return Packed(FP8_WEIGHTS, packed_rows(weight), (int(weight.shape[0]), int(weight.shape[1])), dtype)


def take_over(model: PreTrainedModel) -> PreTrainedModel:
    """Put a QuantisedLinear in the place of each layer that bitsandbytes has quantised; nothing is copied."""
    dtype = model.dtype
    for path, module in list(_quantised(model)):
        own = QuantisedLinear(
            _taken(module, dtype), module.bias, transposed=issubclass(module.source_cls, Conv1D)
        )
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, own)
    return forget_quantiser(model)


def _quantised(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for path, module in model.named_modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            yield path, module


def _taken(module: Any, dtype: torch.dtype) -> Packed:
    weight = module.weight
    shape = (module.out_features, module.in_features)
    if (state := getattr(weight, "quant_state", None)) is None:
        steps, largest = weight.data, weight.SCB
        return Packed(INT8_WEIGHTS, (_plain(steps), _plain(largest)), shape, dtype)
    return Packed(NF4_WEIGHTS, _nf4_parts(weight.data, state), shape, dtype)


def packed(weight: torch.Tensor, quantisation: str) -> Packed:
    """A weight [out, in], quantised as it is while a base is loaded; it computes in the weight's dtype."""
    require_quantising(quantisation)
    if quantisation == FP8:
        return _in_fp8(weight, weight.dtype)
    from bitsandbytes import functional

    shape = (int(weight.shape[0]), int(weight.shape[1]))
    if quantisation == NF4:
        numbers, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        return Packed(NF4_WEIGHTS, _nf4_parts(numbers, state), shape, weight.dtype)
    steps, largest, _ = functional.int8_vectorwise_quant(weight.half())
    return Packed(INT8_WEIGHTS, (steps, largest), shape, weight.dtype)


def _nf4_parts(numbers: torch.Tensor, state: Any) -> tuple[torch.Tensor, ...]:
    nested = state.state2
    parts = (numbers, state.absmax, nested.absmax, nested.code, state.offset)
    return tuple(map(_plain, parts))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """As a tensor of torch's own class, in the same memory."""
    return tensor.detach().as_subclass(torch.Tensor)


def forget_quantiser(model: PreTrainedModel) -> PreTrainedModel:
    """Take transformers' bookkeeping of a quantised model away: it would neither be moved nor saved."""
    about: Any = model
    about.hf_quantizer, about.is_quantized = None, False
    for name in ("quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        about.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def quantised_layers(model: nn.Module) -> list[QuantisedLinear]:
    """Those that hold their weight in few bits."""
    return [one for one in model.modules() if isinstance(one, QuantisedLinear)]
