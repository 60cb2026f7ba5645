"""An application on a port of this machine, as users' clients reach it, and a home without an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from app.service.workbench import Workbench
from app.web.address import allowed_hosts
from app.web.api import key_guard
from storage.tables import Base
from tests.workbenches import free_port, wait_for

if TYPE_CHECKING:
    import pytest
    from starlette.types import ASGIApp

    from app.shared.settings import Settings

HOSTS, KEY = allowed_hosts("127.0.0.1", 7860), "key-of-the-api"
BODY = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "stream": True}


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


def home_with_a_base(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    """A workbench with a base that has no files, whose key is KEY; a fixture."""
    monkeypatch.setattr(key_guard, "_WRONG_KEY_SECONDS", 0.0)
    found = Workbench(settings)
    found.preferences.given({"api_key": KEY})
    figures = dict.fromkeys(("parameters", "context_length", "layers", "hidden_size", "vocab_size"), 1)
    texts = dict.fromkeys(("stat_key", "tokenizer_hash", "template_hash", "source", "origin", "folder"), "x")
    plain = {"owned": False, "has_chat_template": True, "size_bytes": 1, "layer_shapes": {}}
    about = {"name": "small", "fingerprint": "f" * 64, "architecture": "LlamaForCausalLM", "dtype": "float32"}
    found.registry.add(Base(**about, **plain, **figures, **texts))
    yield found
    found.close()
