"""GGUF files, converted once to a folder of bf16 safetensors."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from core.base_model.gguf_reading import reading_once
from core.base_model.model_config import refusing
from core.base_model.origin import require_gguf
from core.base_model.quantised_load import forget_quantiser
from core.events import Progress
from core.files.publish import require_space
from core.reporting import Report

_SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def convert_gguf(source: Path, target: Path, report: Report, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model and tokenizer of the GGUF file `source` into the folder `target` as safetensors.

    The weights are dequantised in float32 and cast once. Raises InvalidModel if the file is no GGUF that
    transformers can read, OutOfSpace.
    """
    require_gguf(source)
    require_space(target, 8 * source.stat().st_size)
    report(Progress("Reading the GGUF file"))
    with refusing(f"transformers cannot read {source.name}"), reading_once():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, **_dequantise_option()
        )
        _name_special_tokens(tokenizer, source)
    report(Progress("Writing safetensors"))
    _forget_quantisation(model).to(dtype).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _name_special_tokens(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """The special tokens that the file names by their ids: transformers 5.17 takes others for some files."""
    fields = gguf.GGUFReader(str(source)).fields
    for key, name in _SPECIAL_TOKENS.items():
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.contents())))


def _dequantise_option() -> dict[str, object]:
    """Newer transformers keep GGUF blocks packed unless told otherwise; older ones always unpack them."""
    settings = getattr(transformers, "GgufConfig", None)
    if settings is None or "dequantize" not in inspect.signature(settings).parameters:
        return {}
    return {"quantization_config": settings(dequantize=True)}


def _forget_quantisation(model: PreTrainedModel) -> Any:
    """The loaded model counts as quantised and would refuse to be saved, although its weights are plain."""
    forget_quantiser(model)
    name = getattr(model.config, "_model_name_or_path", None)
    if name is not None:
        model.config._model_name_or_path = ""
    return model
