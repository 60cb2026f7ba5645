"""Loading a base model once, frozen and with LoRA layers in place."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from core.base_model.attention import NAME as ATTENTION
from core.base_model.attention import Attending, find_attention_modules
from core.base_model.tokenizer import load_tokenizer, whole_numbers
from core.data.rendering import Renderer
from core.errors import InvalidModel
from core.lora.layer import LoraLinear
from core.lora.wrapping import head_path, wrap_linear_layers

_PRODUCTS = 40  # of each dtype, about 0.2 s in all


@dataclass
class ResidentBase:
    """The base model in memory. Its weights stay as loaded, whatever is trained or chatted with on it."""

    folder: Path
    fingerprint: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: dict[str, LoraLinear]
    head: str | None
    attention: list[Attending]
    """The modules that attend, one for each decoder layer."""
    plain_head: bool
    """Whether the logits are the output head's product and nothing more (no capping, no scaling)."""

    @cached_property
    def renderer(self) -> Renderer:
        """Renders conversations with the base's tokenizer and chat template.

        Raises InvalidModel without a fast tokenizer.
        """
        return Renderer(self.tokenizer)

    def use_template(self, name: str) -> None:
        """Take another known chat template, where the base has none of its own."""
        tokenizer = load_tokenizer(self.folder, name)
        if tokenizer.chat_template != self.tokenizer.chat_template:
            self.tokenizer = tokenizer
            self.__dict__.pop("renderer", None)

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """The repeated blocks of the model, which compile as one."""
        kinds = set(self.model._no_split_modules or ())
        return [module for module in self.model.modules() if type(module).__name__ in kinds]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the base computes in."""
        return self.model.dtype

    @property
    def context_length(self) -> int:
        """How many tokens the model was built for; unbounded if it does not say."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    @property
    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """(in_features, out_features) of each layer an adapter can target, by module path."""
        return {path: (layer.in_features, layer.out_features) for path, layer in self.layers.items()}

    def end_token_ids(self) -> set[int]:
        """The ids that end an answer, by the generation config, the tokenizer and the chat template."""
        generation = self.model.generation_config
        told = [generation.eos_token_id if generation else None, self.tokenizer.eos_token_id]
        by_template = self.renderer.end_ids if getattr(self.tokenizer, "is_fast", False) else frozenset()
        return {*by_template, *(one for value in told for one in whole_numbers(value))}


def load_base(
    folder: Path,
    *,
    fingerprint: str = "",
    name: str = "",
    template: str = "",
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> ResidentBase:
    """Load the model and tokenizer in `folder`, safetensors only and without any code of its own.

    template names the known chat template for a base that has none of its own. device and dtype default to
    the best this machine has. Raises InvalidModel if transformers cannot load it, or if its layers are not
    causal attention throughout.
    """
    device = device or best_device()
    dtype = dtype or best_dtype(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation=ATTENTION
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InvalidModel(f"transformers cannot load {name or folder}: {str(error)[:400]}") from error
    model.to(device)  # type: ignore[arg-type]
    return make_resident(
        model, load_tokenizer(folder, template), folder=folder, fingerprint=fingerprint, name=name
    )


def make_resident(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    fingerprint: str = "",
    name: str = "",
) -> ResidentBase:
    """Freeze a model where it is and put LoRA layers into it.

    Raises InvalidModel if its layers are not all causal attention.
    """
    model.eval()
    model.set_attn_implementation(ATTENTION)
    head = head_path(model)
    layers = wrap_linear_layers(model)
    return ResidentBase(
        folder,
        fingerprint,
        name,
        model,
        tokenizer,
        layers,
        head if head in layers else None,
        find_attention_modules(model),
        _head_is_plain(model),
    )


@torch.no_grad()
def _head_is_plain(model: PreTrainedModel) -> bool:
    """Seen on two tokens rather than read from the configuration, where each architecture has words of its
    own.
    """
    ids = torch.arange(2, device=model.device)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return torch.equal(model.get_output_embeddings()(hidden), model(input_ids=ids, use_cache=False).logits)


def best_device() -> torch.device:
    """The accelerator if there is one, otherwise the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware is faster in it, otherwise float32. Factors train in float32 either way."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_prefers_bfloat16() else torch.float32


@functools.cache
def _cpu_prefers_bfloat16() -> bool:
    """Measured, since CPUs with bfloat16 instructions gain a factor of 2 to 4 and others lose as much."""
    best = {torch.bfloat16: math.inf, torch.float32: math.inf}
    for _ in range(
        _PRODUCTS
    ):  # in turn, and the best of each, so that other load on the machine does not decide
        for dtype in best:
            best[dtype] = min(best[dtype], _product_seconds(dtype))
    return best[torch.bfloat16] < 0.9 * best[torch.float32]


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds for a matrix product of a small model's size."""
    x, w = torch.ones(256, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
    start = time.perf_counter()
    torch.mm(x, w)
    return time.perf_counter() - start
