"""Where a base model is to come from, and what can be seen of it at once. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

from core.base_model.describe import look_over
from core.base_model.files import read_json
from core.base_model.hub import HUB_ID
from core.base_model.hub_cache import snapshot_in
from core.base_model.packings import packed_as
from core.errors import InvalidModel

STARTER = "starter"
_GGUF, _GGUF_MAGIC = ".gguf", b"GGUF"
_PATH = re.compile(r"[/~.]|[A-Za-z]:|.*\\|.*/.*/", re.DOTALL)


def require_origin(origin: str) -> None:
    """Raise InvalidModel for what is seen at once to be no base model: before anything is fetched, converted
    or hashed.

    origin: the word starter, a folder, a GGUF file or a hub id. Whether the hub has it is not asked.
    """
    if origin == STARTER:
        return
    path = snapshot_in(Path(origin).expanduser())
    if path.is_dir():
        if not packed_as(read_json(path / "config.json")):
            look_over(path)
    elif path.is_file() and path.suffix.lower() == _GGUF:
        require_gguf(path)
    elif path.is_file() or not names_hub(origin):
        raise InvalidModel(no_origin(origin))


def names_hub(origin: str) -> bool:
    """Whether what is no file and no folder here can be a model of the hub."""
    return bool(HUB_ID.match(origin)) and not origin.lower().endswith(_GGUF)


def require_gguf(path: Path) -> None:
    """Raise InvalidModel if a file does not begin as GGUF does."""
    with path.open("rb") as file:
        if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise InvalidModel(f"{path.name} is not a GGUF file: it does not start with the letters GGUF.")


def no_origin(origin: str) -> str:
    """Why nothing can come from there, with what was typed as it was typed."""
    path = Path(origin).expanduser()
    if path.is_file():
        return f"{origin} is a file, but no .gguf; for a model in safetensors give the folder it lies in."
    if _PATH.match(origin) or path.suffix.lower() == _GGUF:
        return f"There is no {origin} here: neither a folder nor a file. Check the path."
    return f"{origin} is neither a folder, a .gguf file, a hub id (owner/name) nor the word {STARTER}."
