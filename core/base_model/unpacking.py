"""Repositories that bitsandbytes has quantised to 4 bits before, made plain once: a folder of safetensors
with the numbers that their layers compute with.

So such a base is another one than its original, and everything that a plain base can be used for it can, too:
trained on in full precision, or held in 4 bits again (quantisation=nf4).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.base_model.describe import is_packed
from core.base_model.files import INDEX_NAME, read_json, stored_tensors, weight_files
from core.base_model.quantisation import NF4, require_quantising
from core.errors import InvalidModel
from core.events import Progress
from core.files.publish import require_space
from core.files.safetensors_file import DTYPE_BYTES, TensorEntry, build_header, read_header
from core.reporting import Report

_STATE = ".quant_state.bitsandbytes__"
_KINDS, _BLOCKS = ("nf4", "fp4"), (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_TORCH = {"U8": torch.uint8, "F32": torch.float32}

Stored = Mapping[str, tuple[Path, TensorEntry]]


@dataclass(frozen=True)
class _State:
    """What is known of a packed weight beside its bytes."""

    kind: str
    dtype: str
    """As safetensors calls it: that of the original, which it computes in."""
    shape: tuple[int, ...]
    block: int
    nested_block: int
    nested_offset: float


def unpack(source: Path, target: Path, report: Report) -> None:
    """Write the weights of `source` into the folder `target`, each made plain, with a config.json that says
    so. One tensor is in memory at a time.

    Raises InvalidModel for files that are not what bitsandbytes writes, InvalidConfig without bitsandbytes,
    OutOfSpace.
    """
    assert is_packed(read_json(source / "config.json"))
    require_quantising(NF4)
    import bitsandbytes  # noqa: F401  (its operators)

    stored = stored_tensors(source)
    states = {name: _state(name, stored) for name in stored if _is_packed(name, stored)}
    files = {path.name: list(_layout(path, states)) for path in weight_files(source)}
    total = sum(math.prod(shape) * DTYPE_BYTES[dtype] for rows in files.values() for _, dtype, shape in rows)
    require_space(target, total)
    done = 0
    for file, layout in files.items():
        with (target / file).open("wb") as out:
            out.write(build_header(layout, {"format": "pt"}))
            for name, _, _ in layout:
                done += out.write(_plain(name, stored, states))
                report(Progress(f"Making {name} plain", done / max(total, 1)))
    if len(files) > 1:
        _write_index(target, {name: file for file, rows in files.items() for name, _, _ in rows}, total)
    _write_config(source, target)


def _is_packed(name: str, stored: Stored) -> bool:
    return any(f"{name}{_STATE}{kind}" in stored for kind in _KINDS)


def _layout(path: Path, states: Mapping[str, _State]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The tensors that a plain file holds in the place of this one."""
    for entry in read_header(path).tensors:
        weight, _, part = entry.name.partition(".weight.")
        if state := states.get(entry.name):
            yield entry.name, state.dtype, state.shape
        elif not (part and f"{weight}.weight" in states):
            yield entry.name, entry.dtype, entry.shape


def _state(name: str, stored: Stored) -> _State:
    """What is told of a packed weight. Raises InvalidModel where the bytes that there are do not fit it."""
    try:
        state = _told(name, stored)
        sound = _fits(state, name, stored)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InvalidModel(
            f"{name[:120]} is not packed as bitsandbytes packs a weight to 4 bits; get the files again, or "
            "add the original model."
        )
    return state


def _told(name: str, stored: Stored) -> _State:
    kind = next(kind for kind in _KINDS if f"{name}{_STATE}{kind}" in stored)
    told: dict[str, Any] = json.loads(bytes(_read(f"{name}{_STATE}{kind}", stored)))
    return _State(
        kind,
        _DTYPES[told["dtype"]],
        tuple(int(size) for size in told["shape"]),
        int(told["blocksize"]),
        int(told.get("nested_blocksize", 0)),
        float(told.get("nested_offset", 0.0)),
    )


def _fits(state: _State, name: str, stored: Stored) -> bool:
    count = math.prod(state.shape)
    if len(state.shape) != 2 or count <= 0 or state.block not in _BLOCKS:
        return False
    blocks, entry = -(-count // state.block), stored[name][1]
    scales = stored[f"{name}.absmax"][1].count
    halves = (entry.dtype, entry.count, scales) == ("U8", -(-count // 2), blocks)
    if not _is_nested(name, stored):
        return halves
    nested = stored[f"{name}.nested_absmax"][1].count
    return halves and state.nested_block in _BLOCKS and nested == -(-blocks // state.nested_block)


def _is_nested(name: str, stored: Stored) -> bool:
    return f"{name}.nested_absmax" in stored


def _plain(name: str, stored: Stored, states: Mapping[str, _State]) -> bytes:
    """The bytes that a plain file holds of a tensor."""
    if (state := states.get(name)) is None:
        return bytes(_read(name, stored))
    ops: Any = torch.ops.bitsandbytes
    scales = _tensor(f"{name}.absmax", stored)
    if _is_nested(name, stored):
        nested, code = (_tensor(f"{name}.nested_{part}", stored) for part in ("absmax", "quant_map"))
        scales = ops.dequantize_blockwise(scales, nested, code, state.nested_block, torch.float32)
        scales = scales + state.nested_offset
    dtype = next(getattr(torch, told) for told, own in _DTYPES.items() if own == state.dtype)
    packed = _tensor(name, stored).view(-1, 1)
    weight = ops.dequantize_4bit(packed, scales, state.block, state.kind, state.shape, dtype)
    return weight.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _tensor(name: str, stored: Stored) -> Tensor:
    return torch.frombuffer(_read(name, stored), dtype=_TORCH[stored[name][1].dtype])


def _read(name: str, stored: Stored) -> bytearray:
    path, entry = stored[name]
    with path.open("rb") as file:
        file.seek(entry.start)
        return bytearray(file.read(entry.end - entry.start))


def _write_index(target: Path, where: Mapping[str, str], total: int) -> None:
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (target / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_config(source: Path, target: Path) -> None:
    config = read_json(source / "config.json")
    del config["quantization_config"]
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
