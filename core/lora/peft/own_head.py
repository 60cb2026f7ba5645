"""The head of a classifier in an adapter's files: whole parameters of the model, and what its scores mean.

PEFT calls them modules_to_save. It does not keep the labels' names, so these stand in the header of our
files. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data.labels import LabelSet, numbered
from core.errors import InvalidAdapter
from core.files.safetensors_file import SafetensorsHeader, TensorEntry, read_header
from core.lora.peft.config import CLASSIFIES, raw_config
from core.lora.peft.config_checks import CONFIG_NAME

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
DTYPES = ("F32", "F16", "BF16")
"""In which an adapter's tensors may be stored."""
LABELS_KEY = "labels"
"""Under which the header of a classifier's file says what its scores stand for."""
_SCORES = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
"""The parameters whose rows are the labels."""


def head_entries(header: SafetensorsHeader, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """The tensors of a classifier's head by their paths in the model, as its checked configuration names its
    modules; none of an adapter that writes.

    Raises InvalidAdapter for one that is in no usual format.
    """
    modules = config.get("modules_to_save") if config.get("task_type") == CLASSIFIES else None
    found: dict[str, TensorEntry] = {}
    for entry in header.tensors:
        path = entry.name.removeprefix(PREFIX)
        if ".lora_" in path or not any(path.startswith(f"{module}.") for module in modules or ()):
            continue
        if path == entry.name or entry.dtype not in DTYPES:
            raise InvalidAdapter(f"{WEIGHTS_NAME}: {entry.name[:120]!r} is no part of a head.")
        found[path] = entry
    return found


def labels_of(header: SafetensorsHeader, config: Mapping[str, Any]) -> LabelSet | None:
    """What a classifier's scores stand for, as its file records it; PEFT's files only tell how many there
    are. None for an adapter that writes.

    Raises InvalidAdapter where one that classifies has no head, or records another number of labels than it
    has.
    """
    if config.get("task_type") != CLASSIFIES:
        return None
    scores = [entry.shape[0] for path, entry in head_entries(header, config).items() if path in _SCORES]
    if not scores:
        raise InvalidAdapter(
            f"{CONFIG_NAME} says that the adapter classifies (task_type {CLASSIFIES}), but {WEIGHTS_NAME} "
            "holds no head that gives the labels' scores."
        )
    labels = LabelSet.from_json(header.metadata.get(LABELS_KEY, "")) or numbered(scores[0])
    if len(labels) != scores[0]:
        raise InvalidAdapter(
            f"{WEIGHTS_NAME} names {len(labels)} labels, but its head gives {scores[0]} scores."
        )
    return labels


def stored_labels_of(folder: Path) -> LabelSet | None:
    """Those of an adapter that was stored here, whose files were checked before; None for one that writes."""
    return labels_of(read_header(folder / WEIGHTS_NAME), raw_config(folder / CONFIG_NAME))
