"""An application on a port of this machine, as users' clients reach it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from tests.workbenches import free_port, wait_for

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@contextmanager
def listening(application: ASGIApp) -> Iterator[str]:
    """Serve it, and give its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
