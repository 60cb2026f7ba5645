"""The HTTP API for other programs, without the page."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import Certificate, CertificateKey, Home, Json
from app.cli.console import Console, guarded
from app.shared.settings import settings_for


@guarded
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    certfile: Certificate = None,
    keyfile: CertificateKey = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that programs send; other users of this machine see it here, so rather set api_key, "
            "or $LORA_WORKBENCH_API_KEY. Default: one that is made at the first start and kept."
        ),
    ] = None,
    no_key: Annotated[
        bool,
        typer.Option("--no-key", help="Ask for no key; on this machine only, for programs that send none."),
    ] = False,
    at_once: Annotated[int, typer.Option(help="Answers that are generated at once.", min=1, max=1024)] = 32,
    quantisation: Annotated[
        str | None,
        typer.Option(help="How the base is held in memory: none, nf4, int8 or fp8. Default: as it is set."),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Requests that may wait; more are told to come again.", min=1)
    ] = 256,
    home: Home = None,
    json: Json = False,
) -> None:
    """Serve the models to other programs, as OpenAI and Ollama do; the page serves the same."""
    if no_key and api_key is not None:
        raise typer.BadParameter("--no-key and --api-key contradict each other.")
    from app.web.api.standalone import serve_api
    from app.web.api.waiting_line import WaitingLine
    from app.web.server import Listening

    named = {"api_key": api_key, "quantisation": quantisation}
    given = {name: value for name, value in named.items() if value is not None}
    listening = Listening(host, port, certfile, keyfile)
    line = WaitingLine(at_once, queue)
    serve_api(settings_for(home), listening, line, Console(json).result, given, without_key=no_key)
