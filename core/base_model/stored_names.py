"""What transformers calls the tensors that a base's files call otherwise, such as those of older releases."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from core.base_model.model_config import load_config, model_class, refusing


def model_names(folder: Path, stored: Iterable[str]) -> dict[str, str]:
    """By the names in the model those in the files, of tensors that are renamed and otherwise left as they
    are. Raises InvalidModel.
    """
    config = load_config(folder)
    with refusing(f"transformers cannot build {folder.name} ({config.model_type})"), torch.device("meta"):
        model = model_class(config)(config)
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    found, there = {}, model.state_dict()
    for name in stored:
        called, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, there)
        if converted is None and called in there:
            found[called] = name
    return found
