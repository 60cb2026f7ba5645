"""Adapter files as somebody gives them, a folder, a zip or one safetensors file, copied into our own."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from core.errors import InvalidAdapter
from core.files.archive import safe_members
from core.files.disk_faults import is_disk_fault
from core.files.publish import require_space
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.files import WEIGHTS_NAME

_MOST_BYTES = 8 << 30
_WEIGHT_NAMES = (WEIGHTS_NAME, "adapters.safetensors")  # the second is MLX's


def take(origin: Path, staging: Path, name: str = "") -> Path:
    """Copy what belongs to an adapter from a folder, a zip or a safetensors file into the empty folder
    `staging`.

    What is looked at later is this copy, so nobody changes it in between. Raises InvalidAdapter, OutOfSpace.
    """
    name = name or origin.name
    if origin.is_symlink():
        raise InvalidAdapter(f"{origin} is a link, which is not followed; give the file itself.")
    if not origin.exists():
        raise InvalidAdapter(f"There is no file or folder {origin}.")
    if origin.is_dir():
        _take_folder(origin, staging)
    elif Path(name).suffix.lower() == ".zip":
        _take_zip(origin, staging, name)
    elif Path(name).suffix.lower() == ".safetensors":
        _copy(origin, staging / WEIGHTS_NAME)
        beside = origin.with_name(CONFIG_NAME)
        if beside.is_file() and not beside.is_symlink():
            _copy(beside, staging / CONFIG_NAME)
    else:
        raise InvalidAdapter(f"{name} is no adapter: give a folder, a .zip or a .safetensors file.")
    return staging


def _take_folder(origin: Path, staging: Path) -> None:
    weights = [
        origin / name for name in _WEIGHT_NAMES if (origin / name).exists() or (origin / name).is_symlink()
    ]
    if not weights:
        weights = sorted(path for path in origin.glob("*.safetensors"))
    if not weights and any(
        (origin / name).exists() for name in ("adapter_model.bin", "pytorch_lora_weights.bin")
    ):
        raise InvalidAdapter(
            f"{origin} holds a pickle adapter, which can run code and is never opened; save it as "
            f"{WEIGHTS_NAME}."
        )
    if len(weights) != 1:
        count = "no .safetensors file" if not weights else f"{len(weights)} .safetensors files"
        inside = sorted(path.parent.name for path in origin.glob(f"*/{WEIGHTS_NAME}"))
        there = f" Adapters lie in its folders {', '.join(inside[:6])}; give one of them." if inside else ""
        raise InvalidAdapter(
            f"{origin} holds {count}; an adapter is {CONFIG_NAME} and {WEIGHTS_NAME}.{there}"
        )
    for path, target in ((weights[0], WEIGHTS_NAME), (origin / CONFIG_NAME, CONFIG_NAME)):
        if path.is_symlink():
            raise InvalidAdapter(
                f"{path} is a link, which is not followed; copy the file itself into the folder."
            )
        if path.is_file():
            _copy(path, staging / target)


def _take_zip(origin: Path, staging: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(origin) as archive:
            members = safe_members(archive, name, _MOST_BYTES, InvalidAdapter)
            weights = [one for one in members if _is_weights(one.filename)]
            named = [one for one in weights if PurePosixPath(one.filename).name in _WEIGHT_NAMES] or weights
            if len(named) != 1:
                raise InvalidAdapter(
                    f"{name} holds {len(named)} adapters' weights ({WEIGHTS_NAME}); expected one."
                )
            folder = PurePosixPath(named[0].filename).parent
            config = [one for one in members if PurePosixPath(one.filename) == folder / CONFIG_NAME]
            require_space(staging, sum(one.file_size for one in (*named, *config)))
            for member, target in ((named[0], WEIGHTS_NAME), *[(one, CONFIG_NAME) for one in config]):
                with archive.open(member) as packed, (staging / target).open("xb") as unpacked:
                    shutil.copyfileobj(
                        packed, unpacked, 1 << 20
                    )  # zipfile ends at the announced size and checks the CRC
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        if is_disk_fault(error):
            raise
        raise InvalidAdapter(f"{name} cannot be unpacked: {str(error)[:120]}.") from None


def _is_weights(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".safetensors" and not any(
        part.startswith((".", "__MACOSX")) for part in path.parts
    )


def _copy(source: Path, target: Path) -> None:
    require_space(target.parent, source.stat().st_size)
    shutil.copyfile(source, target)
