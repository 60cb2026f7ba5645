"""JSON messages over an authenticated local socket. No pickle: only bytes are sent and received."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

Message = dict[str, Any]
STILL_THERE: Message = {"still": "there"}
"""Sent now and then while an answer takes long."""
_STILL_SECONDS = 3.0


def send(connection: Connection, message: Message) -> None:
    """Send one message. Raises OSError if the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def send_next(connection: Connection, messages: SimpleQueue[Message]) -> Message:
    """Send the next message of a queue, and STILL_THERE for as long as there is none. Returns what was sent.

    Raises OSError if the other side is gone.
    """
    while True:
        try:
            message = messages.get(timeout=_STILL_SECONDS)
        except Empty:
            message = STILL_THERE
        send(connection, message)
        if message is not STILL_THERE:
            return message


def receive(connection: Connection) -> Message:
    """Wait for one message. Raises EOFError or OSError if the other side is gone."""
    message: Message = json.loads(connection.recv_bytes())
    return message
