"""Without a command: the page."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from app.cli.common import Home, Json
from app.cli.console import Console, guarded
from app.shared.settings import HOME_VARIABLE, settings_for


@guarded
def open_page(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond this machine a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser window.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Open the page."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter(f"put --json behind the command: {context.invoked_subcommand} … --json")
        if home is not None:
            os.environ[HOME_VARIABLE] = str(home)  # for the command that follows
        return
    from app.web.server import serve

    serve(settings_for(home), host=host, port=port, open_browser=not no_browser, show=Console(json).result)
