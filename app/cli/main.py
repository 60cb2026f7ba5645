"""The command line, put together. Each command calls the same Workbench as the page.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import typer

from app.cli.adapters import adapters
from app.cli.baselines import baselines, costs, enough
from app.cli.chat import chat
from app.cli.classify import classify
from app.cli.data import data
from app.cli.doctor import doctor
from app.cli.encoding import speak_any_encoding
from app.cli.export import export
from app.cli.jobs import jobs
from app.cli.join import worker
from app.cli.kinds import kinds
from app.cli.models import models
from app.cli.opening import address, open_page
from app.cli.option_list import options
from app.cli.presets import presets
from app.cli.prompts import prompts
from app.cli.quickstart import quickstart
from app.cli.runs import runs
from app.cli.serve import serve
from app.cli.shortcut import shortcut
from app.cli.storage import backup, restore_backup, space
from app.cli.train import preflight, train
from app.cli.usage_errors import TellsUsageAsJson
from app.cli.user_settings import settings
from app.cli.votes import votes
from app.shared.private import private_by_default

app = typer.Typer(
    name="lora-workbench",
    cls=TellsUsageAsJson,
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Train, keep, compare and merge LoRA adapters on your own machine. Without a command it opens "
        "the page."
    ),
)
groups = (
    ("models", models),
    ("data", data),
    ("runs", runs),
    ("presets", presets),
    ("adapters", adapters),
    ("prompts", prompts),
    ("votes", votes),
    ("jobs", jobs),
    ("settings", settings),
)
for name, group in groups:
    app.add_typer(group, name=name)
app.callback(invoke_without_command=True)(open_page)
app.command()(train)
app.command()(preflight)
app.command()(baselines)
app.command()(enough)
app.command()(costs)
app.command()(kinds)
app.command()(options)
app.command()(backup)
app.command("restore")(restore_backup)
app.command()(space)
app.command()(quickstart)
app.command()(chat)
app.command()(serve)
app.command()(worker)
app.command()(classify)
app.command()(export)
app.command()(doctor)
app.command()(address)
app.command()(shortcut)


def main() -> None:
    """Entry point of the console command."""
    private_by_default()
    speak_any_encoding()
    app()


if __name__ == "__main__":
    main()
