"""Which tensors of a base's files an adapter has numbers of its own for, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from core.base_model.skeleton import tied_parameters
from core.errors import InvalidAdapter
from core.files.safetensors_file import TensorEntry
from core.lora.adapter import AdapterWeights
from core.lora.wholes import BIAS, BIAS_ON_B, WEIGHT, module_of
from core.merge.stream import read_range

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Entries = Mapping[str, tuple[Path, TensorEntry]]
"""Where each tensor of a base lies."""
Names = Mapping[str, str]
"""What the files call a tensor, by each name that it may be looked for under."""


def whole_tensors(adapter: AdapterWeights, entries: Entries, names: Names) -> dict[str, Tensor]:
    """What the merged model holds in the place of the base's tensors, by their names in its files, float32.

    Raises InvalidAdapter for a bias on B where the base has none, or for what its files hold otherwise.
    """
    found = {}
    for name, tensor in adapter.wholes.items():
        if not name.endswith(BIAS_ON_B):
            path, _, end = name.rpartition(".")
            called = name_in(path, names, f".{end}")
            if called is None and adapter.is_tied and f".{end}" == WEIGHT:
                continue  # a head that is the embedding is not stored
            found[called or tensor_name(path, names, f".{end}")] = tensor
    for name, tensor in adapter.wholes.items():
        if name.endswith(BIAS_ON_B):
            path = module_of(name)
            called = tensor_name(path, names, BIAS)
            bias = found[called] if called in found else _read(*entries[called])
            found[called] = bias + tensor * adapter.layers[path].scale
    for name, tensor in found.items():
        _require_shape(tensor, entries[name][1])
    return found


def replaced_tensors(
    base_folder: Path, whole: Mapping[str, Tensor], entries: Entries, names: Names
) -> dict[str, Tensor]:
    """What full fine-tuning puts in the place of the base's tensors, by their names in its files. A head that
    is tied to the embedding and stored beside it is replaced with it.

    Raises InvalidAdapter where the files hold no such tensor, as where they hold it in another arrangement.
    """
    found = {}
    for name, tensor in whole.items():
        path, _, end = name.rpartition(".")
        found[tensor_name(path, names, f".{end}")] = tensor
    tied = tied_parameters(base_folder) if whole else None
    if tied is not None and tied[0] in whole:
        called = name_in(module_of(tied[1]), names, WEIGHT)
        found |= {called: whole[tied[0]]} if called is not None else {}
    for name, tensor in found.items():
        _require_shape(tensor, entries[name][1])
    return found


def tensor_name(path: str, names: Names, end: str = WEIGHT) -> str:
    """The name under which files hold the weight, or the bias, of module `path`.

    Raises InvalidAdapter if they hold none.
    """
    found = name_in(path, names, end)
    if found is None:
        raise InvalidAdapter(
            f"The base's files hold no {end.removeprefix('.')} for {path}, so the adapter cannot be merged "
            "into it."
        )
    return found


def name_in(path: str, names: Names, end: str = WEIGHT) -> str | None:
    """Some files leave out the outermost module's name, others have one more in front."""
    candidates = (f"{path}{end}", f"{path.partition('.')[2]}{end}")
    if found := next((names[name] for name in candidates if name in names), None):
        return found
    longer = {names[name] for name in names if name.endswith(f".{path}{end}")}
    return longer.pop() if len(longer) == 1 else None


def _read(path: Path, entry: TensorEntry) -> Tensor:
    """A tensor as it is stored, in float32."""
    raw = read_range(path, entry.start, entry.end)
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[entry.dtype]).float().view(entry.shape)


def _require_shape(tensor: Tensor, entry: TensorEntry) -> None:
    if entry.shape != tuple(tensor.shape) or entry.dtype not in TORCH_DTYPES:
        raise InvalidAdapter(
            f"{entry.name} of the adapter is {list(tensor.shape)}, but the base holds {entry.dtype} "
            f"{list(entry.shape)} there."
        )
