"""Where a base's files hold the fused parameters of experts: each as one tensor, or every expert by itself.

transformers fuses experts when it loads them: it stacks the experts, and lays the rows of gate and up behind
each other (MergeModulelist and Concatenate in core_model_loading.py). What a merge adds goes the way back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from core.base_model.stored_names import model_names, parts_of_fused
from core.errors import InvalidAdapter
from core.lora.adapter import LayerFactors
from core.merge.whole_tensors import Entries, name_in

_NUMBER = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True)
class ExpertTensor:
    """What is added to one tensor of the files that holds experts."""

    module: str
    """The path of the fused parameter."""
    factors: LayerFactors
    """Of all experts, or of the one that the tensor holds, and of the rows there."""


def expert_tensors(
    base_folder: Path, factors: Mapping[str, LayerFactors], entries: Entries
) -> dict[str, ExpertTensor]:
    """By the names in the files what is added there; `factors` are of fused parameters, by path.

    Raises InvalidAdapter where the files hold experts in an arrangement that is not known.
    """
    if not factors:
        return {}
    named = {name: name for name in entries} | _renamed(base_folder, factors, entries)
    found: dict[str, ExpertTensor] = {}
    apart = []
    for path, one in factors.items():
        whole = name_in(path, named, "")
        if whole is None:
            apart.append(path)
        else:
            found[whole] = ExpertTensor(path, one)
    fused = parts_of_fused(base_folder, entries) if apart else {}
    for path in apart:
        found |= _each(path, factors[path], fused.get(path), entries)
    return found


def _renamed(base_folder: Path, paths: Collection[str], entries: Entries) -> dict[str, str]:
    """What the files call tensors by transformers' names, where some path is not among theirs."""
    there = {name: name for name in entries}
    return {} if all(name_in(path, there, "") for path in paths) else model_names(base_folder, entries)


def _each(
    path: str,
    factors: LayerFactors,
    parts: tuple[WeightConverter, Mapping[str, list[str]]] | None,
    entries: Entries,
) -> dict[str, ExpertTensor]:
    """Of a fused parameter that the files hold expert by expert."""
    if parts is None or not _is_known(parts[0]):
        raise InvalidAdapter(
            f"The base's files hold {path} in an arrangement from which it is not known what belongs to "
            "which expert, so the adapter cannot be merged into it. Use it as an adapter."
        )
    converter, names = parts
    found, first = {}, 0
    for pattern in converter.source_patterns:
        held = sorted(names.get(pattern, ()), key=_expert)
        rows = entries[held[0]][1].shape[0] if held else 0
        for name in held:
            number = _expert(name)
            own = factors.of_expert(number)
            B = own.B[first : first + rows]
            found[name] = ExpertTensor(path, LayerFactors(own.A, B, own.scale))
        first += rows
    experts, outputs = factors.B.shape[:2]
    if len(found) != experts * len(converter.source_patterns) or first != outputs:
        raise InvalidAdapter(
            f"The base's files hold {len(found)} tensors for {path}, which has {experts} experts with "
            f"{outputs} outputs each; they are incomplete."
        )
    return found


def _is_known(converter: WeightConverter) -> bool:
    """Whether experts are stacked, and their parts laid behind each other, and nothing else is done."""
    stack, *rest = converter.operations
    return (
        (type(stack) is MergeModulelist and stack.dim == 0)
        and all(type(one) is Concatenate and one.dim == 1 for one in rest)
        and len(rest) == (len(converter.source_patterns) > 1)
    )


def _expert(name: str) -> int:
    found = _NUMBER.search(name)
    if found is None:
        raise InvalidAdapter(f"{name} of the base's files has no number of an expert.")
    return int(found[1])
