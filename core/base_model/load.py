"""Loading a base model once, frozen and with LoRA layers in place."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.base_model.agreement import QUICK, find_way
from core.base_model.attention import Attending, find_attention_modules, set_attention, set_experts
from core.base_model.classifier import Classifier, classifier_around, classifier_of
from core.base_model.describe import cannot_write
from core.base_model.files import stored_tensors, weight_files
from core.base_model.model_config import is_writing, load_config, reads_pictures, refusing
from core.base_model.own_cache import cache_bytes
from core.base_model.quantisation import FP8, NONE, plain_encoder, plain_on_the_general_way
from core.base_model.quantised_load import quantising, require_fp8, take_over, to_fp8
from core.base_model.reach import let_outputs_be_changed, require_reached
from core.base_model.tensors import load_weights, load_with_head, require_tied_as_said
from core.base_model.tokenizer import load_tokenizer, whole_numbers
from core.base_model.way import Way
from core.data.rendering import Renderer
from core.errors import InvalidModel
from core.lora.joint import Joint, find_joints
from core.lora.wholes import Wholes
from core.lora.wrapping import ModelLayers, head_path, wholes_of, wrap_linear_layers

_PRODUCTS = 40  # of each dtype, about 0.2 s in all
_CLEARLY = 1.5  # times as fast, so that the same CPU decides alike each time, also beside other load


@dataclass
class ResidentBase:
    """The base model in memory. Its weights stay as loaded, whatever is trained or chatted with on it."""

    folder: Path
    fingerprint: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: ModelLayers
    head: str | None
    attention: list[Attending]
    """The modules that attend, one for each decoder layer; none on the general way."""
    plain_head: bool
    """Whether the logits are the output head's product and nothing more (no capping, no scaling)."""
    generation_config: GenerationConfig | None
    own_classifier: Classifier | None = None
    """Of a base without a head that writes text: its model can do nothing else."""
    quantisation: str = NONE
    """How its linear layers are held; the output head and the embedding are as the files have them."""
    way: Way = QUICK
    """How its passes are computed where it writes text."""
    joints: Sequence[Joint] = ()
    """Layers that are computed together in decoding."""
    parts: int = 1
    """Over how many processes its layers are laid out, each of which holds a part of every one."""

    @cached_property
    def wholes(self) -> Wholes:
        """What an adapter can have of its own beside its factors; of a base that only classifies nothing."""
        return wholes_of(self.model) if self.writes_text else Wholes()

    @property
    def may_capture(self) -> bool:
        """Whether a pass can be a CUDA graph; to gather a layer others have to take part."""
        return self.device.type == "cuda" and self.parts == 1

    @property
    def writes_text(self) -> bool:
        """Whether it can be chatted with, and trained to."""
        return self.own_classifier is None

    def require_writing(self) -> None:
        """Raise InvalidModel unless it can."""
        if not self.writes_text:
            raise InvalidModel(cannot_write(self.name))

    @cached_property
    def classifier(self) -> Classifier:
        """What classifies texts by this base's layers. Raises InvalidModel if transformers has none."""
        if reads_pictures(self.model.config):
            raise InvalidModel(
                f"{self.name} reads pictures, too, and cannot be trained to classify texts yet. Choose "
                "another objective, or a base that reads text alone."
            )
        return self.own_classifier or classifier_around(self.model, self.tokenizer, self.layers)

    @cached_property
    def renderer(self) -> Renderer:
        """Renders conversations with the base's tokenizer and chat template.

        Raises InvalidModel without a fast tokenizer.
        """
        return Renderer(self.tokenizer)

    def beside(self, folder: Path, name: str, template: str) -> ResidentBase:
        """The same model in memory with the tokenizer, template and end tokens of another folder, whose
        weights and config.json must be equal. Whoever uses this one meanwhile notices nothing.

        Raises InvalidModel.
        """
        return replace(
            self,
            folder=folder,
            name=name,
            tokenizer=load_tokenizer(folder, template),
            generation_config=load_generation_config(folder, self.model),
        )

    @property
    def inner(self) -> nn.Module:
        """What gives the states that the output head needs; the whole model where it does more than that."""
        inner: nn.Module = self.model.base_model if self.plain_head else self.model
        return inner

    @cached_property
    def cache_bytes(self) -> tuple[int, int]:
        """What the cache of one row takes: for each token, and whatever its length is."""
        if not self.way.quick:
            return cache_bytes(self.model)
        numbers = sum(one.kv_heads * (one.key_width + one.value_width) for one in self.attention)
        return numbers * self.dtype.itemsize, 0

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """The repeated blocks of the model, which compile as one."""
        return decoder_layers(self.model)

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
        config = self.model.config.get_text_config()
        told = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        length = int(next((one for one in told if one), 1 << 30))
        return length - self._positions_before_the_first

    @cached_property
    def _positions_before_the_first(self) -> int:
        """RoBERTa and its kin count positions from behind that of the padding."""
        padding = [
            module.padding_idx
            for path, module in self.model.named_modules()
            if path.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        ]
        return padding[0] + 1 if padding and padding[0] is not None else 0

    @property
    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """(in_features, out_features) of each layer an adapter can target, by module path."""
        return {path: (layer.in_features, layer.out_features) for path, layer in self.layers.items()}

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of the part that reads text."""
        return self.model.config.get_text_config().to_dict()

    def end_token_ids(self) -> set[int]:
        """The ids that end an answer, by the generation config, the tokenizer and the chat template."""
        generation = self.generation_config
        told = [generation.eos_token_id if generation else None, self.tokenizer.eos_token_id]
        by_template = self.renderer.end_ids if getattr(self.tokenizer, "is_fast", False) else frozenset()
        return {*by_template, *(one for value in told for one in whole_numbers(value))}


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of a model, in its order, whether they are laid out or not."""
    kinds = set(model._no_split_modules or ())
    return [module for module in model.modules() if kinds & {one.__name__ for one in type(module).__mro__}]


def load_base(
    folder: Path,
    *,
    fingerprint: str = "",
    name: str = "",
    template: str = "",
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    quantisation: str = NONE,
) -> ResidentBase:
    """Load the model and tokenizer in `folder`, safetensors only and without any code of its own.

    template names the known chat template for a base that has none of its own. device and dtype default to
    the best this machine has. With a quantisation each linear layer is quantised when it has been read, so
    that never more than one of them is in memory as the files have it.

    Raises InvalidModel if the files do not hold exactly the tensors of the architecture, if transformers
    cannot load it, or if it would be computed otherwise here than there; InvalidConfig for a quantisation
    that is not there.
    """
    device = device or best_device()
    dtype = dtype or best_dtype(device)
    config = load_config(folder)
    if not is_writing(config):
        if quantisation != NONE:
            raise InvalidModel(plain_encoder(name or folder.name))
        return _load_classifier(folder, config, fingerprint, name, device, dtype)
    way = find_way(config)
    if quantisation != NONE and not way.quick:
        raise InvalidModel(plain_on_the_general_way(name or folder.name))
    model = load_writing(folder, config, device, dtype, quantisation)
    tokenizer = load_tokenizer(folder, template)
    resident = make_resident(model, tokenizer, folder=folder, fingerprint=fingerprint, name=name, way=way)
    resident.quantisation = quantisation
    return resident


def load_writing(
    folder: Path, config: PretrainedConfig, device: torch.device, dtype: torch.dtype, quantisation: str
) -> PreTrainedModel:
    """The model that writes text, on the device; raises as load_base(). On the CPU weights that the files
    hold in `dtype` are mapped from there, and take no memory of this process.
    """
    if quantisation == FP8:
        require_fp8(device, dtype)
    how = {} if quantisation in (NONE, FP8) else quantising(quantisation, device)
    with ExitStack() as opened:
        model = load_weights(folder, config, _slices(folder, opened), dtype=dtype, **how)
    require_tied_as_said(folder, model)
    model.generation_config = load_generation_config(folder, model)
    if how:
        return take_over(model)
    if quantisation == FP8:
        to_fp8(model, device)
    model.to(device)  # type: ignore[arg-type]
    return model


def _load_classifier(
    folder: Path,
    config: PretrainedConfig,
    fingerprint: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> ResidentBase:
    """A base without a head that writes text, which transformers' own forward pass and attention compute."""
    with ExitStack() as opened:
        model, missing = load_with_head(folder, config, _slices(folder, opened), dtype=dtype)
    model.to(device).eval()  # type: ignore[arg-type]
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    tokenizer = load_tokenizer(folder)
    classifier = classifier_of(model, tokenizer, missing)
    return ResidentBase(
        folder,
        fingerprint,
        name,
        model,
        tokenizer,
        ModelLayers(model, classifier.layers),
        None,
        [],
        False,
        None,
        classifier,
    )


def _slices(folder: Path, opened: ExitStack) -> dict[str, Any]:
    """The tensors of a folder by name, read when they are asked for, while `opened` is."""
    files = {
        path: opened.enter_context(safe_open(path, framework="pt", device="cpu"))
        for path in weight_files(folder)
    }
    return {name: files[path].get_slice(name) for name, (path, _) in stored_tensors(folder).items()}


def load_generation_config(folder: Path, model: PreTrainedModel) -> GenerationConfig:
    """What generation_config.json says, or what follows from the model's configuration without one.

    Raises InvalidModel.
    """
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(model.config)
    with refusing(f"transformers cannot use {folder / 'generation_config.json'}"):
        found = GenerationConfig.from_pretrained(folder)
    ends = found.eos_token_id
    if not all(type(one) is int for one in (ends if isinstance(ends, list) else [ends]) if one is not None):
        raise InvalidModel(
            f"{folder.name}/generation_config.json says eos_token_id = {str(ends)[:60]!r}; expected the "
            "number of a token, or a list of such numbers."
        )
    return found


def make_resident(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    fingerprint: str = "",
    name: str = "",
    way: Way = QUICK,
    parts: int = 1,
) -> ResidentBase:
    """Freeze a model where it is and put LoRA layers into it. parts: over how many processes it is laid out,
    which all do this at the same time.

    Raises InvalidModel if it cannot be computed on this way.
    """
    model.eval()
    set_attention(model, way.attention)
    set_experts(model, way.experts)
    head = head_path(model)
    layers = wrap_linear_layers(model)
    require_reached(model, layers)
    let_outputs_be_changed(model, layers)
    return ResidentBase(
        folder,
        fingerprint,
        name,
        model,
        tokenizer,
        layers,
        head if head in layers else None,
        find_attention_modules(model) if way.quick else [],
        _head_is_plain(model),
        model.generation_config,
        way=way,
        joints=find_joints(model) if way.quick and model.device.type == "cuda" and parts == 1 else (),
        parts=parts,
    )


@torch.no_grad()
def _head_is_plain(model: PreTrainedModel) -> bool:
    """Seen on two tokens rather than read from the configuration, where each architecture has words of its
    own.
    """
    if model.base_model is model:  # its part below the head is not called so
        return False
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
    return best[torch.bfloat16] * _CLEARLY < best[torch.float32]


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds for a matrix product of a small model's size."""
    x, w = torch.ones(256, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
    start = time.perf_counter()
    torch.mm(x, w)
    return time.perf_counter() - start
