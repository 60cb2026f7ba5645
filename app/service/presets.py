"""Presets: named training options as TOML files, shipped ones and the user's own.

The command line reads the same files.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import tomli_w

from app.shared.private import write_private
from core.errors import InvalidConfig, InvalidInput
from core.train.training_options import PARTS, TrainingOptions
from storage.names import clean_name

_TABLES = ", ".join(f"[{part}]" for part in PARTS)
_SHIPPED = ("quick-try.toml", "chat-style.toml", "knowledge.toml", "small-data.toml", "careful.toml")


@dataclass(frozen=True)
class Preset:
    """Options by name; what is not named has its default."""

    name: str
    why: str
    options: Mapping[str, Any]
    file: Path | None = None
    """Of an own one."""
    fault: str = ""
    """Why its file cannot be used; then it has no options."""

    @property
    def own(self) -> bool:
        """Whether it is the user's."""
        return self.file is not None


class Presets:
    """The shipped ones and those in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Preset]:
        """Shipped ones first, then own ones by file; one that cannot be read, or has a taken name, is called
        as its file.
        """
        found = [_read(resources.files("assets") / "presets" / name) for name in _SHIPPED]
        for path in sorted(path for path in self._folder.glob("*.toml") if path.is_file()):
            try:
                one = _read(path)
            except (InvalidInput, OSError) as error:
                one = Preset(path.stem, "", {}, fault=str(error))
            taken = {other.name for other in found}
            found.append(replace(one, file=path, name=path.name if one.name in taken else one.name))
        return found

    @property
    def changed(self) -> int:
        """When a preset was last saved or deleted, in nanoseconds."""
        return self._folder.stat().st_mtime_ns if self._folder.exists() else 0

    def usable(self) -> list[Preset]:
        """Those that can be read."""
        return [one for one in self.all() if not one.fault]

    def find(self, name: str) -> Preset:
        """The preset called `name`, or in the file of this name. Raises InvalidInput."""
        found = self._named(name)
        if found.fault:
            raise InvalidInput(f"The preset {found.name!r} cannot be used: {found.fault}")
        return found

    def _named(self, name: str) -> Preset:
        wanted = name.strip().lower()
        for one in self.all():
            if wanted in (one.name.lower(), slug(one.name)):
                return one
        raise InvalidInput(
            f"There is no preset {name!r}. There are: {', '.join(one.name for one in self.usable())}."
        )

    def save(self, name: str, options: TrainingOptions, why: str = "", *, replace: bool = True) -> Path:
        """Write an own preset, over an earlier one of its name if it may be replaced.

        Raises InvalidName, InvalidInput, also where its file would be that of a preset with another name.
        """
        name = clean_name(name, "preset")
        if any(slug(one.name) == slug(name) for one in self.all() if not one.own):
            raise InvalidInput(f"{name!r} is a preset that comes with the workbench; choose another name.")
        parts = {part: values for part, values in options.to_dict().items() if values}
        content = {"name": name, "why": why.strip(), **parts}
        self._folder.mkdir(exist_ok=True, mode=0o700)
        path = self._file_for(name)
        if path.exists() and not replace:
            raise InvalidInput(f"There is a preset {name!r} already; choose another name, or give --replace.")
        write_private(path, tomli_w.dumps(content))
        return path

    def _file_for(self, name: str) -> Path:
        """Where the own preset of this name is, or is to be. Raises InvalidInput."""
        own = [one for one in self.all() if one.own]
        path = self._folder / f"{slug(name)}.toml"
        for one in own:
            if one.name.lower() == name.lower() and one.file is not None:
                return one.file
        if taken := next((one.name for one in own if one.file == path), None):
            raise InvalidInput(
                f"The preset {taken!r} has the file that {name!r} would have, {path.name}; choose another "
                "name."
            )
        return path

    def remove(self, name: str) -> None:
        """Delete an own preset. Raises InvalidInput."""
        found = self._named(name)
        if found.file is None:
            raise InvalidInput(f"{found.name!r} comes with the workbench and stays.")
        found.file.unlink()


def slug(name: str) -> str:
    """A file's name for a preset of this name; a digest keeps names apart that have the same letters."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (
        plain
        if plain == name.lower().replace(" ", "-")
        else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")
    )


def read_options(path: Path) -> dict[str, Any]:
    """Training options of a TOML file: a preset, or options alone, grouped in tables or not.

    Raises InvalidInput.
    """
    return dict(_options(_content(path), path.name))


def _read(path: Path | Traversable) -> Preset:
    content = _content(path)
    options = _options(content, path.name)
    TrainingOptions.parse(options)
    for key in ("name", "why"):
        if not isinstance(content.get(key, ""), str):
            raise InvalidInput(f"{key} in {path.name} must be text, not {content[key]!r}.")
    return Preset(
        str(content.get("name") or path.name.removesuffix(".toml")), str(content.get("why", "")), options
    )


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
        if isinstance(value, dict) and key not in PARTS:
            raise InvalidConfig(f"{where} has a table [{key}]; only {_TABLES} are known.")
        options.update(value if isinstance(value, dict) else {key: value})
    return options
