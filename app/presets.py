"""Presets: named training options as TOML files, shipped ones and the user's own. The command line reads the same files."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import tomli_w

from core.config import LoraConfig, TrainConfig, split_train_options
from core.errors import InvalidConfig, InvalidInput
from storage.names import clean_name

_TABLES = ("lora", "train")


@dataclass(frozen=True)
class Preset:
    """Options by name; what is not named has its default."""

    name: str
    why: str
    options: Mapping[str, Any]
    own: bool


class Presets:
    """The shipped ones and those in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Preset]:
        """Shipped ones first, then own ones by name. A file that cannot be read is left out; find() says what is wrong."""
        shipped = [one for one in (resources.files("assets") / "presets").iterdir() if one.name.endswith(".toml")]
        found = [_read(path, own=False) for path in sorted(shipped, key=lambda one: _SHIPPED.index(one.name))]
        for path in sorted(self._folder.glob("*.toml")):
            try:
                found.append(_read(path, own=True))
            except InvalidInput:
                continue
        return found

    def find(self, name: str) -> Preset:
        """The preset called `name`, or in the file of this name. Raises InvalidInput."""
        wanted = name.strip().lower()
        for one in self.all():
            if wanted in (one.name.lower(), slug(one.name)):
                return one
        own = self._folder / f"{slug(name)}.toml"
        if own.is_file():
            return _read(own, own=True)
        raise InvalidInput(f"There is no preset {name!r}. There are: {', '.join(one.name for one in self.all())}.")

    def save(self, name: str, options: Mapping[str, object], why: str = "") -> Path:
        """Write an own preset, over an earlier one of its name. Raises InvalidConfig, InvalidName, InvalidInput."""
        name = clean_name(name, "preset")
        if any(slug(one.name) == slug(name) for one in self.all() if not one.own):
            raise InvalidInput(f"{name!r} is a preset that comes with the workbench; choose another name.")
        lora, train = split_train_options(options)
        content = {"name": name, "why": why.strip() or "Saved from a run.", "lora": lora.to_dict(), "train": train.to_dict()}
        self._folder.mkdir(exist_ok=True, mode=0o700)
        path = self._folder / f"{slug(name)}.toml"
        staged = path.with_suffix(".new")
        staged.write_text(tomli_w.dumps(content), encoding="utf-8")
        staged.replace(path)
        return path

    def remove(self, name: str) -> None:
        """Delete an own preset. Raises InvalidInput."""
        found = self.find(name)
        if not found.own:
            raise InvalidInput(f"{found.name!r} comes with the workbench and stays.")
        (self._folder / f"{slug(found.name)}.toml").unlink()


def slug(name: str) -> str:
    """A file's name for a preset of this name; a digest keeps names apart that have the same letters."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (
        plain
        if plain == name.lower().replace(" ", "-")
        else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")
    )


def full_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every training option: those given, the others with their defaults."""
    return {option.name: options.get(option.name, option.default) for option in (*LoraConfig.options(), *TrainConfig.options())}


def read_options(path: Path) -> dict[str, Any]:
    """Training options of a TOML file: a preset, or options alone, grouped under [lora] and [train] or not.

    Raises InvalidInput.
    """
    return dict(_options(_content(path), path.name))


def _read(path: Path | Traversable, own: bool) -> Preset:
    content = _content(path)
    options = _options(content, path.name)
    split_train_options(options)
    return Preset(str(content.get("name") or path.name.removesuffix(".toml")), str(content.get("why", "")), options, own)


def _content(path: Path | Traversable) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} is not valid TOML: {error}") from None


def _options(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in content.items():
        if key in ("name", "why"):
            continue
        if isinstance(value, dict) and key not in _TABLES:
            raise InvalidConfig(f"{where} has a table [{key}]; only [lora] and [train] are known.")
        options.update(value if isinstance(value, dict) else {key: value})
    return options


_SHIPPED = ["quick-try.toml", "chat-style.toml", "knowledge.toml", "small-data.toml", "careful.toml"]
