"""Adapters that other programs bring to the server while it serves, and take away again."""

from __future__ import annotations

import secrets
from pathlib import Path

from app.service.adapters import Adapters
from app.service.jobs import Jobs
from app.shared.errors import JobFailed
from core.errors import InvalidInput
from storage.adapters import split_tags
from storage.errors import NameTaken
from storage.names import clean_name
from storage.registry import Registry
from storage.tables import Adapter, Base

LOADED = "loaded by API"
"""The tag of an adapter that was brought so; only such are taken away so."""


class Loading:
    """They, in one home folder."""

    def __init__(self, registry: Registry, adapters: Adapters, jobs: Jobs) -> None:
        self._registry, self._adapters, self._jobs = registry, adapters, jobs

    def load(self, name: str, path: Path, base: str | None = None, *, in_place: bool = False) -> Adapter:
        """Import the adapter at `path` of this machine as `name`, with all checks of an import. in_place: in
        place of one of this name that was brought so before, which answers until then.

        Raises NameTaken, InvalidInput with the import's reason, NotFound for a base that is not there.
        """
        if clean_name(name, "adapter") in self._registry.names(Base):
            raise NameTaken(f"{name} is a base here, and what it is asked as; choose another name.")
        before = self._before(name) if in_place else None
        wanted = f"{name} ({secrets.token_hex(4)})" if before else self._registry.require_free(Adapter, name)
        try:
            result = self._jobs.wait(self._adapters.import_files(path, wanted, base))
        except JobFailed as error:
            raise InvalidInput(str(error)) from None
        row = self._registry.find(Adapter, result["name"])
        if before is not None:
            self._registry.adapters.delete(before.id or 0)
        return self._registry.adapters.change(row.id or 0, name=name, tags=LOADED)

    def unload(self, name: str) -> None:
        """Take an adapter away that was brought so; it can be brought back as any that is deleted.

        Raises NotFound, InvalidInput for one that was not brought so.
        """
        row = self._registry.find(Adapter, name)
        if LOADED not in split_tags(row.tags):
            raise InvalidInput(
                f"{name} was not loaded through the API, so it is not removed through it: it is one of the "
                "workbench's own adapters. Delete it under Adapters."
            )
        self._registry.adapters.delete(row.id or 0)

    def _before(self, name: str) -> Adapter | None:
        """The one that is to be replaced, if there is one. Raises NameTaken for the workbench's own."""
        if name not in self._registry.names(Adapter):
            return None
        row = self._registry.find(Adapter, name)
        if LOADED not in split_tags(row.tags):
            raise NameTaken(f"{name} is one of the workbench's own adapters; choose another name.")
        return row
