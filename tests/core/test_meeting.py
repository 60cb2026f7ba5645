"""Where the processes of one group meet: what is ended once one of them is gone."""

import os
import socket
from contextlib import ExitStack

import pytest

from core.train import meeting
from core.train.meeting import Meeting


@pytest.fixture
def group(tmp_path):
    """A meeting that has noted two connections of this process, and all four ends."""
    met = Meeting(meeting.store_in(tmp_path / "meeting", 1), 0, 1)
    with ExitStack() as kept:
        server = kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        with met._noting_connections():
            own = [kept.enter_context(socket.create_connection(server.getsockname())) for _ in range(2)]
            others = [kept.enter_context(server.accept()[0]) for _ in range(2)]
        yield met, own, others


def test_giving_up_ends_every_connection_of_the_group(group):
    met, own, others = group
    met.give_up()
    for one in (*own, *others):
        one.settimeout(10)
        assert one.recv(1) == b""


@pytest.mark.parametrize("then", ["nothing", "a file", "a listener", "a pair", "another connection"])
def test_a_connection_that_ends_by_itself_meanwhile_is_no_fault(group, then, monkeypatch, tmp_path):
    """As gloo's threads do, which hear of a lost process, too; its number may be in use again."""
    met, (first, second), _ = group
    look, number = meeting._connections, first.detach()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    file = (tmp_path / "file").open("w")
    pair = socket.socketpair()
    now = {"a file": file, "a listener": server, "a pair": pair[0], "another connection": client}.get(then)

    def looked():
        found = look()
        os.close(number)
        if now is not None:
            os.dup2(now.fileno(), number)
        return found

    monkeypatch.setattr(meeting, "_connections", looked)
    with server, client, file, pair[0], pair[1]:
        met.give_up()
        client.sendall(b"still there")
        pair[0].sendall(b"still there")
    if now is not None:
        os.close(number)
    second.settimeout(10)
    assert second.recv(1) == b""
