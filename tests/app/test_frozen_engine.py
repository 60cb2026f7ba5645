"""An engine that is stopped or stuck: a sentence within seconds for everything that is asked of it."""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest

from app.shared import engine_client, wire
from app.shared.engine_client import _wait_for_word
from app.shared.errors import EngineSilent
from app.shared.processes import is_stopped
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.tables import Dataset, Run
from tests.workbenches import QUICK, wait_for

HELLO = [{"role": "user", "content": "hello"}]
LONG = GenerationConfig(max_tokens=200, temperature=0.0)


def _can_be_written(registry: Path) -> bool:
    """Whether nobody writes, and nobody reads either: without the write-ahead log that holds a commit up."""
    with closing(sqlite3.connect(registry, timeout=0.1)) as connection:
        try:
            connection.execute("begin exclusive")
        except sqlite3.OperationalError:
            return False
        return True


@contextmanager
def frozen(workbench):
    """An engine that is stopped, not in the midst of writing: then the registry is what cannot be used."""
    pid = workbench.engine.status()["pid"]

    def stop() -> bool:
        os.kill(pid, signal.SIGSTOP)
        if _can_be_written(workbench.settings.database):
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    wait_for(stop)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_whatever_is_asked_of_a_frozen_engine_ends_in_a_sentence(workbench):
    workbench.engine.ensure()
    options, data = TrainingOptions.parse(QUICK), workbench.registry.find(Dataset, "data")
    answer = workbench.chats.answer("llama", [None], [HELLO], LONG)
    next(answer)
    asked: dict[str, Callable[[], object]] = {
        "an answer under way": lambda: list(answer),
        "a chat": lambda: list(workbench.chats.answer("llama", [None], [HELLO], LONG)),
        "tokens": lambda: workbench.datasets.tokens(data, "llama", 0),
        "a measurement": lambda: workbench.training.measure("llama", "data", [options]),
        "a run": lambda: workbench.training.start("llama", "data", options),
    }
    with frozen(workbench):
        for what, ask in asked.items():
            start = time.monotonic()
            with pytest.raises(
                EngineSilent, match=r"does not answer: it is stopped, or stuck\. Let it go on"
            ):
                ask()
            assert time.monotonic() - start < 15, what
    assert wait_for(workbench.engine.status)
    assert list(workbench.chats.answer("llama", [None], [HELLO], LONG))[-1].reason
    (run,) = workbench.registry.all(Run)
    assert (run.state, "stopped, or stuck" in run.reason) == ("failed", True)


@pytest.mark.parametrize("moment", ["answer_challenge", "deliver_challenge"])
def test_an_engine_that_freezes_while_it_greets_is_noticed(workbench, monkeypatch, moment):
    workbench.engine.ensure()
    pid, greet = workbench.engine.status()["pid"], getattr(engine_client, moment)

    def freeze_and_greet(connection: object, key: bytes) -> None:
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: is_stopped(pid))
        greet(connection, key)

    monkeypatch.setattr(engine_client, moment, freeze_and_greet)
    start = time.monotonic()
    try:
        assert workbench.engine.status() is None
        assert time.monotonic() - start < 15
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    assert wait_for(workbench.engine.status)


def test_a_large_message_that_a_frozen_engine_does_not_take_ends_in_a_sentence(workbench, monkeypatch):
    monkeypatch.setattr(engine_client, "_STILL_SECONDS", 1.0)
    workbench.engine.ensure()
    pid, send = workbench.engine.status()["pid"], wire.send

    def freeze_and_send(connection: object, message: wire.Message) -> None:
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: is_stopped(pid))
        send(connection, message | {"more": "." * 10_000_000})  # type: ignore[arg-type]

    monkeypatch.setattr(wire, "send", freeze_and_send)
    try:
        with pytest.raises(EngineSilent, match="stopped, or stuck"):
            list(workbench.chats.answer("llama", [None], [HELLO], LONG))
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_engine_that_works_is_waited_for_and_one_that_does_nothing_is_not(monkeypatch):
    monkeypatch.setattr(engine_client, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(engine_client, "_STILL_SECONDS", 0.1)
    ours, theirs = Pipe()
    worked = iter(range(100))

    def working(pid: int) -> float:
        done = next(worked)
        if done == 50:
            wire.send(theirs, {"done": True})
        return float(done)

    monkeypatch.setattr(engine_client, "work_of", working)
    _wait_for_word(ours, os.getpid())
    assert wire.receive(ours) == {"done": True}
    monkeypatch.setattr(engine_client, "work_of", lambda pid: 1.0)
    with pytest.raises(EngineSilent, match="stopped, or stuck"):
        _wait_for_word(ours, os.getpid())
    ours.close()
    theirs.close()


def test_an_answer_that_takes_long_is_heard_of(monkeypatch):
    """From the engine's side: what is sent while nothing is there yet."""
    monkeypatch.setattr(wire, "_STILL_SECONDS", 0.01)
    ours, theirs = Pipe()
    waited = []

    class Slow:
        def get(self, timeout: float) -> wire.Message:
            waited.append(timeout)
            if len(waited) < 3:
                raise queue.Empty
            return {"done": True}

    assert wire.send_next(theirs, Slow()) == {"done": True}  # type: ignore[arg-type]
    assert [wire.receive(ours) for _ in range(3)] == [wire.STILL_THERE] * 2 + [{"done": True}]
    ours.close()
    theirs.close()
