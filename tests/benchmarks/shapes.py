"""Models of known shapes with random weights, built on the device, and rows to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from core.base_model.load import ResidentBase, make_resident

SHAPES = {
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
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RANK, ALPHA = 16, 32


def build(shape: str, dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE) -> PreTrainedModel:
    """A Llama of this shape with random weights."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rope_theta=500000.0)
    torch.manual_seed(0)
    with _default(dtype), device:
        return LlamaForCausalLM(config).eval()


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


def resident(shape: str, dtype: torch.dtype = torch.bfloat16, device: torch.device = DEVICE) -> ResidentBase:
    """The same model as the engine holds it."""
    base = make_resident(build(shape, dtype, device), NoTokenizer(), folder=Path("."), name=shape)  # type: ignore[arg-type]
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

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._ids[index], self._ids[index]
