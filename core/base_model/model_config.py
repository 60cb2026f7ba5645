"""The configuration of a base as it counts: how the weights compute, and nothing that chooses code."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from core.base_model.describe import refuse_unusable, writes_text
from core.base_model.files import read_json
from core.errors import InvalidModel, WorkbenchError
from core.files.disk_faults import is_disk_fault

_CHOOSES_CODE = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "attn_implementation",
        "distributed_config",
        "dtype",
        "experts_implementation",
        "fusion_config",
        "gradient_checkpointing",
        "kernel_config",
        "name_or_path",
        "_name_or_path",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "tie_last_hidden_states",
        "torch_dtype",
        "torchscript",
        "transformers_weights",
        "use_cache",
        "use_kernels",
    }
)
"""Fields that say with which kernels, files and number format, or what a forward pass returns: here the
workbench says so. Published configurations hold them by chance of who saved them."""
_PYTHON_NAMES = re.compile(r"\b[A-Z]\w*(Error|Exception): ")
_PYTHON_WORDS = (AttributeError, KeyError, TypeError, IndexError, AssertionError, NotImplementedError)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever another library raises within the block becomes an InvalidModel that begins with `what`."""
    try:
        yield
    except (WorkbenchError, MemoryError):
        raise
    except Exception as error:
        if is_disk_fault(error):
            raise
        raise InvalidModel(f"{what}: {_words(error)}") from error
    except BaseException as error:
        if (
            type(error).__name__ != "PanicException"
        ):  # of a library in Rust, which derives it from no Exception
            raise
        raise InvalidModel(f"{what}: it stopped in a panic ({str(error)[:200]}).") from error


def _words(error: Exception) -> str:
    """What an error says, for people: a Python error's own words mean nothing to them."""
    said = _PYTHON_NAMES.sub("", " ".join(str(error).split()))[:300]
    if isinstance(error, _PYTHON_WORDS) or not said:
        return f"its code stopped at {said or type(error).__name__}. What was given does not fit it."
    return said if said.endswith((".", "!", "?")) else f"{said}."


def load_config(folder: Path) -> PretrainedConfig:
    """What config.json says of the model's arithmetic. Raises InvalidModel."""
    given = read_json(folder / "config.json")
    refuse_unusable(folder, given)
    kind = str(given.get("model_type"))
    with (
        refusing(f"transformers cannot use config.json of {folder.name} ({kind})"),
        tempfile.TemporaryDirectory() as place,
    ):
        (Path(place) / "config.json").write_text(json.dumps(_without_choices(given)), encoding="utf-8")
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        config.name_or_path = ""
    return config


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that a base of this configuration is loaded as: its causal language model, or for one
    without a head that writes its classifier.

    Raises InvalidModel if there is none, or if the configuration names another.
    """
    if not is_writing(config):
        return classifier_class(config)
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if reads_pictures(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise InvalidModel(
            f"transformers has no causal language model for model_type = {config.model_type!r}; "
            "one that writes text is needed."
        )
    cls = _mapped(mapping, config)
    named = [str(name) for name in config.architectures or []]
    if named and cls.__name__.lower() not in [name.lower() for name in named]:
        raise _contradiction(config, cls)
    return cls


def reads_pictures(config: PretrainedConfig) -> bool:
    """Whether this is the configuration of a model that reads pictures beside text; of which text alone is
    used here.
    """
    named = [str(name) for name in config.architectures or []]
    is_whole = config.get_text_config() is not config and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return is_whole and not any(name.endswith("ForCausalLM") for name in named)


def is_writing(config: PretrainedConfig) -> bool:
    """Whether this is the configuration of a causal language model. Where it names no class, an encoder is
    none, though transformers could have one write.
    """
    named = [str(name) for name in config.architectures or []]
    if named:
        return any(map(writes_text, named))
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(
        config, "is_decoder", False
    )
    classifies = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return not (classifies and (is_encoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING))


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that classifies texts with a base of this configuration.

    Raises InvalidModel if there is none, or if the configuration names a class of another kind of model.
    """
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InvalidModel(
            f"transformers has no model that classifies texts for model_type = {config.model_type!r}."
        )
    cls = _mapped(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config)
    named = [getattr(transformers, str(name), None) for name in config.architectures or []]
    if named and not any(getattr(one, "config_class", None) is type(config) for one in named):
        raise _contradiction(config, cls)
    return cls


def _mapped(mapping: Any, config: PretrainedConfig) -> type[PreTrainedModel]:
    found = mapping[type(config)]
    cls: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return cls


def _contradiction(config: PretrainedConfig, cls: type[PreTrainedModel]) -> InvalidModel:
    return InvalidModel(
        f"config.json contradicts itself: model_type = {config.model_type!r} is a {cls.__name__}, "
        f"architectures names {(config.architectures or ['?'])[0]}. Put back the config.json that belongs to "
        "these weights."
    )


def _without_choices(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_choices(value) if isinstance(value, dict) else value
        for name, value in given.items()
        if name not in _CHOOSES_CODE
    }
