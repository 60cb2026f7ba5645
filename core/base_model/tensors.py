"""Whether the tensors in a base's files are those of the architecture that its configuration names.

transformers itself loads them, without a number being read: the files' names, shapes and dtypes go through
its own renaming and fusing onto a model on the meta device. So what is missing, left over or misshapen is
known at the price of building an empty model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from core.base_model.files import stored_tensors
from core.base_model.fingerprint import tensor_digest
from core.base_model.model_config import is_writing, load_config, model_class, refusing
from core.errors import InvalidModel
from core.files.safetensors_file import TensorEntry
from core.lora.wrapping import head_path

_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LEFT_OVER = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|attn\.masked_bias|attn\.bias|attention\.masked_bias|"
    r"attention\.bias|position_ids)$"
)
"""Buffers that earlier releases of transformers stored, and that follow from the configuration."""
_MOST_NAMED = 3


def check_tensors(folder: Path) -> PreTrainedModel:
    """The model of `folder` on the meta device. Raises InvalidModel, saying what differs, if its files do not
    hold exactly the architecture's tensors in floating-point numbers; a classifier's head may be missing.
    """
    return empty_with_head(folder)[0]


def empty_with_head(folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """As check_tensors(), and the names of the tensors that a classifier's head lacks."""
    config = load_config(folder)
    cls, stored = model_class(config), stored_tensors(folder)
    entries = {name: entry for name, (_, entry) in stored.items() if not _LEFT_OVER.search(name)}
    _check_numbers(folder, entries)
    _check_sizes(folder, config, len(entries))
    _check_prefixes(folder, cls, entries)
    empty = {
        name: torch.empty(entry.shape, dtype=_TORCH_DTYPES[entry.dtype], device="meta")
        for name, entry in entries.items()
    }
    how = {"device_map": {"": "meta"}, "dtype": torch.float32}
    model, missing = load_with_head(folder, config, empty, **how)
    if not _holds_one_tensor_twice(model, stored):
        require_tied_as_said(folder, model)
    return model, missing


def load_weights(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Any], **how: Any
) -> PreTrainedModel:
    """The model of a configuration with these weights, tensors or slices of files by their names there.

    Nothing but the two decides what is loaded: no file beside them, and no field that names code. Raises
    InvalidModel if they do not fit.
    """
    return load_with_head(folder, config, weights, **how)[0]


def load_with_head(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Any], **how: Any
) -> tuple[PreTrainedModel, list[str]]:
    """As load_weights(), and the names of the tensors that a classifier's head lacks, drawn at random by
    transformers. What the files hold of another head is left aside.
    """
    how = {"attn_implementation": "eager"} | how
    kept = {name: one for name, one in weights.items() if not _LEFT_OVER.search(name)}
    with refusing(f"transformers cannot load {folder.name} ({config.model_type})"):
        load: Any = model_class(config).from_pretrained
        model, info = load(
            None,
            config=config,
            state_dict=kept,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **how,
        )
    head = [] if is_writing(config) else [name for name in info["missing_keys"] if _is_of_head(model, name)]
    unexpected = [
        name for name in info["unexpected_keys"] if is_writing(config) or not _is_of_head(model, name)
    ]
    _refuse_faults(
        folder, {**info, "missing_keys": set(info["missing_keys"]) - set(head), "unexpected_keys": unexpected}
    )
    return model, sorted(head)


def _is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor stands outside of what all models of this architecture share, or is of its pooler,
    which some of them lack. Files of the shared part alone do not name it.
    """
    prefix, first = model.base_model_prefix, name.partition(".")[0]
    inside = name.removeprefix(f"{prefix}.").partition(".")[0]
    shared = {path for path, _ in model.base_model.named_children()}
    return inside == "pooler" or (first != prefix and first not in shared)


def _refuse_faults(folder: Path, info: Mapping[str, Any]) -> None:
    faults = [
        *_named("tensors are missing", info["missing_keys"]),
        *_named("there are tensors that it does not have", info["unexpected_keys"]),
        *_named("tensors have other shapes", [_shapes(*one) for one in info["mismatched_keys"]]),
        *_named("transformers reports", info["error_msgs"]),
    ]
    if faults:
        raise InvalidModel(
            f"The weights of {folder.name} are not those of the model that its config.json describes: "
            f"{'; '.join(faults)}. Its config.json or a file of weights is incomplete or belongs to another "
            "model; get its files again."
        )


def _shapes(name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{name} is {list(found)} instead of {list(wanted)}"


def _named(what: str, names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    return [f"{what}: {', '.join(listed[:_MOST_NAMED])}{more}"] if listed else []


def _check_numbers(folder: Path, entries: Mapping[str, TensorEntry]) -> None:
    other = [entry for entry in entries.values() if entry.dtype not in _TORCH_DTYPES]
    if other:
        raise InvalidModel(
            f"{other[0].name[:120]} of {folder.name} is stored as {other[0].dtype}, as {len(other)} of "
            f"{len(entries)} tensors are in no plain floating-point format. Weights that were quantised or "
            "packed cannot be used; add the original model in bfloat16, float16 or float32."
        )
    empty = [entry for entry in entries.values() if entry.count == 0]
    if empty:
        raise InvalidModel(
            f"{empty[0].name[:120]} of {folder.name} is empty ({list(empty[0].shape)}), so the files are "
            "incomplete; get them again."
        )


def _check_sizes(folder: Path, config: PretrainedConfig, tensors: int) -> None:
    """Each layer has a tensor at least; said before as many layers are built as a configuration claims."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors:
        raise InvalidModel(
            f"config.json of {folder.name} says num_hidden_layers = {layers:,}, but its files hold "
            f"{tensors:,} tensors. Put back the config.json that belongs to these weights."
        )


def _check_prefixes(folder: Path, cls: type[PreTrainedModel], entries: Mapping[str, TensorEntry]) -> None:
    """transformers takes names with and without the model's own prefix, and of two the later."""
    prefix = cls.base_model_prefix
    both = [name for name in entries if f"{prefix}.{name}" in entries]
    if both:
        raise InvalidModel(
            f"{folder.name} holds {both[0][:120]} and {prefix}.{both[0][:120]}, which are one tensor of the "
            "model, so it is not known which is meant. Remove the files that do not belong to it."
        )


def _holds_one_tensor_twice(model: PreTrainedModel, stored: Mapping[str, tuple[Path, TensorEntry]]) -> bool:
    """Whether a stored output head has the numbers of the stored embedding: then the two are tied."""
    paths = [path for path, one in model.named_modules() if one is model.get_input_embeddings()]
    names = [f"{path}.weight" for path in [*paths, head_path(model)] if path]
    found = [stored.get(name) or stored.get(name.partition(".")[2]) for name in names]
    both = [one for one in found if one is not None]
    return len(both) == 2 and len({(one[1].dtype, tensor_digest(*one)) for one in both}) == 1


def require_tied_as_said(folder: Path, model: PreTrainedModel) -> None:
    """Raise InvalidModel for a head that is stored although config.json ties it: some programs would take it,
    others the embedding.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    said = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    if said and head is not None and head.weight is not embedding.weight:
        raise InvalidModel(
            f"config.json of {folder.name} says tie_word_embeddings = true, but its files hold an output "
            "head with other numbers than the embedding. Say false there if the head is meant, or remove it "
            "from the files."
        )
