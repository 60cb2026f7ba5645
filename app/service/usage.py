"""What takes space in a home folder, and what of it can go."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.shared.errors import QuotaExceeded
from app.shared.settings import Settings
from core.errors import InvalidConfig
from storage.blobs import content_size
from storage.errors import NotFound
from storage.registry import DAY, Registry
from storage.tables import Adapter, Base, Checkpoint, Dataset, DatasetVersion, Export

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


def usage(registry: Registry, settings: Settings) -> list[Share]:
    """What takes space, the largest first. A blob that two rows need counts once, for the first kind."""
    counted: set[str] = set()
    deleted = [row.digest for row in registry.adapters.deleted()]
    versions = registry.all(DatasetVersion)
    data = [
        *[d for row in registry.all(Dataset) for d in (row.digest, row.rows_digest)],
        *[d for row in versions for d in (row.digest, row.rows_digest)],
    ]
    checkpoints = [d for row in registry.all(Checkpoint) for d in (row.adapter_digest, row.state_digest)]
    adapters = _blobs(registry, [row.digest for row in registry.all(Adapter)], counted)
    kept = _blobs(registry, checkpoints, counted)
    rows = _blobs(registry, data, counted)
    gone = _blobs(registry, deleted, counted)
    orphans = _blobs(registry, sorted(set(registry.blobs.digests()) - registry.referenced()), counted)
    owned = sum(_size(Path(base.folder)) for base in registry.all(Base) if base.owned)
    folders = {Path(one.folder) for one in registry.all(Export)}
    exports = sum(_size(folder) for folder in folders if folder.is_relative_to(settings.home))
    cache, left = _size(settings.cache), _left_over(settings)
    shares = [
        Share("Base models", owned, 0, "Remove those that no adapter needs, under Models."),
        Share("Adapters", adapters, 0, "Delete what you do not need, under Adapters; resize the large ones."),
        Share("Checkpoints of runs", kept, 0, "Remove runs that you do not want to resume, under Runs."),
        Share("Data sets", rows, 0, "Remove data sets under Data."),
        Share("Exports", exports, 0, "Delete their folders when you have taken them where they belong."),
        Share("Deleted adapters", gone, gone, "Can be brought back for a day."),
        Share("Files that nothing needs", orphans, orphans, "Left by work that was interrupted."),
        Share("Rendered rows and compiled kernels", cache, cache, "Made again when needed."),
        Share("Left over from work that was killed", left, left, "Half written files."),
        Share("Registry", _size(settings.database), 0, ""),
        Share(
            "Older copies of the registry",
            _size_of(settings.home.glob("registry-before-*.db")),
            0,
            "Delete old ones.",
        ),
        Share("Logs", _size(settings.logs), 0, ""),
    ]
    return sorted((one for one in shares if one.bytes), key=lambda one: -one.bytes)


def clean_up(registry: Registry, settings: Settings) -> int:
    """Remove what can go, deleted adapters too; while a run is under way the caches stay.

    Returns the bytes that became free.
    """
    before = shutil.disk_usage(settings.home).used
    registry.adapters.purge(time.time())
    registry.sweep(_REGISTERED_WITHIN)
    for path in _leavings(settings):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not registry.runs.active():
        shutil.rmtree(settings.cache, ignore_errors=True)
    return max(0, before - shutil.disk_usage(settings.home).used)


def _leavings(settings: Settings) -> list[Path]:
    """Staging folders that nothing has touched for a day."""
    places = [
        *settings.staging.iterdir(),
        *settings.models.glob(".staging-*"),
        *settings.exports.glob(".staging-*"),
    ]
    return [path for path in places if time.time() - path.stat().st_mtime > DAY]


def _left_over(settings: Settings) -> int:
    return _size_of(_leavings(settings))


def _blobs(registry: Registry, digests: Sequence[str], counted: set[str]) -> int:
    total = 0
    for digest in dict.fromkeys(digests):
        if digest and digest not in counted:
            counted.add(digest)
            try:
                total += content_size(registry.blobs.path(digest))
            except NotFound:
                continue
    return total


def _size(path: Path) -> int:
    return content_size(path) if path.exists() else 0


def _size_of(paths: Any) -> int:
    return sum(_size(path) for path in paths)


def quota(settings: Settings) -> float | None:
    """How much the home folder may hold, in GB; None for as much as there is."""
    try:
        return float(settings.quota_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def set_quota(settings: Settings, gigabytes: float) -> None:
    """Allow the home folder so many GB; 0 lifts the limit. Raises InvalidConfig."""
    if not 0 <= gigabytes < math.inf:
        raise InvalidConfig(f"A quota of {gigabytes:g} GB cannot be kept; give a number from 0.")
    if gigabytes:
        settings.quota_file.write_text(f"{gigabytes:g}", encoding="utf-8")
    else:
        settings.quota_file.unlink(missing_ok=True)


def require_quota(registry: Registry, settings: Settings) -> None:
    """Raise QuotaExceeded if more is kept than is allowed: nothing new is begun then, what is there stays."""
    limit = quota(settings)
    if limit is None:
        return
    used = sum(one.bytes for one in usage(registry, settings))
    if used > limit * 1e9:
        raise QuotaExceeded(
            f"The home folder holds {used / 1e9:,.2f} GB, {limit:g} GB are allowed. Clean up (Home, "
            "Storage), or raise the quota."
        )
