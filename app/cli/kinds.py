"""The command line's list of adapter kinds and objectives, with the options that each has of its own."""

from __future__ import annotations

from app.cli.common import Home, Json
from app.cli.console import Console, guarded
from app.cli.option_list import values
from core.options import Option
from core.train.training_options import heads


@guarded
def kinds(home: Home = None, json: Json = False) -> None:
    """List the adapter kinds and objectives that train can be given, with their own options."""
    rows = [
        {
            "set": f"{chooser}={head.name}",
            "label": head.label,
            "help": head.help,
            "options": "; ".join(_told(option) for option in head.options.options()),
        }
        for chooser, _, head in heads()
    ]
    Console(json).records(rows)


def _told(option: Option) -> str:
    """An option in a few words: its default, what it may be, what it does."""
    allowed = values(option)
    return f"{option.name}={option.default}{f' ({allowed})' if allowed else ''}: {option.help}"
