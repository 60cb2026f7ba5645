"""Files of the first process, given to all that train a group with it.

What they are is told beforehand, with a code that only who has the group's secret can make (HMAC, RFC 2104);
what comes is held against that before anybody reads it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from core.errors import WorkerLost

if TYPE_CHECKING:
    from core.train.data_apart import DataApart

_PIECE = 16 << 20  # bytes that travel at once


def hand_out(share: DataApart, files: Mapping[str, Path], secret: str) -> None:
    """Give these files, by name, to the others, which take_in() at the same point of their work."""
    listed = [
        {"name": name, "size": path.stat().st_size, "sha256": _digest(path)} for name, path in files.items()
    ]
    said = json.dumps(listed)
    share.meet()
    share.tell(json.dumps({"files": said, "code": _code(said, secret)}))
    for path in files.values():
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                share.send(torch.frombuffer(bytearray(piece), dtype=torch.uint8))


def take_in(share: DataApart, folder: Path, secret: str) -> None:
    """Have the first process's files in `folder`, which is made. Raises WorkerLost for what is not of who has
    the secret, or was damaged on the way.
    """
    share.meet()
    told = json.loads(share.tell(""))
    if not hmac.compare_digest(told["code"], _code(told["files"], secret)):
        raise WorkerLost("What came in place of the runs is not of a process that has this group's key.")
    for one in json.loads(told["files"]):
        path = folder / _inside(one["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(share, path, one["size"])
        if _digest(path) != one["sha256"]:
            raise WorkerLost(f"{one['name']} of the runs came damaged; its digest is another.")


def _take(share: DataApart, path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            piece = torch.empty(min(_PIECE, size - start), dtype=torch.uint8)
            share.send(piece)
            file.write(piece.numpy().tobytes())


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise WorkerLost(f"{name!r} is no name of a file of a run.")
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code(said: str, secret: str) -> str:
    return hmac.new(bytes.fromhex(secret), said.encode(), hashlib.sha256).hexdigest()
