"""What GGUF calls the parts of a model: architectures, header fields, tensor names, and the layouts that
differ.

The names and keys are those of the GGUF specification and of the gguf library's tensor map; which weights
llama.cpp wants in another order or with one added follows from how its graphs use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from core.base_model.files import read_json
from core.errors import InvalidModel

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
}
SUPPORTED = "Llama, Mistral, Qwen 2, Qwen 2.5, Qwen 3 and Gemma"
_SUFFIXES = (".weight", ".bias")
Array = NDArray[np.float32]


@dataclass(frozen=True)
class GgufArchitecture:
    """One model's architecture in GGUF's words."""

    name: str
    config: dict[str, Any]
    tensor_map: gguf.TensorNameMap

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.config["num_attention_heads"])

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_size(self) -> int:
        """Numbers in one head."""
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    def tensor_name(self, name: str) -> str | None:
        """GGUF's name of a tensor; None for one that GGUF does not hold.

        Raises InvalidModel for one it does not know.
        """
        tied = self.config.get("tie_word_embeddings", self.name == "gemma")
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and tied):
            return None
        for candidate in (name, f"model.{name}"):
            if found := self.tensor_map.get_name(candidate, try_suffixes=_SUFFIXES):
                return str(found)
        raise InvalidModel(
            f"GGUF has no name for the tensor {name[:120]} in {self.name} models, so it cannot be exported."
        )

    def arranged(self, name: str, weight: Array) -> Array:
        """A weight, a bias or a factor B [out, …] in the layout that llama.cpp computes with."""
        if self.name == "llama" and name.endswith(
            ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
        ):
            return interleaved(weight, self.heads if "q_proj" in name else self.key_value_heads)
        if self.name == "gemma" and name.endswith("norm.weight"):
            return weight + 1  # transformers multiplies by 1 + w
        return weight

    def restored(self, name: str, weight: Array) -> Array:
        """The reverse of arranged()."""
        if self.name == "llama" and name.endswith(
            ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
        ):
            return halved(weight, self.heads if "q_proj" in name else self.key_value_heads)
        if self.name == "gemma" and name.endswith("norm.weight"):
            return weight - 1
        return weight

    def extra_tensors(self) -> dict[str, Array]:
        """Tensors that follow from the configuration: the stretched frequencies of Llama 3's rotary
        embedding.
        """
        rope = _rope(self.config)
        if rope["rope_type"] != "llama3":
            return {}
        base, size = rope["rope_theta"], self.head_size
        frequencies = 1.0 / base ** (np.arange(0, size, 2) / size)
        wavelengths = 2 * math.pi / frequencies
        low, high, before = (
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
        smooth = np.clip((before / wavelengths - low) / (high - low), 0.0, 1.0)
        return {"rope_freqs.weight": (1.0 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)}

    def write_header(self, writer: gguf.GGUFWriter, vocabulary_size: int) -> None:
        """The fields that describe the model's shape."""
        config = self.config
        writer.add_context_length(config.get("max_position_embeddings", 2048))
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_value_heads)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_dimension_count(self.head_size)
        writer.add_vocab_size(vocabulary_size)
        rope = _rope(config)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])


def window_of(config: dict[str, Any]) -> int | None:
    """How many tokens a layer attends to at most, if that is fewer than the context length; None if to all.

    llama.cpp has no such window in the graphs of the architectures that are written here: their loaders do
    not read sliding_window (src/llama-model.cpp).
    """
    window, length = config.get("sliding_window"), config.get("max_position_embeddings", 2048)
    used = config.get("use_sliding_window", config.get("model_type") == "mistral")
    if not used or not isinstance(window, int) or window >= length:
        return None
    kinds = config.get("layer_types") or ["sliding_attention"]
    return window if "sliding_attention" in kinds else None


def interleaved(weight: Array, heads: int) -> Array:
    """Rows of each head from two halves to pairs: llama.cpp rotates neighbours where transformers rotates
    halves.
    """
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def halved(weight: Array, heads: int) -> Array:
    """The reverse of interleaved()."""
    shape = weight.shape
    return weight.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_architecture(folder: Path) -> GgufArchitecture:
    """Raises InvalidModel if llama.cpp's layout of the model in `folder` is not known here."""
    config = read_json(folder / "config.json")
    kind = str((config.get("architectures") or ["?"])[0])
    if kind not in _ARCHITECTURES:
        raise InvalidModel(
            f"A {kind} cannot be written as GGUF here; {SUPPORTED} can. Export it as safetensors instead."
        )
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise InvalidModel(
            f"Its rotary embedding is of the kind {rope['rope_type']}, which is not written as GGUF here."
        )
    name = _ARCHITECTURES[kind]
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    return GgufArchitecture(name, config, gguf.get_tensor_name_map(number, int(config["num_hidden_layers"])))


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Newer configurations keep everything in one place, older ones beside and in rope_scaling."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return {
        **rope,
        "rope_type": kind,
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
    }
