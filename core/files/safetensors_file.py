"""The safetensors container, read without torch: header, byte ranges, and writing tensor by tensor.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data. Source: the format description in the safetensors project's README.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidInput

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
_OTHERS = {
    b"version ": "is only a pointer of Git LFS; fetch the file itself (git lfs pull).",
    b"PK\x03\x04": "is a file of torch.save or a zip; save it as safetensors.",
    b"\x1f\x8b": "is packed with gzip; unpack it.",
    b"GGUF": "is a GGUF file; call it .gguf.",
    b"<!doctyp": "is a web page, not the file itself; download that.",
    b"<html": "is a web page, not the file itself; download that.",
}
"""What is often found under the name of a safetensors file, by how it begins."""
MAX_HEADER_BYTES = 64 * 1024 * 1024  # a base model's shard; adapters have a tighter limit of their own


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: where its bytes lie, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SafetensorsHeader:
    """The parsed header: tensors in file order, and the free metadata."""

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]


def read_header(
    path: Path, max_bytes: int = MAX_HEADER_BYTES, max_tensors: int = 1_000_000
) -> SafetensorsHeader:
    """Parse and check the header of a safetensors file.

    Raises InvalidInput if the file is cut off, its header too large, or a tensor's range, shape and dtype
    disagree.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else 0
        if not 2 <= length <= min(max_bytes, size - 8):
            raise InvalidInput(_no_safetensors(path.name, size, lead, length))
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{path.name} is not a safetensors file: its header is not valid JSON.") from None
    if not isinstance(header, dict) or len(header) > max_tensors + 1:
        raise InvalidInput(f"{path.name} has no usable header: at most {max_tensors:,} tensors are accepted.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidInput(f"{path.name} has metadata that is not text.")
    entries = [_entry(path, name, about, 8 + length) for name, about in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_contiguous(path, entries, 8 + length, size)
    return SafetensorsHeader(tuple(entries), metadata)


def _no_safetensors(name: str, size: int, lead: bytes, length: int) -> str:
    """What a file of another kind is, by its first bytes."""
    known = next((what for start, what in _OTHERS.items() if lead.lower().startswith(start.lower())), None)
    if size < 8 or known:
        return f"{name} {known or f'is cut off: of its bytes only {size:,} are there.'}"
    return f"{name} is not a safetensors file: its header would be {length:,} bytes long."


def _entry(path: Path, name: str, about: object, base: int) -> TensorEntry:
    try:
        dtype, shape, (start, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]  # type: ignore[index]
        well_typed = all(type(number) is int and number >= 0 for number in (*shape, start, end))
        sound = well_typed and end - start == math.prod(shape) * DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InvalidInput(f"{path.name}: the entry of tensor {name[:120]!r} is malformed.")
    return TensorEntry(name, dtype, shape, base + start, base + end)


def _check_contiguous(path: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    position = start
    for entry in entries:
        if entry.start != position:
            raise InvalidInput(
                f"{path.name}: tensor {entry.name[:120]!r} does not start where the one before it ends."
            )
        position = entry.end
    if position != size:
        raise InvalidInput(
            f"{path.name} is {size:,} bytes long where its header describes {position:,}; it is cut off "
            "or damaged."
        )


def build_header(layout: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The leading bytes of a file that will hold these (name, dtype, shape) tensors in this order."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape in layout:
        end = position + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # the data starts aligned to 8 bytes
    return struct.pack("<Q", len(raw)) + raw


def write_float32(path: Path, tensors: Mapping[str, NDArray[np.float32]], metadata: dict[str, str]) -> None:
    """A file of float32 tensors, sorted by name: the same content is the same file.

    The library orders metadata by chance.
    """
    names = sorted(tensors)
    with path.open("wb") as file:
        file.write(build_header([(name, "F32", tensors[name].shape) for name in names], metadata))
        for name in names:
            file.write(np.ascontiguousarray(tensors[name], np.float32).tobytes())
