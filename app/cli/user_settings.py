"""The settings of a home folder: what they are, where each comes from, and changing them."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded
from app.shared.user_settings import Preference, Preferences, PreferenceStore

settings = typer.Typer(
    help="Settings of the home folder. Without a command they are listed.", invoke_without_command=True
)
Name = Annotated[str, typer.Argument(help="A setting, such as theme.")]


@settings.callback()
@guarded
def list_settings(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """Each setting with its value, where that comes from, and what it may be."""
    if context.invoked_subcommand is None:
        console, workbench = Console(json), open_workbench(home)
        found = workbench.preferences.all()
        console.records([_row(one) if not json else one.to_dict() for one in found])
        console.say(f"In {workbench.settings.settings_file}; change one with: settings set KEY VALUE")


@settings.command("set")
@guarded
def set_one(
    name: Name,
    value: Annotated[str, typer.Argument(help="Its value; what it may be: lora-workbench settings.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Set one in settings.toml."""
    store = open_workbench(home).preferences
    store.change({name: value})
    _tell(Console(json), store, name)


@settings.command("unset")
@guarded
def unset_one(name: Name, home: Home = None, json: Json = False) -> None:
    """Take one out of settings.toml, so that its default counts."""
    store = open_workbench(home).preferences
    store.reset([name])
    if name in {one.name for one in Preferences.options()}:
        _tell(Console(json), store, name)
    else:
        Console(json).result({"removed": name}, [("Removed", name)])


def _tell(console: Console, store: PreferenceStore, name: str) -> None:
    """How one stands after a change; where something else is wrong nothing counts yet, and that is said."""
    if fault := store.fault:
        told = [("Written", name), ("Still wrong", fault)]
        console.result({"setting": name, "fault": fault}, told)
        return
    one = store.find(name)
    console.result(one.to_dict(), [(one.name, f"{_shown(one.told)} ({one.source})")])
    if one.overruled:
        console.say(f"As long as {one.source.removeprefix('$')} names it, that counts and not the file.")


def _row(one: Preference) -> dict[str, str]:
    return {
        "setting": one.name,
        "value": _shown(one.told),
        "from": one.source,
        "may be": one.allowed,
        "what it does": one.option.help,
    }


def _shown(value: object) -> str:
    """As it stands in the file; an empty text as a dash."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "–"
