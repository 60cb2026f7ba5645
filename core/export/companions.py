"""The files beside a model's weights that belong to it and travel with what is made of it. Needs no torch."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

_ABOUT_THE_MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_LICENCES = ("licen[cs]e*", "copying*", "notice*", "use_policy*", "use-policy*", "acceptable_use_policy*")
_TEXTS = ("", ".txt", ".md", ".rst", ".pdf")
_TEMPLATES = "additional_chat_templates"


def copy_companions(base_folder: Path, target: Path) -> None:
    """Configuration, tokenizer, chat templates and licences; nothing that is not known to be a model's."""
    for path in sorted(base_folder.iterdir()):
        if path.is_file() and (_is_one_of(path.name, _ABOUT_THE_MODEL) or is_licence(path)):
            shutil.copyfile(path, target / path.name)
    templates = sorted((base_folder / _TEMPLATES).glob("*.jinja"))
    if templates:
        (target / _TEMPLATES).mkdir()
    for path in templates:
        shutil.copyfile(path, target / _TEMPLATES / path.name)


def copy_licences(base_folder: Path, target: Path) -> None:
    """What has to go with the weights wherever they go."""
    for path in sorted(base_folder.iterdir()):
        if path.is_file() and is_licence(path):
            shutil.copyfile(path, target / path.name)


def is_licence(path: Path) -> bool:
    """Whether a file is by its name a licence, a notice or a rule of use."""
    return _is_one_of(path.name, _LICENCES) and path.suffix.lower() in _TEXTS


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)
