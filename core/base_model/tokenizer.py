"""A base model's tokenizer with its chat template, without the model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.base_model.files import read_json
from core.base_model.templates import chosen_template
from core.errors import InvalidModel


def load_tokenizer(folder: Path, template: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; `template` names the known chat template for one that has none of its own.

    Raises InvalidModel if transformers cannot load it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InvalidModel(
            f"transformers cannot load the tokenizer in {folder}: {str(error)[:400]}"
        ) from error
    tokenizer.chat_template = tokenizer.chat_template or chosen_template(template)
    return tokenizer


def end_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end an answer, from generation_config.json and the tokenizer."""
    path = folder / "generation_config.json"
    configured = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = configured if isinstance(configured, list) else [configured]
    return {int(one) for one in [*ids, tokenizer.eos_token_id] if one is not None}
