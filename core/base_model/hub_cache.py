"""Folders of the hub's own cache, as its libraries lay them out: models--OWNER--NAME, with a folder for each
revision in `snapshots`, whose files are links into `blobs`, and the revision of each branch in `refs`. Needs
no torch.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import InvalidModel

_SNAPSHOTS, _BRANCH, _PREFIX = "snapshots", "main", "models--"


def snapshot_in(folder: Path) -> Path:
    """The model's files in a folder of the cache: those of its main branch, else the only ones; any other
    folder as it is.

    Raises InvalidModel where several revisions are there and none is the branch's.
    """
    snapshots = folder / _SNAPSHOTS
    if not (folder.name.startswith(_PREFIX) and snapshots.is_dir()):
        return folder
    branch = folder / "refs" / _BRANCH
    main = snapshots / branch.read_text(encoding="utf-8").strip() if branch.is_file() else None
    if main is not None and main.is_dir():
        return main
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) != 1:
        listed = ", ".join(path.name for path in found[:5]) or "none"
        raise InvalidModel(
            f"{folder} is a folder of the hub's cache, and it is not known which revision is meant "
            f"({listed}). Give one of the folders in {snapshots}."
        )
    return found[0]


def name_in_cache(folder: Path) -> str:
    """What the hub calls a model that lies in its cache, without the owner; empty for any other folder."""
    home = folder.parent.parent if folder.parent.name == _SNAPSHOTS else folder
    return home.name.rpartition("--")[2] if home.name.startswith(_PREFIX) else ""
