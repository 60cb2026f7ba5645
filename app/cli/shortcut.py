"""An entry in the desktop's menu."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import Home, Json
from app.cli.console import Console, guarded
from app.shared.settings import HOME_VARIABLE


@guarded
def shortcut(
    remove: Annotated[bool, typer.Option("--remove", help="Take the entry away.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Add an entry to the desktop's menu that opens the workbench in a window of its own."""
    from app.service.menu_entry import add_entry, entry_for, remove_entry

    named = home or (Path(os.environ[HOME_VARIABLE]) if os.environ.get(HOME_VARIABLE) else None)
    entry = entry_for(sys.platform, Path.home(), os.environ, named.expanduser().resolve() if named else None)
    paths = remove_entry(entry) if remove else add_entry(entry)
    said = "Removed" if remove else "Written"
    content = {said.lower(): [str(path) for path in paths], "entry": str(entry.link)}
    rows = [(said, str(path)) for path in paths] or [("Removed", f"nothing: there was no {entry.link}")]
    Console(json).result(content, rows)
