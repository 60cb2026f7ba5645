"""Single tensors of a base's files, compared with what else claims to be them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from core.base_model.files import weight_files

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def has_tensor(folder: Path, name: str, tensor: Tensor) -> bool:
    """Whether the base in `folder` stores a tensor of this name, with or without its outermost modules, that
    holds the same numbers, as stored or rounded to the tensor's format.

    A head that is not stored is the input embedding. Raises InvalidModel if the folder holds no weights.
    """
    found = list(_named(folder, (name,)))
    if not found and name.endswith("lm_head.weight"):
        found = list(_named(folder, _EMBEDDINGS))
    return any(_same(stored, tensor) for stored in found)


def _named(folder: Path, names: tuple[str, ...]) -> Iterator[Tensor]:
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                if any(f".{key}".endswith(f".{name}") or f".{name}".endswith(f".{key}") for name in names):
                    yield file.get_tensor(key)


def _same(stored: Tensor, tensor: Tensor) -> bool:
    if stored.shape != tensor.shape or not tensor.is_floating_point():
        return False
    return torch.equal(stored.to(tensor.dtype), tensor) or torch.equal(stored.float(), tensor.float())
