"""What forks engines and jobs for all tests outlives those that ask it: engines are killed while they do."""

import json
import os
import signal
import socket

import pytest

from tests.zygote import Forked


@pytest.mark.parametrize("said", [b"", b'{"poll"', b'{"poll": 0}\n'], ids=["nothing", "half", "all"])
def test_one_who_asks_and_is_killed_is_no_fault(zygote, said):
    """It has gone before it is heard: the zygote, which hears one after the other, is stopped meanwhile."""
    process = zygote.ask({"who": ""})["pid"]
    os.kill(process, signal.SIGSTOP)
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(zygote.address)
            asking.sendall(said)
    finally:
        os.kill(process, signal.SIGCONT)
    assert zygote.ask({"who": ""})["pid"] == process


def test_a_process_that_ends_while_it_is_asked_to_end_is_no_fault(zygote, tmp_path, monkeypatch):
    ended = zygote.start("tests.no_such_module", [], tmp_path / "log")
    assert ended.wait() == 1
    monkeypatch.setattr(Forked, "poll", lambda self: None)  # as it was a moment before
    ended.terminate()
    ended.kill()


def test_what_is_asked_in_several_pieces_is_heard(zygote):
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(zygote.address)
        asking.sendall(b'{"who"')
        asking.sendall(b': ""}\n')
        with asking.makefile() as stream:
            assert json.loads(stream.readline())["pid"]
