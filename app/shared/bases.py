"""From rows of the registry to what the core works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.shared.identity import effective_template_hash, manifest_of, up_to_date
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore
from core.base_model.describe import cannot_write, reads_pictures, writes_text
from core.base_model.files import read_json
from core.base_model.quantisation import NONE, plain_encoder, require_quantising
from core.base_model.source import BaseSource
from core.base_model.stored_wholes import stored_wholes
from core.base_model.way import GENERAL_NAME
from core.errors import InvalidConfig, InvalidModel, WrongBase
from core.lora.config import LoraConfig
from core.lora.expert_shapes import ExpertShape
from core.lora.experts import about_experts
from core.lora.module_names import ends_with
from core.lora.targets import WORDS
from core.lora.wholes import Wholes
from core.train.objectives import OBJECTIVES
from core.train.training_options import TrainingOptions
from core.train.way_options import require_sharding, require_way
from storage.blobs import BlobStore
from storage.database import Database
from storage.registry import Registry
from storage.tables import Adapter, Base


def open_registry(settings: Settings) -> Registry:
    """The registry of a home folder, its schema up to date."""
    return Registry(Database(settings.database), BlobStore(settings.blobs))


def base_for(registry: Registry, adapter: Adapter) -> Base:
    """The local base model an adapter was made for. Raises WrongBase if it is not here."""
    found = closest_base(registry, adapter)
    if found is None:
        raise WrongBase(
            f"The adapter {adapter.name} was made for {adapter.base_name} ({adapter.base_fingerprint[:12]}), "
            "which is not among the base models here. Add that model first."
        )
    return found


def closest_base(registry: Registry, adapter: Adapter) -> Base | None:
    """The base with the adapter's weights; of several the one with its tokenizer, template and name too."""

    def likeness(base: Base) -> tuple[bool, ...]:
        return (
            adapter.tokenizer_hash in ("", base.tokenizer_hash),
            adapter.template_hash in ("", effective_template_hash(base)),
            Path(base.folder).is_dir(),
            adapter.base_name == base.name,
        )

    fitting = [base for base in registry.all(Base) if base.fingerprint == adapter.base_fingerprint]
    return max(fitting, key=likeness, default=None)


def shapes_of(base: Base) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of the base's linear layers, as stored."""
    return {path: (int(one[0]), int(one[1])) for path, one in base.layer_shapes.items() if len(one) == 2}


def experts_in(base: Base) -> dict[str, ExpertShape]:
    """The fused parameters of its experts that adapters can be on, stored beside the linear layers with the
    number of experts behind; none of a base that an earlier release added.
    """
    return {path: ExpertShape(*map(int, one)) for path, one in base.layer_shapes.items() if len(one) == 3}


def wholes_in(base: Base) -> Wholes:
    """What of a base adapters can have of their own, as its files tell; nothing where they are gone."""
    folder = folder_of(base)
    if not (folder.is_dir() and writes_text(base.architecture)) or reads_pictures(base.architecture):
        return Wholes()
    return replace(
        stored_wholes(folder, shapes_of(base), base.head, base.vocab_size), experts=experts_in(base)
    )


def wholes_for(base: Base, options: TrainingOptions) -> Wholes:
    """The same where these options ask for more of a base than its linear layers; else nothing."""
    lora, paths = options.lora, shapes_of(base)
    is_layers = all(
        name in WORDS or any(ends_with(path, name) for path in paths) for name in lora.target_names
    )
    return wholes_in(base) if lora.trains_wholes or lora.parameter_names or not is_layers else Wholes()


def config_of(base: Base) -> dict[str, Any]:
    """What the base's config.json says of the part that reads text. Raises InvalidModel if it is gone."""
    config = read_json(folder_of(base) / "config.json")
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def experts_of(registry: Registry, base: Base, lora: LoraConfig | None = None) -> str:
    """A sentence on experts that are no linear layers, and whether this configuration is on them; empty for a
    base without such.
    """
    return about_experts(tensors_of(registry, base), shapes_of(base), experts_in(base), lora)


def tensors_of(registry: Registry, base: Base) -> dict[str, Sequence[int]]:
    """Shapes of all tensors in the base's files by name; empty for one that was added before these were
    kept.
    """
    found = manifest_of(registry, base.fingerprint)
    return {name: shape for name, _, shape, _ in found.tensors} if found else {}


def require_can(base: Base, options: TrainingOptions) -> None:
    """Raise InvalidConfig for an objective that needs a head which this base does not have, for options that
    the way on which it is computed does not know, and where it cannot be held in memory as it is asked for.
    """
    train = options.train
    if not writes_text(base.architecture):
        if not OBJECTIVES.get(train.objective).classifies:
            raise InvalidConfig(cannot_write(base.name))
        if train.quantisation != NONE:
            raise InvalidConfig(plain_encoder(base.name))
    require_way(base.way, base.name, train)
    require_sharding(base.way, options)
    require_quantising(train.quantisation)


def require_writing_base(base: Base) -> None:
    """Raise InvalidModel for a base that has no head that writes text."""
    if not writes_text(base.architecture):
        raise InvalidModel(cannot_write(base.name))


def folder_of(base: Base) -> Path:
    """Where the base's files lie."""
    return Path(base.folder)


def source_of(registry: Registry, base: Base, quantisation: str = NONE) -> BaseSource:
    """Where a base lies and what it must be."""
    return source_told(registry, told_of(up_to_date(registry, base)) | {"quantisation": quantisation})


def told_to_answer(base: Base, preferences: PreferenceStore) -> dict[str, str]:
    """What the engine is told of a base that it is to answer with, held in memory as it is set."""
    can_be_held = writes_text(base.architecture) and base.way != GENERAL_NAME
    held = preferences.values().quantisation if can_be_held else NONE
    return told_of(base) | {"quantisation": held}


def told_of(base: Base) -> dict[str, str]:
    """What identifies a base, as it crosses the wire."""
    told = {name: getattr(base, name) for name in ("name", "folder", "fingerprint", "stat_key", "template")}
    return told | {"config": base.files.get("config.json", "")}


def source_told(registry: Registry, told: dict[str, str]) -> BaseSource:
    """The base that was told of."""
    return BaseSource(
        told["name"],
        Path(told["folder"]),
        told["fingerprint"],
        told["stat_key"],
        told["template"],
        recorded=lambda: manifest_of(registry, told["fingerprint"]),
        config=told.get("config", ""),
        quantisation=told.get("quantisation", NONE),
    )
