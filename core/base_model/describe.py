"""What a base model is, read from its files without loading it. Needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.base_model.files import read_json, stored_tensors, weight_files
from core.base_model.fingerprint import (
    OLDER_TOKENIZER_NAMES,
    TOKENIZER_NAMES,
    Manifest,
    ReportBytes,
    manifest,
    stat_key,
    text_hash,
    tokenizer_hash,
)
from core.base_model.templates import PLAIN, TEMPLATES
from core.errors import InvalidModel

_CONTEXT, _LAYERS = ("max_position_embeddings", "n_positions"), ("num_hidden_layers", "n_layer")
_WIDTH, _VOCABULARY = ("hidden_size", "n_embd"), ("vocab_size",)
_WRITING = ("ForCausalLM", "LMHeadModel")
_WITH_PICTURES = "ForConditionalGeneration"  # where a part of the configuration tells how pictures are read
_CLASSIFYING = ("Model", "ForSequenceClassification", "ForMaskedLM", "ForPreTraining")
_MOST_LAYERS = 10_000  # the layers are built to list them, so their number must be sane
_MOST = 100_000_000  # of any other size: the longest contexts are a tenth of it


@dataclass(frozen=True)
class BaseModelInfo:
    """One base model, described."""

    manifest: Manifest
    fingerprint: str
    stat_key: str
    tokenizer_hash: str
    template_hash: str
    architecture: str
    parameters: int
    dtype: str
    context_length: int
    layers: int
    hidden_size: int
    vocab_size: int
    has_chat_template: bool
    size_bytes: int
    licence: str


def describe(folder: Path, report: ReportBytes | None = None) -> BaseModelInfo:
    """Check that `folder` holds a usable base model and describe it, fingerprint included.

    Raises InvalidModel with the reason if it does not.
    """
    config = of_text(look_over(folder))
    shards = weight_files(folder)
    entries = [entry for _, entry in stored_tensors(folder).values()]
    dtypes = Counter({entry.dtype: 0 for entry in entries})
    for entry in entries:
        dtypes[entry.dtype] += entry.count
    template = chat_template(folder)
    found = manifest(folder, report, finite=True)
    return BaseModelInfo(
        manifest=found,
        fingerprint=found.fingerprint,
        stat_key=stat_key(folder),
        tokenizer_hash=tokenizer_hash(folder),
        template_hash=text_hash(template or TEMPLATES[PLAIN]),
        architecture=_architecture(config),
        parameters=sum(entry.count for entry in entries),
        dtype=dtypes.most_common(1)[0][0].lower(),
        context_length=_count(config, *_CONTEXT),
        layers=_count(config, *_LAYERS),
        hidden_size=_count(config, *_WIDTH),
        vocab_size=_count(config, *_VOCABULARY),
        has_chat_template=template is not None,
        size_bytes=sum(path.stat().st_size for path in shards),
        licence=_licence(folder),
    )


def writes_text(architecture: str) -> bool:
    """Whether a model of this class has a head that writes text; one without can only be trained to classify.

    "?" stands for a model whose config.json names no class, which was taken for one that writes.
    """
    return architecture == "?" or architecture.endswith((*_WRITING, _WITH_PICTURES))


def reads_pictures(architecture: str) -> bool:
    """Whether a base of this class reads pictures, too; of it only what reads text is used."""
    return architecture.endswith(_WITH_PICTURES)


def of_text(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which what is told of the part that reads text stands as in one without pictures."""
    text = config.get("text_config")
    return (
        config | text | {"architectures": config.get("architectures")} if isinstance(text, dict) else config
    )


def cannot_write(name: str) -> str:
    """What is said where a base is asked for text that has no head for it."""
    return (
        f"{name} has no head that writes text, so it can neither chat nor learn answers. It can be trained "
        "to classify texts: choose the objective classification."
    )


def _architecture(config: dict[str, Any]) -> str:
    """The class that config.json names, of several the one that writes text."""
    names = [str(name) for name in config.get("architectures") or []]
    return next((name for name in names if writes_text(name)), names[0] if names else "?")


def look_over(folder: Path) -> dict[str, Any]:
    """The configuration of a base, after what can be seen of it before anything is hashed or built.

    Raises InvalidModel.
    """
    if not folder.is_dir():
        raise InvalidModel(f"{folder} is not a folder.")
    config = read_json(folder / "config.json")
    weight_files(folder)
    refuse_unusable(folder, config)
    for names in (_CONTEXT, _LAYERS, _WIDTH, _VOCABULARY):
        _count(of_text(config), *names)
    return config


def refuse_unusable(folder: Path, config: dict[str, Any]) -> None:
    """Raise InvalidModel for what neither writes text nor can be trained to classify one, or is not in plain
    numbers with a tokenizer beside it.
    """
    if not config.get("model_type"):
        raise InvalidModel(f"{folder / 'config.json'} names no model_type, so this is no transformers model.")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidModel(
            f"config.json says architectures = {str(names)[:60]!r}; expected a list with the name of a class."
        )
    eyes = (_WITH_PICTURES,) if isinstance(config.get("vision_config"), dict) else ()
    kinds = (*_WRITING, *_CLASSIFYING, *eyes)
    if names and not any(name.endswith(kinds) for name in names):
        raise InvalidModel(
            f"{folder} is a {names[0]}; a causal language model (…ForCausalLM) is needed, or for classifying "
            "texts an encoder such as BERT."
        )
    if config.get("is_encoder_decoder") and not any(name.endswith(_WRITING) for name in names):
        raise InvalidModel(
            f"{folder} is an encoder with a decoder behind it ({config['model_type']}), which cannot be used "
            "yet; a causal language model or an encoder alone is needed."
        )
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        _refuse_what_is_never_done(folder, part)
    if not any((folder / name).is_file() for name in (*TOKENIZER_NAMES, *OLDER_TOKENIZER_NAMES)):
        raise InvalidModel(f"{folder} has no tokenizer files (tokenizer.json); copy them beside the weights.")


def _refuse_what_is_never_done(folder: Path, part: dict[str, Any]) -> None:
    """Weights that are no plain numbers, and code from a folder; said in a configuration or in a part of
    it.
    """
    if how := part.get("quantization_config") or part.get("compression_config"):
        kind = (
            how.get("quant_method", "of a kind it does not say") if isinstance(how, dict) else str(how)[:40]
        )
        raise InvalidModel(
            f"{folder} was quantised before ({kind}), and adapters of the original would not fit its "
            "weights exactly. Add the original model in full precision, which can be held in 4 or 8 bits; of "
            "quantised ones those in fp8 or mxfp4, and those of bitsandbytes in 4 bits, can be added."
        )
    if part.get("auto_map"):
        raise InvalidModel(f"{folder} needs code of its own (auto_map in config.json), which is never run.")


def _count(config: dict[str, Any], *names: str) -> int:
    """The first of these numbers that the configuration gives; 0 if it gives none."""
    given = next((name for name in names if config.get(name) is not None), None)
    if given is None:
        return 0
    value, most = config[given], _MOST_LAYERS if names == _LAYERS else _MOST
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidModel(
            f"config.json says {given} = {str(value)[:40]!r}; expected a whole number up to {most:,}, "
            "at least 1."
        )
    return value


def chat_template(folder: Path) -> str | None:
    """The model's own chat template, from chat_template.jinja or tokenizer_config.json."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.is_file() else None
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _licence(folder: Path) -> str:
    """The licence named in the front matter of the model's card, if any."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("license:"))
    return next(named, "")
