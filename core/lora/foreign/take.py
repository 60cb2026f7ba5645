"""Adapter files as somebody gives them, a folder, a zip or one safetensors file, copied into our own."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from core.errors import InvalidAdapter
from core.files.archive import safe_members
from core.files.disk_faults import is_disk_fault
from core.files.publish import require_space
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.files import WEIGHTS_NAME

_MOST_BYTES = 8 << 30
_WEIGHT_NAMES = (WEIGHTS_NAME, "adapters.safetensors")  # the second is MLX's
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_MOST_NAMED = 6


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
    elif Path(name).suffix.lower() in _PICKLED:
        raise _pickled(f"{name} is")
    else:
        raise InvalidAdapter(f"{name} is no adapter: give a folder, a .zip or a .safetensors file.")
    return staging


def _pickled(what: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{what} a pickle adapter, which can run code and is never opened here. Where you trust it, "
        f"torch.load(…, weights_only=True) and safetensors.torch.save_file make {WEIGHTS_NAME} of it."
    )


def _take_folder(origin: Path, staging: Path) -> None:
    weights = [
        origin / name for name in _WEIGHT_NAMES if (origin / name).exists() or (origin / name).is_symlink()
    ]
    if not weights:
        weights = sorted(path for path in origin.glob("*.safetensors"))
    if not weights and any(
        (origin / name).exists() for name in ("adapter_model.bin", "pytorch_lora_weights.bin")
    ):
        raise _pickled(f"{origin} holds")
    if len(weights) != 1:
        count = "no .safetensors file" if not weights else f"{len(weights)} .safetensors files"
        inside = sorted(path.parent.name for path in origin.glob(f"*/{WEIGHTS_NAME}"))
        there = (
            f" Adapters lie in its folders {', '.join(inside[:_MOST_NAMED])}; give one of them."
            if inside
            else ""
        )
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
            weights = _weights_in(members, name)
            folder = PurePosixPath(weights.filename).parent
            config = [one for one in members if PurePosixPath(one.filename) == folder / CONFIG_NAME]
            require_space(staging, sum(one.file_size for one in (weights, *config)))
            for member, target in ((weights, WEIGHTS_NAME), *[(one, CONFIG_NAME) for one in config]):
                with archive.open(member) as packed, (staging / target).open("xb") as unpacked:
                    shutil.copyfileobj(
                        packed, unpacked, 1 << 20
                    )  # zipfile ends at the announced size and checks the CRC
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        if is_disk_fault(error):
            raise
        raise InvalidAdapter(f"{name} cannot be unpacked: {str(error)[:120]}.") from None


def _weights_in(members: Sequence[zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    """The weights of the adapter that the zip called `name` is of: the outermost, as a run's folder holds its
    checkpoints beside them.

    Raises InvalidAdapter if there are none, or several as far out.
    """
    weights = [one for one in members if _is_a(one.filename, (".safetensors",))]
    named = [one for one in weights if PurePosixPath(one.filename).name in _WEIGHT_NAMES] or weights
    depths = {one.filename: len(PurePosixPath(one.filename).parts) for one in named}
    outermost = [one for one in named if depths[one.filename] == min(depths.values())]
    if not outermost and any(_is_a(one.filename, _PICKLED) for one in members):
        raise _pickled(f"{name} holds")
    if len(outermost) != 1:
        shown = ", ".join(sorted(one.filename for one in outermost)[:_MOST_NAMED])[:200]
        raise InvalidAdapter(
            f"{name} holds {len(outermost)} adapters' weights{f' ({shown})' if shown else ''}; expected one "
            f"{WEIGHTS_NAME} with {CONFIG_NAME}."
        )
    return outermost[0]


def _is_a(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a member's name ends so, and is none of those that systems hide beside others."""
    path = PurePosixPath(name)
    return path.suffix.lower() in endings and not any(
        part.startswith((".", "__MACOSX")) for part in path.parts
    )


def _copy(source: Path, target: Path) -> None:
    require_space(target.parent, source.stat().st_size)
    shutil.copyfile(source, target)
