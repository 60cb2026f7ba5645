"""The files of a base model's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from core.errors import InvalidModel
from core.files.safetensors_file import TensorEntry, read_header

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SINGLE_NAME = "model.safetensors"
INDEX_NAME = f"{SINGLE_NAME}.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from `path`. Raises InvalidModel if it is missing or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InvalidModel(f"{path.parent} has no {path.name}; a base model's folder needs one.") from None
    except UnicodeDecodeError:
        raise InvalidModel(f"{path} is not UTF-8 text; save it as UTF-8.") from None
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
        places = read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise InvalidModel(f"{folder / INDEX_NAME} has no weight_map that says where each tensor lies.")
        if any(not isinstance(name, str) or Path(name).name != name for name in places.values()):
            raise InvalidModel(f"{folder / INDEX_NAME} names files outside its own folder.")
        named = sorted(set(places.values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise InvalidModel(f"{folder} is incomplete: {', '.join(missing)} is missing.")
        if SINGLE_NAME not in named and (folder / SINGLE_NAME).is_file():
            raise InvalidModel(
                f"{folder} holds two sets of weights: {SINGLE_NAME}, and those that {INDEX_NAME} names "
                f"({named[0]}, …). Remove the set that is not meant."
            )
        return [folder / name for name in named]
    single = folder / SINGLE_NAME
    return [single] if single.is_file() else _loose_shards(folder)


def stored_tensors(folder: Path) -> dict[str, tuple[Path, TensorEntry]]:
    """Where each tensor of a model lies, by its name. Raises InvalidModel for one that lies there twice."""
    found: dict[str, tuple[Path, TensorEntry]] = {}
    for path in weight_files(folder):
        for entry in read_header(path).tensors:
            if entry.name in found:
                raise InvalidModel(
                    f"The tensor {entry.name[:120]} stands in {found[entry.name][0].name} and in "
                    f"{path.name}, so it is not known which is meant. Get the files of {folder.name} again, "
                    "or remove those that do not belong to it."
                )
            found[entry.name] = path, entry
    return found


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
