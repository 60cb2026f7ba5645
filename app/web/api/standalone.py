"""The API by itself, on a server without the page. Several may serve one home folder."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS, CannotListen
from app.shared.settings import Settings
from app.web.address import allowed_hosts, is_loopback
from app.web.api.api_app import guarded_api
from app.web.api.api_key import api_key
from app.web.api.waiting_line import WaitingLine
from app.web.server import Listening, Tell, readable, uvicorn_server

log = logging.getLogger("app")


def serve_api(
    settings: Settings, listening: Listening, line: WaitingLine, tell: Tell, given: Mapping[str, Any],
    *, without_key: bool,
) -> None:  # fmt: skip
    """Serve until interrupted. given: the settings that the command line names.

    Raises CannotListen, AlreadyRunning for a taken port, InvalidConfig.
    """
    if without_key and not is_loopback(listening.host):
        raise CannotListen(
            f"Without a key the API is for this machine alone: listen on 127.0.0.1, not on {listening.host}, "
            "or leave out --no-key."
        )
    listening.require_possible()
    workbench = Workbench(settings)
    try:
        workbench.preferences.given(given)
        workbench.notice_deaths()
        hosts = allowed_hosts(listening.host, listening.port)
        application = guarded_api(workbench, hosts, open_here=without_key, line=line)
        _tell(workbench, listening, tell, without_key=without_key)
        threading.Thread(target=_warm_up, args=(workbench,), daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *about: sys.exit(0))
        uvicorn_server(application, listening, line.close).run()
    finally:
        workbench.close()


def _warm_up(workbench: Workbench) -> None:
    """Have an engine from now on; one that does not start is told to whoever asks."""
    try:
        workbench.engine.keep_attached()
    except USER_ERRORS as error:
        log.warning("%s", error)


def _tell(workbench: Workbench, listening: Listening, tell: Tell, *, without_key: bool) -> None:
    address = f"{listening.address}v1"
    key = "" if without_key else api_key(workbench.settings, workbench.preferences)
    models = [one.id for one in workbench.serving.models()]
    rows = [
        ("API", address),
        ("Key", key or "none: whoever uses this machine may ask"),
        ("Models", ", ".join(models[:8]) + (" …" if len(models) > 8 else "") or "none yet"),
        ("Try", _curl(address, key, models[0] if models else "MODEL", listening)),
    ]
    if listening.exposed:
        rows.append(("Note", readable("key")))
    tell({"address": address, "key": key, "models": models, "encrypted": listening.encrypted}, rows)


def _curl(address: str, key: str, model: str, listening: Listening) -> str:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    own = f"--cacert {listening.certfile} " if listening.encrypted else ""
    said = f"-H 'Authorization: Bearer {key}' " if key else ""
    return f"curl {own}{address}/chat/completions {said}-d '{body}'"
