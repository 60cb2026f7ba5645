"""The command line's part about keeping: backup, restore, what takes space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, ProgressLine, guarded
from app.shared.processes import nothing_running
from app.shared.settings import settings_for
from core.events import Progress
from storage.backup import Watch, restore
from storage.backup import backup as back_up
from storage.blobs import BlobStore


def _watch(progress: ProgressLine) -> Watch:
    return lambda what, share: progress.report(Progress(what, share))


@guarded
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Write the whole registry, with adapters, checkpoints, data and presets, into one file.

    Base models, settings and exports are not in it.
    """
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        target = file.expanduser().absolute()
        count = back_up(workbench.registry, target, _watch(progress), workbench.settings.presets)
    size = file.expanduser().stat().st_size
    console.result(
        {"file": str(file), "blobs": count, "size_bytes": size},
        [("Written", f"{file}, {size / 1e6:,.1f} MB")],
    )


@guarded
def restore_backup(
    file: Annotated[Path, typer.Argument(help="What backup has written.", exists=True, dir_okay=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where the home folder holds something.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Bring a backup back. Close the page and wait for runs to end first. Presets that are there stay."""
    console, settings = Console(json), settings_for(home)
    with nothing_running(settings), console.progress() as progress:
        blobs = BlobStore(settings.blobs)
        count = restore(file, settings.database, blobs, _watch(progress), settings.presets, replace=replace)
    console.result(
        {"home": str(settings.home), "blobs": count}, [("Restored", f"{count} files into {settings.home}")]
    )


@guarded
def space(
    clean: Annotated[bool, typer.Option("--clean", help="Remove what can go.")] = False,
    limit: Annotated[
        float | None, typer.Option("--quota", help="GB that the home folder may hold; 0: no limit.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show what takes space in the home folder and what can go; remove that with --clean."""
    console, workbench = Console(json), open_workbench(home)
    if limit is not None:
        workbench.usage.set_quota(limit)
    if clean:
        freed = workbench.usage.clean_up()
        console.result({"freed_bytes": freed}, [("Freed", f"{freed / 1e6:,.1f} MB")])
        return
    shares = workbench.usage.shares()
    console.records(
        [
            {
                "what": one.what,
                "bytes": one.bytes,
                "removable_bytes": one.removable_bytes,
                "advice": one.advice,
            }
            for one in shares
        ]
    )
