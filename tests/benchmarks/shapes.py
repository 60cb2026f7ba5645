"""Models of known shapes with random weights, built on the device, and rows to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from core.base_model.agreement import QUICK, find_way
from core.base_model.load import ResidentBase, make_resident
from core.base_model.quantisation import FP8, NONE
from core.base_model.quantised_load import quantise

SHAPES = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    # SmolLM2-135M, Llama 3.2 1B, Llama 3.1 8B
    "starter": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "70b": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
GENERAL = {
    # about 1 B parameters in the manner of gpt-oss and of Qwen3-Next, which go the general way
    "gpt-oss-1b": {
        "model_type": "gpt_oss",
        "vocab_size": 128256,
        "hidden_size": 1536,
        "intermediate_size": 1536,
        "num_hidden_layers": 16,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3-next-1b": {
        "model_type": "qwen3_next",
        "vocab_size": 128256,
        "hidden_size": 1536,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 1536,
    },
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RANK, ALPHA = 16, 32


def build(shape: str, dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE) -> PreTrainedModel:
    """A Llama of this shape with random weights, or a model of a family that goes the general way."""
    torch.manual_seed(0)
    if shape in GENERAL:
        values = dict(GENERAL[shape])
        config = CONFIG_MAPPING[values.pop("model_type")](**values)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rope_theta=500000.0)
    with _default(dtype), device:
        return LlamaForCausalLM(config).eval()


def build_quantised(
    shape: str, quantisation: str, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The same in few bits, one layer in `dtype` at a time."""
    sizes = SHAPES[shape]
    config = LlamaConfig(
        **{**sizes, "num_hidden_layers": 0}, max_position_embeddings=8192, rope_theta=500000.0
    )
    torch.manual_seed(0)
    with _default(dtype), device:
        model = LlamaForCausalLM(config).eval()
        config.num_hidden_layers = sizes["num_hidden_layers"]
        for number in range(config.num_hidden_layers):
            layer = LlamaDecoderLayer(config, number).eval()
            for one in layer.modules():
                if isinstance(one, nn.Linear):
                    nn.init.normal_(one.weight, std=config.initializer_range)
            if quantisation != FP8 or number < config.num_hidden_layers - 1:  # as in_few_bits() has it
                quantise(layer, None, quantisation, device)
            model.model.layers.append(layer)
    return model


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class NoTokenizer:
    """Benchmarks work on ids; nothing is ever put into words but to show that there is something to show."""

    eos_token_id = None
    backend_tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))

    def decode(self, ids: object, **options: object) -> str:
        """No text."""
        return ""


def resident(
    shape: str, dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE, quantisation: str = NONE
) -> ResidentBase:
    """The same model as the engine holds it."""
    if quantisation == NONE:
        model = build(shape, dtype, device)
    else:
        model = build_quantised(shape, quantisation, dtype, device)
    way = find_way(model.config) if shape in GENERAL else QUICK
    base = make_resident(model, NoTokenizer(), folder=Path("."), name=shape, way=way)  # type: ignore[arg-type]
    base.quantisation = quantisation
    base.model.generation_config.eos_token_id = None
    return base


def laid_out(shape: str, layers: int, device: torch.device, quantisation: str = NONE) -> ResidentBase:
    """The same over all processes of the default group, built a layer at a time so that no device holds it
    all; layers: how many, 0 for as many as the shape has.
    """
    from core.base_model.sharded import mesh_of, shard_around, shard_layers

    sizes = SHAPES[shape]
    config = LlamaConfig(
        **{**sizes, "num_hidden_layers": 0}, max_position_embeddings=8192, rope_theta=500000.0
    )
    mesh = mesh_of(device)
    torch.manual_seed(0)
    with _default(torch.bfloat16), device:
        model = LlamaForCausalLM(config).eval()
        config.num_hidden_layers = layers or int(sizes["num_hidden_layers"])
        for number in range(config.num_hidden_layers):
            layer = LlamaDecoderLayer(config, number).eval().requires_grad_(False)
            for one in layer.modules():
                if isinstance(one, nn.Linear):
                    nn.init.normal_(one.weight, std=config.initializer_range)
            if quantisation != NONE:
                quantise(layer, None, quantisation, device)
            shard_layers([layer], mesh)
            model.model.layers.append(layer)
    shard_around(model, model.model, list(model.model.layers), mesh, device)
    base = make_resident(model, NoTokenizer(), folder=Path("."), name=shape, way=QUICK)  # type: ignore[arg-type]
    base.quantisation = quantisation
    base.model.generation_config.eos_token_id = None
    return base


class RandomRows:
    """Rows of random ids, all of one length, in place of a tokenised data set; every token carries loss."""

    truncated = skipped = 0

    def __init__(self, count: int, length: int, vocabulary: int, seed: int = 0) -> None:
        self.max_length = length
        self._ids = np.random.default_rng(seed).integers(0, vocabulary, (count, length), dtype=np.int32)
        self.lengths = np.full(count, length, np.int64)
        self.supervised = self.lengths - 1
        self.validation = np.zeros(count, bool)
        self.sources = np.arange(count)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._ids[index], self._ids[index]
