"""Repositories whose weights are packed in one of the formats of core/base_model/packings.py, made plain
once: a folder of safetensors with the numbers that their layers compute with.

So such a base is another one than its original, and everything that a plain base can be used for it can, too:
trained on in full precision, or held in 4 bits again (quantisation=nf4).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from core.base_model.files import INDEX_NAME, read_json, stored_tensors, weight_files
from core.base_model.packed.float8 import fp8_weights
from core.base_model.packed.mxfp4 import mxfp4_weights
from core.base_model.packed.nf4 import nf4_weights
from core.base_model.packed.packed_tensor import DTYPES, PackedTensor, Stored, read_bytes
from core.base_model.packings import BITSANDBYTES, MXFP4, packed_as
from core.events import Progress
from core.files.publish import require_space
from core.files.safetensors_file import DTYPE_BYTES, build_header, read_header
from core.reporting import Report

_Rows = list[tuple[str, str, tuple[int, ...]]]


def unpack(source: Path, target: Path, report: Report) -> None:
    """Write the weights of `source` into the folder `target`, each made plain, with a config.json that says
    so. One tensor is in memory at a time.

    Raises InvalidModel for files that are not packed as config.json says, InvalidConfig without bitsandbytes
    where that has packed them, OutOfSpace.
    """
    stored = stored_tensors(source)
    packed = _packed(source, stored)
    files = {path.name: list(_layout(path, packed)) for path in weight_files(source)}
    files = {name: rows for name, rows in files.items() if rows}  # one may have held scales alone
    total = sum(math.prod(shape) * DTYPE_BYTES[dtype] for rows in files.values() for _, dtype, shape in rows)
    require_space(target, total)
    done = 0
    for file, layout in files.items():
        with (target / file).open("wb") as out:
            out.write(build_header(layout, {"format": "pt"}))
            for name, _, _ in layout:
                done += sum(out.write(piece) for piece in _bytes(name, stored, packed))
                report(Progress(f"Making {name} plain", done / max(total, 1)))
    if len(files) > 1:
        _write_index(target, {name: file for file, rows in files.items() for name, _, _ in rows}, total)
    _write_config(source, target)


def _packed(source: Path, stored: Stored) -> Mapping[str, PackedTensor]:
    """The weights that are packed, by the names that they have when they are plain."""
    config = read_json(source / "config.json")
    method, dtype = packed_as(config), _dtype(config)
    assert method
    if method == BITSANDBYTES:
        return nf4_weights(stored)
    return mxfp4_weights(stored, dtype) if method == MXFP4 else fp8_weights(stored, config, dtype, method)


def _dtype(config: Mapping[str, Any]) -> str:
    """What the model computes in, as it says, and which transformers makes its weights plain in, too."""
    text = config.get("text_config")
    parts = [config, text if isinstance(text, dict) else {}]
    told = (str(part.get(name)) for part in parts for name in ("dtype", "torch_dtype") if part.get(name))
    return DTYPES.get(next(told, ""), "BF16")


def _layout(path: Path, packed: Mapping[str, PackedTensor]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The tensors that a plain file holds in the place of this one."""
    leads = {one.parts[0]: name for name, one in packed.items()}
    others = {part for one in packed.values() for part in one.parts[1:]}
    for entry in read_header(path).tensors:
        if name := leads.get(entry.name):
            yield name, packed[name].dtype, packed[name].shape
        elif entry.name not in others:
            yield entry.name, entry.dtype, entry.shape


def _bytes(name: str, stored: Stored, packed: Mapping[str, PackedTensor]) -> Iterator[bytes]:
    """The bytes that a plain file holds of a tensor, in pieces."""
    if name not in packed:
        yield bytes(read_bytes(name, stored))
        return
    for piece in packed[name].plain(stored):
        yield piece.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _write_index(target: Path, where: Mapping[str, str], total: int) -> None:
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (target / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_config(source: Path, target: Path) -> None:
    config = read_json(source / "config.json")
    del config["quantization_config"]
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
