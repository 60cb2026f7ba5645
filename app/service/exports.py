"""Exports: starting one, whether it is still as it was written, and as one file to take away."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.service.jobs import Jobs
from app.shared.settings import Settings
from storage.blobs import content_digest
from storage.errors import BlobDamaged, NotFound
from storage.registry import Registry
from storage.tables import Export, Job

_PIECE = 1 << 20


class Exports:
    """The exports of one home folder."""

    def __init__(self, registry: Registry, settings: Settings, jobs: Jobs) -> None:
        self._registry, self._settings, self._jobs = registry, settings, jobs

    def start(
        self, adapter: str, folder: Path | None = None, options: Mapping[str, object] | None = None
    ) -> Job:
        """Start writing an adapter, or its base with it merged in, as a folder; by default under exports in
        the home folder.

        Raises NotFound, WrongBase, InvalidConfig, and InvalidInput for a folder that cannot be written.
        """
        arguments = {"adapter": adapter, "folder": str(folder or ""), "config": dict(options or {})}
        return self._jobs.start("export_adapter", arguments)

    def verify(self, export_id: int) -> Export:
        """The export, if every file of it is as it was written. Raises BlobDamaged, NotFound."""
        row = self._registry.get(Export, export_id)
        verify_export(row)
        return row

    def remove(self, export_id: int) -> str:
        """Remove an export, with its folder where that lies in the home folder and holds no other export;
        what was written elsewhere stays. Returns what became of it in a sentence. Raises NotFound, InUse.
        """
        folder = Path(self._registry.exports.forget(export_id).folder).resolve()
        if not folder.is_dir():
            return f"The export {folder.name} is forgotten; its folder was gone already."
        others = [
            one for one in self._registry.all(Export) if Path(one.folder).resolve().is_relative_to(folder)
        ]
        if others or self._settings.exports.resolve() not in folder.parents:
            return f"The export is forgotten; its files stay in {folder}."
        shutil.rmtree(folder)
        return f"The export {folder.name} is removed."


def verify_export(row: Export) -> None:
    """Raise BlobDamaged or NotFound unless every file is as it was written."""
    folder = Path(row.folder)
    if not folder.is_dir():
        raise NotFound(f"The export {row.folder} is gone.")
    for name, digest in row.files.items():
        path = folder / name
        if not path.exists() or content_digest(path) != digest:
            raise BlobDamaged(
                f"{path} is {'not as it was written' if path.exists() else 'gone'}; export "
                f"{row.adapter_name} again."
            )


class _Pipe(io.RawIOBase):
    """A file that cannot seek and gives away what was written to it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self._pieces = b"".join(self._pieces), []
        return data


def zipped(folder: Path) -> Iterator[bytes]:
    """The files of a folder as an uncompressed zip, made while it is sent: nothing is written to the disk."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            about = zipfile.ZipInfo.from_file(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
            with path.open("rb") as source, archive.open(about, "w", force_zip64=True) as target:
                while data := source.read(_PIECE):
                    target.write(data)
                    yield pipe.take()
    yield pipe.take()
