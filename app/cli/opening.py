"""Without a command: the page; and the address of one that is open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import Home, Json
from app.cli.console import Console, guarded
from app.shared.settings import HOME_VARIABLE, settings_for


@guarded
def open_page(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    certfile: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) for https.", exists=True, dir_okay=False)
    ] = None,
    keyfile: Annotated[
        Path | None, typer.Option(help="The certificate's key (PEM).", exists=True, dir_okay=False)
    ] = None,
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
    from app.web.server import Listening, serve

    listening = Listening(host, port, certfile, keyfile)
    serve(settings_for(home), listening, open_browser=not no_browser, tell=Console(json).result)


@guarded
def address(
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Make a new token; it counts from the page's next start.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Print the address of the open page, with the token that opens it."""
    from app.web.server import running_address
    from app.web.token import page_token

    settings = settings_for(home)
    if new_token:
        page_token(settings, anew=True)
        Console(json).result({"new_token": True}, [("Token", "a new one, from the page's next start on")])
        return
    found = running_address(settings)
    Console(json).result({"address": found}, [("Open", found)])
