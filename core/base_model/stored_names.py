"""What transformers calls the tensors that a base's files call otherwise, such as those of older releases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from core.base_model.model_config import load_config, model_class, refusing


def model_names(folder: Path, stored: Iterable[str]) -> dict[str, str]:
    """By the names in the model those in the files, of tensors that are renamed and otherwise left as they
    are. Raises InvalidModel.
    """
    found = {}
    for called, pattern, name, there, _ in _called(folder, stored):
        if pattern is None and called in there:
            found[called] = name
    return found


def parts_of_fused(
    folder: Path, stored: Iterable[str]
) -> dict[str, tuple[WeightConverter, dict[str, list[str]]]]:
    """By the names in the model what transformers makes each of that is made of several tensors: by which
    converter, and of which in the files, by the pattern of the converter that names them. Raises
    InvalidModel.
    """
    found: dict[str, tuple[WeightConverter, dict[str, list[str]]]] = {}
    for called, pattern, name, there, converters in _called(folder, stored):
        if pattern is not None and called in there:
            converter = next(one for one in converters if pattern in one.source_patterns)
            found.setdefault(called, (converter, {}))[1].setdefault(pattern, []).append(name)
    return found


def _called(
    folder: Path, stored: Iterable[str]
) -> Iterator[tuple[str, str | None, str, Mapping[str, object], Sequence[WeightConverter]]]:
    """For each name in the files: the model's, the pattern of a converter that takes it, the name, all of the
    model's, all converters.
    """
    config = load_config(folder)
    with refusing(f"transformers cannot build {folder.name} ({config.model_type})"), torch.device("meta"):
        model = model_class(config)(config)
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    there = model.state_dict()
    for name in stored:
        called, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, there)
        yield called, pattern, name, there, converters
