"""Paths in rows: those in the home folder are stored relative to it, so that a home that was moved or copied
finds its own files. Whoever reads a row gets whole paths.

The home folder is the one that the database lies in.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import JSON, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_INSIDE = "in_home"  # in JSON: {"in_home": "exports/mine"}
_HOMES: WeakKeyDictionary[Dialect, Path] = WeakKeyDictionary()


def at_home(dialect: Dialect, home: Path) -> None:
    """Have the rows of a database's own dialect count their paths from `home`."""
    _HOMES[dialect] = home.absolute()


class HomePath(TypeDecorator[str]):
    """A column with one path."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is stored."""
        return value and (relative(value, _HOMES[dialect]) or value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """What is read."""
        return value and _whole(value, _HOMES[dialect])


class HomeJSON(TypeDecorator[Any]):
    """A column with JSON, in which any text may be a path."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """What is stored."""
        return inside_out(value, _HOMES[dialect])

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """What is read."""
        return _outside_in(value, _HOMES[dialect])


def relative(path: str, home: Path) -> str | None:
    """A path in the home folder relative to it, with / between its parts; None for any other."""
    found = Path(path)
    if not found.is_absolute() or ".." in found.parts:
        return None
    for root in (home, Path(os.path.realpath(home))):
        if found != root and found.is_relative_to(root):
            return found.relative_to(root).as_posix()
    return None


def inside_out(value: Any, home: Path) -> Any:
    """JSON as it is stored: each text that is a path in the home folder as {"in_home": its relative one}."""
    if isinstance(value, dict):
        return {key: inside_out(one, home) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [inside_out(one, home) for one in value]
    inside = relative(value, home) if isinstance(value, str) and "\n" not in value else None
    return value if inside is None else {_INSIDE: inside}


def _outside_in(value: Any, home: Path) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_INSIDE} and isinstance(value[_INSIDE], str):
            return _whole(value[_INSIDE], home)
        return {key: _outside_in(one, home) for key, one in value.items()}
    return [_outside_in(one, home) for one in value] if isinstance(value, list) else value


def _whole(stored: str, home: Path) -> str:
    return stored if Path(stored).is_absolute() else str(home / PurePosixPath(stored))
