"""JSON messages over an authenticated local socket. No pickle: only bytes are sent and received."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

Message = dict[str, Any]


def send(connection: Connection, message: Message) -> None:
    """Send one message. Raises OSError if the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """Wait for one message. Raises EOFError or OSError if the other side is gone."""
    message: Message = json.loads(connection.recv_bytes())
    return message
