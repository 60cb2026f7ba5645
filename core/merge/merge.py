"""Merging an adapter into its base: W' = W + (α/r)·B·A, as a pure function from files to files.

Each output file has the layout of its input file. Untargeted tensors are copied byte for byte; targeted ones are
added in float32 and cast once to their own dtype. One tensor is in memory at a time, and the base's files are only read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import safe_open
from torch import Tensor

from core.base_model.files import INDEX_NAME, weight_files
from core.errors import InvalidAdapter
from core.events import Progress
from core.lora.adapter import AdapterWeights
from core.publish import require_space
from core.reporting import Report
from core.safetensors_file import TensorEntry, build_header, read_header

_COPY_BYTES = 16 * 1024 * 1024
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote."""

    merged_tensors: int
    copied_tensors: int
    bytes_written: int


def merge_into_base(
    base_folder: Path, adapter: AdapterWeights, transposed: frozenset[str], target: Path, report: Report,
    metadata: Mapping[str, str],
) -> MergeReport:  # fmt: skip
    """Write the weights of base + adapter into the existing folder `target`.

    transposed: module paths whose weight is stored as [in, out] (GPT-2). metadata goes into every file's header.
    Raises InvalidAdapter if a targeted layer has no weight in the files, OutOfSpace before anything is written.
    """
    shards = weight_files(base_folder)
    total = sum(path.stat().st_size for path in shards)
    require_space(target, total)
    names = {entry.name for path in shards for entry in read_header(path).tensors}
    module_of = {tensor_name(path, names): path for path in adapter.layers}
    merged = copied = written = 0
    for source in shards:
        for entry, size in _merge_shard(source, target / source.name, adapter, module_of, transposed, metadata):
            merged, copied = (merged + 1, copied) if entry.name in module_of else (merged, copied + 1)
            written += size
            report(Progress(f"Merging {entry.name}", min(written / total, 1.0)))
    if (base_folder / INDEX_NAME).is_file():
        (target / INDEX_NAME).write_bytes((base_folder / INDEX_NAME).read_bytes())
    return MergeReport(merged, copied, written)


def tensor_name(path: str, names: set[str]) -> str:
    """The name under which files hold the weight of module `path`; some leave out the outermost module's name."""
    candidates = (f"{path}.weight", f"{path.partition('.')[2]}.weight")
    found = next((name for name in candidates if name in names), None)
    if found is None:
        raise InvalidAdapter(f"The base's files hold no weight for {path}, so the adapter cannot be merged into it.")
    return found


def _merge_shard(
    source: Path, target: Path, adapter: AdapterWeights, module_of: Mapping[str, str],
    transposed: frozenset[str], metadata: Mapping[str, str],
) -> Iterator[tuple[TensorEntry, int]]:  # fmt: skip
    """Write one file, tensor by tensor; yield each with its size in bytes."""
    header = read_header(source)
    layout = [(entry.name, entry.dtype, entry.shape) for entry in header.tensors]
    with (
        safe_open(source, framework="pt") as tensors,
        source.open("rb") as raw_file,
        mmap.mmap(raw_file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
        target.open("wb") as out,
    ):
        out.write(build_header(layout, {**header.metadata, **metadata}))
        for entry in header.tensors:
            path = module_of.get(entry.name)
            if path is None:
                for start in range(entry.start, entry.end, _COPY_BYTES):
                    out.write(raw[start : min(start + _COPY_BYTES, entry.end)])
            else:
                weight = merged_weight(tensors.get_tensor(entry.name), entry, adapter, path, path in transposed)
                out.write(weight.view(torch.uint8).numpy().data)
            yield entry, entry.end - entry.start


def merged_weight(weight: Tensor, entry: TensorEntry, adapter: AdapterWeights, path: str, transposed: bool) -> Tensor:
    """W + ΔW in float32, cast once to W's dtype; contiguous. Raises InvalidAdapter if the shapes disagree."""
    delta = adapter.layers[path].delta_weight()
    delta = delta.T if transposed else delta
    if delta.shape != weight.shape or entry.dtype not in _FLOATS:
        raise InvalidAdapter(f"ΔW of {path} is {list(delta.shape)}, but the base holds {entry.dtype} {list(weight.shape)} there.")
    return (weight.float() + delta).to(weight.dtype).contiguous()
