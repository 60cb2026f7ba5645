"""What takes space in a home folder, and what of it can go."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.shared.errors import QuotaExceeded
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore
from core.errors import InvalidConfig
from core.files.holding import is_abandoned
from core.files.publish import is_unfinished
from storage.blobs import content_size
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Checkpoint, Dataset, DatasetVersion, Export

_LEFT_SECONDS = 60.0
_REGISTERED_WITHIN = 600.0  # seconds; what somebody has just put may be registered in a moment


@dataclass(frozen=True)
class Share:
    """One kind of thing that takes space."""

    what: str
    bytes: int
    removable_bytes: int
    """Bytes of it that clean_up() frees."""
    advice: str
    """How to make it smaller."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Usage:
    """The space that one home folder takes."""

    def __init__(self, registry: Registry, settings: Settings, preferences: PreferenceStore) -> None:
        self._registry, self._settings, self._preferences = registry, settings, preferences

    def shares(self) -> list[Share]:
        """What takes space, the largest first."""
        return sorted((one for one in self._shares() if one.bytes), key=lambda one: -one.bytes)

    def _shares(self) -> list[Share]:
        """Every kind of thing. A blob that two rows need counts once, for the first kind."""
        registry, settings, counted = self._registry, self._settings, set[str]()
        data: list[Dataset | DatasetVersion] = [*registry.all(Dataset), *registry.all(DatasetVersion)]
        adapters = self._blobs([row.digest for row in registry.all(Adapter)], counted)
        checkpoints = registry.all(Checkpoint)
        kept = self._blobs(
            [d for row in checkpoints for d in (row.adapter_digest, row.state_digest)], counted
        )
        rows = self._blobs([d for row in data for d in (row.digest, row.rows_digest)], counted)
        gone = self._blobs([row.digest for row in registry.adapters.deleted()], counted)
        orphans = self._blobs(sorted(set(registry.blobs.digests()) - registry.referenced()), counted)
        cache, left = content_size(settings.cache), _size_of(self._leavings())
        older = _size_of(settings.home.glob("registry-before-*.db"))
        return [
            Share("Base models", self._owned_bases(), 0, "Remove those that no adapter needs, under Models."),
            Share(
                "Adapters", adapters, 0, "Delete what you do not need, under Adapters; resize the large ones."
            ),
            Share("Checkpoints of runs", kept, 0, "Remove runs that you do not want to resume, under Runs."),
            Share("Data sets", rows, 0, "Remove data sets under Data."),
            Share(
                "Exports",
                self._exports(),
                0,
                "Delete their folders when you have taken them where they belong.",
            ),
            Share("Deleted adapters", gone, gone, "Can be brought back for a day."),
            Share("Files that nothing needs", orphans, orphans, "Left by work that was interrupted."),
            Share("Rendered rows and compiled kernels", cache, cache, "Made again when needed."),
            Share("Left over from work that was killed", left, left, "Half written files."),
            Share("Registry", content_size(settings.database), 0, ""),
            Share("Older copies of the registry", older, 0, "Delete old ones."),
            Share("Logs", content_size(settings.logs), 0, ""),
        ]

    def _owned_bases(self) -> int:
        return _size_of(Path(base.folder) for base in self._registry.all(Base) if base.owned)

    def _exports(self) -> int:
        folders = {Path(one.folder) for one in self._registry.all(Export)}
        return _size_of(folder for folder in folders if folder.is_relative_to(self._settings.home))

    def _blobs(self, digests: Sequence[str], counted: set[str]) -> int:
        total = 0
        for digest in dict.fromkeys(digests):
            if digest and digest not in counted:
                counted.add(digest)
                try:
                    total += content_size(self._registry.blobs.path(digest))
                except NotFound:
                    continue
        return total

    def clean_up(self) -> int:
        """Remove what can go, deleted adapters too; while a run is under way the caches stay.

        Returns the bytes that became free.
        """
        settings, before = self._settings, shutil.disk_usage(self._settings.home).used
        self._registry.adapters.purge(time.time())
        self._registry.sweep(_REGISTERED_WITHIN)
        self.remove_leavings()
        if not self._registry.runs.active():
            shutil.rmtree(settings.cache, ignore_errors=True)
        return max(0, before - shutil.disk_usage(settings.home).used)

    def remove_leavings(self) -> None:
        """Remove what processes that were killed have left half written."""
        for path in self._leavings():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _leavings(self) -> list[Path]:
        """What nobody works on any more: staging folders, and folders that were put in their place but never
        registered.
        """
        registry, settings = self._registry, self._settings
        staged = [
            *settings.staging.iterdir(),
            *settings.models.glob(".staging-*"),
            *settings.exports.glob(".staging-*"),
        ]
        rows: list[Base | Export] = [*registry.all(Base), *registry.all(Export)]
        named = {Path(one.folder) for one in rows}
        placed = [path for place in (settings.models, settings.exports) for path in place.iterdir()]
        return [
            *(path for path in staged if is_abandoned(path, _LEFT_SECONDS)),
            *(path for path in placed if path not in named and is_unfinished(path)),
        ]

    def quota(self) -> float | None:
        """How much the home folder may hold, in GB; None for as much as there is. Raises InvalidConfig."""
        return self._preferences.values().quota or None

    def set_quota(self, gigabytes: float) -> None:
        """Allow the home folder so many GB; 0 lifts the limit. Raises InvalidConfig."""
        if not 0 <= gigabytes < math.inf:
            raise InvalidConfig(f"A quota of {gigabytes:g} GB cannot be kept; give a number from 0.")
        self._preferences.change({"quota": gigabytes})

    def require_room(self) -> None:
        """Raise QuotaExceeded if more is kept than is allowed: nothing new is begun then, what is there
        stays.
        """
        limit = self.quota()
        if limit is None:
            return
        used = sum(one.bytes for one in self.shares())
        if used > limit * 1e9:
            raise QuotaExceeded(
                f"The home folder holds {used / 1e9:,.2f} GB, {limit:g} GB are allowed. Clean up (Home, "
                "Storage), or raise the quota."
            )


def _size_of(paths: Iterable[Path]) -> int:
    return sum(map(content_size, paths))
