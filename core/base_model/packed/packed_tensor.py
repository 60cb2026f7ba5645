"""One weight of a packed repository, and the bytes of its files that it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from core.errors import InvalidModel
from core.files.safetensors_file import TensorEntry

Stored = Mapping[str, tuple[Path, TensorEntry]]
"""Where each tensor lies, by its name in the files."""
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""As safetensors calls what torch does."""
PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_TORCH = {
    **PLAIN,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # an exponent, which each format reads for itself
}


class PackedTensor(Protocol):
    """A weight that several stored tensors make together."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of; it takes the place of the first."""
        ...

    @property
    def dtype(self) -> str:
        """That of the plain weight, as safetensors calls it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the plain weight."""
        ...

    def plain(self, stored: Stored) -> Iterator[Tensor]:
        """Its numbers, in pieces that follow each other in memory."""
        ...


def read_bytes(name: str, stored: Stored) -> bytearray:
    """The bytes of a stored tensor."""
    path, entry = stored[name]
    with path.open("rb") as file:
        file.seek(entry.start)
        return bytearray(file.read(entry.end - entry.start))


def read_tensor(name: str, stored: Stored) -> Tensor:
    """A stored tensor in the shape that it has there; F8_E8M0 as the bytes of its exponents."""
    entry = stored[name][1]
    return torch.frombuffer(read_bytes(name, stored), dtype=_TORCH[entry.dtype]).view(entry.shape)


def not_packed(name: str, how: str) -> InvalidModel:
    """For a weight whose bytes and scales do not fit each other."""
    return InvalidModel(
        f"{name[:120]} is not packed as {how}; get the files again, or add the original model."
    )
