"""Seams: where the program takes kinds of a thing, each of them one file in one folder.

A kind's file holds its head, which says what it is and imports nothing heavy, and its implementation, whose
imports stand inside the functions that need them. So the page and the command line can list every kind
without torch, and nothing but the file has to be written for a new one:

    core/lora/kinds/          adapter kinds           core/export/formats/      export formats
    core/train/objectives/    objectives              core/data/formats/        data formats
    core/combine/methods/     combine methods         core/data/reading/        kinds of files of rows
    app/jobs/kinds/           jobs

A folder lists itself: each of its modules (but those whose names begin with an underscore) defines KIND.
Kinds from elsewhere join by the names of their modules in LORA_WORKBENCH_PLUGINS, with commas between them;
such a module may define several, of several seams, in KINDS. The child processes inherit the variable, so
they know the same kinds.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import pkgutil
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from core.errors import InvalidConfig

PLUGINS_VARIABLE = "LORA_WORKBENCH_PLUGINS"


class Kind(Protocol):
    """What every head says of itself. Each seam's own base class adds what its implementation does."""

    name: str
    """Unique in its seam; what configurations, the registry and the command line hold."""
    label: str
    """As people read it."""
    help: str
    """One sentence: what it is for."""
    order: int
    """Its place in lists, the lowest first."""


K = TypeVar("K", bound=Kind)


class Seam(Generic[K]):
    """All kinds of one thing, found in one folder and among the plug-ins."""

    def __init__(self, package: str, base: type[K], what: str) -> None:
        """package: the folder's dotted name; base: what its kinds are instances of; what: one of them, in
        words.
        """
        self._package, self._base, self._what = package, base, what

    def all(self) -> Mapping[str, K]:
        """Every kind by name, in the order in which they are shown.

        Raises InvalidConfig if a plug-in cannot be imported or takes a name that is taken.
        """
        return _found(self._package, self._base, self._what, os.environ.get(PLUGINS_VARIABLE, ""))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all kinds, in order."""
        return tuple(self.all())

    def help(self) -> str:
        """What each kind is for, for the help of an option that chooses among them."""
        return " ".join(f"{name}: {_begun_small(kind.help)}" for name, kind in self.all().items())

    def get(self, name: str) -> K:
        """The kind called `name`. Raises InvalidConfig with the nearest name, or all of them."""
        found = self.all().get(name)
        if found is None:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(self.names)}."
            raise InvalidConfig(f"There is no {self._what} {name[:120]!r}. {hint}")
        return found


def _begun_small(sentence: str) -> str:
    """As a sentence goes on behind a colon; what begins with capitals, such as GGUF, keeps them."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


@functools.cache
def _found(package: str, base: type[Any], what: str, plugins: str) -> Mapping[str, Any]:
    """Keyed by all that decides it: what lies in a folder does not change while the program runs."""
    folder = importlib.import_module(package)
    modules = [f"{package}.{one.name}" for one in pkgutil.iter_modules(folder.__path__)]
    kinds = [
        importlib.import_module(one).KIND for one in modules if not one.rpartition(".")[2].startswith("_")
    ]
    for module in filter(None, (one.strip() for one in plugins.split(","))):
        kinds += [kind for kind in _plugged(module) if isinstance(kind, base)]
    named: dict[str, Any] = {}
    for kind in sorted(kinds, key=lambda one: (one.order, one.name)):
        if kind.name in named:
            raise InvalidConfig(f"Two kinds of {what} are called {kind.name!r}; rename the plug-in's.")
        named[kind.name] = kind
    return named


def _plugged(module: str) -> tuple[Any, ...]:
    try:
        return tuple(importlib.import_module(module).KINDS)
    except (ImportError, AttributeError) as error:
        raise InvalidConfig(
            f"{PLUGINS_VARIABLE} names {module!r}, which gives no kinds: {error}. Name a module that "
            "can be imported "
            "and defines KINDS, or take it out."
        ) from error
