"""The files of a base model's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from core.errors import InvalidModel
from core.files.safetensors_file import read_header

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX_NAME = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from `path`. Raises InvalidModel if it is missing or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InvalidModel(f"{path.parent} has no {path.name}; a base model's folder needs one.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InvalidModel(f"{path} holds a {type(content).__name__} where an object was expected.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, in order: those its index names, or the one file, or all shards.

    Raises InvalidModel if there are none, with the reason where only pickle weights are present.
    """
    if (folder / INDEX_NAME).is_file():
        named = sorted(set(read_json(folder / INDEX_NAME).get("weight_map", {}).values()))
        if any(not isinstance(name, str) or Path(name).name != name for name in named):
            raise InvalidModel(f"{folder / INDEX_NAME} names files outside its own folder.")
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise InvalidModel(f"{folder} is incomplete: {', '.join(missing)} is missing.")
        return [folder / name for name in named]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else _loose_shards(folder)


def _loose_shards(folder: Path) -> list[Path]:
    shards = sorted(
        path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_model")
    )
    if shards:
        return shards
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise InvalidModel(
            f"{folder} holds pickle weights ({pickles[0]}), which can run code and are never opened; "
            "convert the model to safetensors first."
        )
    raise InvalidModel(f"{folder} has no .safetensors weights, so there is no base model in it.")


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in the folder by name; of safetensors only of the header, since a fingerprint has
    the rest.

    Raises InvalidInput if one of those is damaged.
    """
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                tensors = read_header(path).tensors
                found[path.name] = hashlib.sha256(file.read(tensors[0].start if tensors else -1)).hexdigest()
            else:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
