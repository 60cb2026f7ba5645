"""A base model's tokenizer with its chat template, without the model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.base_model.files import read_json
from core.base_model.model_config import load_config, refusing
from core.base_model.templates import chosen_template
from core.data.rendering import Renderer
from core.errors import InvalidModel
from core.panics import tokenizer_faults


def load_tokenizer(folder: Path, template: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; `template` names the known chat template for one that has none of its own.

    Raises InvalidModel if transformers cannot load it.
    """
    what = f"transformers cannot load the tokenizer in {folder}"
    with refusing(what), tokenizer_faults(InvalidModel, "its own files"):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=load_config(folder), trust_remote_code=False)
    tokenizer.chat_template = tokenizer.chat_template or chosen_template(template)
    return tokenizer


def end_token_ids(folder: Path, renderer: Renderer) -> set[int]:
    """The ids that end an answer: those of generation_config.json (or of config.json where there is none), of
    the tokenizer, and the one that the chat template puts behind an answer.
    """
    configured = configured_end_ids(folder)
    return {*configured, *renderer.end_ids, *whole_numbers(renderer.tokenizer.eos_token_id)}


def configured_end_ids(folder: Path) -> list[int]:
    """The end tokens that the model's files name, in their order."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        about = read_json(path) if path.is_file() else {}
        if ids := whole_numbers(about.get("eos_token_id")):
            return ids
    return []


def whole_numbers(value: object) -> list[int]:
    """An id, or several, as a configuration may give them."""
    return [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
