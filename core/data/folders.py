"""The data files in a folder, as those of a zip of it: told apart by their names, each a source of rows.

Needs no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from core.data.reading import suffixes
from core.data.zipped import Source, is_data, left_unread, unpacked, wanted_of
from core.errors import InvalidData

_MOST_FILES = 10_000  # beyond which it is not a folder of rows that somebody has named


def first_file(path: Path) -> Path:
    """The file itself, or the first data file in a folder. Raises InvalidData where there is none."""
    return path / next(iter(wanted_of(_data_files(path)))) if path.is_dir() else path


def folder_sources(folder: Path, staging: Path, *, validation: bool = False) -> list[Source]:
    """The data files in a folder and those below it, by name, called `folder/file`; packed ones are unpacked
    into `staging`. Hidden files, and links to files, are none of them.

    Raises InvalidData, OutOfSpace.
    """
    names = _data_files(folder)
    wanted = wanted_of(names)
    found = [
        Source(
            unpacked(folder / name, staging / f"unpacked-{number}", name),
            f"{folder.name}/{name}",
            validation or kept_for_validation,
        )
        for number, (name, kept_for_validation) in enumerate(wanted.items())
    ]
    return left_unread(found, [name for name in names if name not in wanted])


def _data_files(folder: Path) -> list[str]:
    """Their names below the folder, sorted. Raises InvalidData where there are none, or far too many."""
    found: list[str] = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder)
        for file in files:
            name = (below / file).as_posix()
            if is_data(name) and not (folder / name).is_symlink():
                found.append(name)
        if len(found) > _MOST_FILES:
            raise InvalidData(
                f"The folder {folder} holds more than {_MOST_FILES:,} files that could be data; "
                "name one that holds only those that are meant."
            )
    if not found:
        raise InvalidData(
            f"The folder {folder} holds no file that can be read; expected {', '.join(suffixes())}."
        )
    return sorted(found)
