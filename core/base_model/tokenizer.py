"""A base model's tokenizer with its chat template, without the model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.base_model.files import read_json
from core.base_model.model_config import load_config, refusing
from core.base_model.templates import chosen_template


def load_tokenizer(folder: Path, template: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; `template` names the known chat template for one that has none of its own.

    Raises InvalidModel if transformers cannot load it.
    """
    with refusing(f"transformers cannot load the tokenizer in {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=load_config(folder), trust_remote_code=False)
    tokenizer.chat_template = tokenizer.chat_template or chosen_template(template)
    return tokenizer


def end_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end an answer, from generation_config.json and the tokenizer."""
    path = folder / "generation_config.json"
    configured = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = configured if isinstance(configured, list) else [configured]
    return {int(one) for one in [*ids, tokenizer.eos_token_id] if one is not None}
