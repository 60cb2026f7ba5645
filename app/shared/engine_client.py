"""The app's side of the engine: start it, talk to it, notice when it is gone."""

from __future__ import annotations

import json
import math
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from app.shared import wire
from app.shared.disk import plain_sentence
from app.shared.errors import EngineSilent, EngineUnavailable
from app.shared.processes import (
    ALREADY_RUNNING,
    exit_reason,
    is_held,
    is_stopped,
    last_lines,
    start_detached,
    work_of,
)
from app.shared.refusals import answered
from app.shared.settings import Settings
from core.echoes import Echo
from core.events import TokenDone
from core.generate.scores import Scored

_START_SECONDS = 120.0
_PATIENCE_SECONDS = 10.0
_STILL_SECONDS = 10.0  # a process that says nothing and does nothing for so long is stuck
_LOOK_SECONDS = 2.0
_BUSY_SECONDS = 30.0  # an engine that works may be slow to greet
_MEASURE_SECONDS = 600.0  # a large base is loaded first, and a large data set rendered
_TOKENIZER_SECONDS = 60.0  # the first question about tokens loads a tokenizer


def _called(address: tuple[str, int], pid: int) -> Connection:
    """A connection to the engine, process `pid`. Raises OSError if nobody listens there, and EngineSilent for
    one that is stopped or has not come to take connections for a while: those that wait are few.
    """
    if is_stopped(pid):
        raise _silent(pid)
    try:
        with socket.create_connection(address, timeout=_STILL_SECONDS) as found:
            found.setblocking(True)
            _bound(found)
            return Connection(found.detach())
    except TimeoutError:
        raise _silent(pid) from None


def _bound(found: socket.socket) -> None:
    """Have a read or a write end with BlockingIOError that waits for longer than an engine may stand still:
    one that is frozen in the midst of a message, or of one that it was to take.
    """
    seconds = int(_STILL_SECONDS)
    limit = seconds * 1000 if sys.platform == "win32" else struct.pack("ll", seconds, 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        found.setsockopt(socket.SOL_SOCKET, option, limit)


def _silent(pid: int) -> EngineSilent:
    return EngineSilent(
        f"The engine (process {pid}) does not answer: it is stopped, or stuck. Let it go on, or end that "
        "process; a run goes on from its last checkpoint then."
    )


def _introduce(connection: Connection, key: bytes, pid: int) -> Connection:
    """Prove to each other that both know the key. Raises EngineSilent: one that is frozen says nothing, from
    the start or in the midst of it.
    """
    patient: Any = _Patient(connection, pid)
    try:
        answer_challenge(patient, key)
        deliver_challenge(patient, key)
    except BaseException:
        connection.close()
        raise
    return connection


class _Patient:
    """A connection to the engine, process `pid`, each of whose messages is waited for as `_wait_for_word`
    does: what greeting needs of a connection.
    """

    def __init__(self, connection: Connection, pid: int) -> None:
        self._connection, self._pid = connection, pid
        self.send_bytes = connection.send_bytes

    def recv_bytes(self, maxlength: int) -> bytes:
        """The next message, of at most so many bytes. Raises EngineSilent."""
        _wait_for_word(self._connection, self._pid, _BUSY_SECONDS)
        return self._connection.recv_bytes(maxlength)


def _wait_for_word(connection: Connection, pid: int, patience: float = math.inf) -> None:
    """Wait until the engine, process `pid`, has said something, for as long as it works on something.

    Raises EngineSilent when it stands still, or has said nothing for so many seconds.
    """
    end, still_since, work = time.monotonic() + patience, time.monotonic(), work_of(pid)
    while not connection.poll(_LOOK_SECONDS):
        now, before, work = time.monotonic(), work, work_of(pid)
        still_since = still_since if work == before else now
        if now - still_since > _STILL_SECONDS or is_stopped(pid):
            raise _silent(pid)
        if now > end:
            raise EngineSilent(f"The engine (process {pid}) is busy and does not answer; try again later.")


class EngineClient:
    """Talks to the home folder's engine, starting it when needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._attachment: Connection | None = None
        self._keep = False
        self._attached_to = 0  # the pid of the engine that is attached
        self._starting, self._attaching = threading.Lock(), threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether an engine holds this home folder."""
        return is_held(self._settings.engine_lock)

    def death_reason(self) -> str:
        """Why the engine is gone, as far as this process can know."""
        code = self._process.poll() if self._process else None
        return exit_reason(None if code == ALREADY_RUNNING else code, "the engine")

    def ensure(self) -> None:
        """Have an engine running and reachable. Raises EngineUnavailable with the last lines of its log."""
        self._reach().close()

    def _reach(self) -> Connection:
        """A connection to the engine, which is started if there is none."""
        try:
            connection = self._connect()
        except EngineSilent:
            raise  # another one cannot be started beside it
        except EngineUnavailable:
            connection = self._start()
        if self._keep:
            self._attach()
        return connection

    def _start(self) -> Connection:
        with self._starting:
            try:
                return self._connect()  # another thread was faster
            except EngineUnavailable:
                log = self._settings.engine_log
                home = ["--home", str(self._settings.home)]
                try:
                    self._process = start_detached("app.engine.process", home, log)
                except OSError as error:
                    raise EngineUnavailable(
                        f"The engine could not be started. {plain_sentence(error)}"
                    ) from error
                return self._wait_for(self._process, log)

    def _wait_for(self, process: subprocess.Popen[bytes], log: Path) -> Connection:
        """A connection as soon as the engine answers; the process may give way to another's engine."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._connect()
            except EngineUnavailable:
                code = process.poll()
                if code not in (None, ALREADY_RUNNING) or time.monotonic() > deadline:
                    raise EngineUnavailable(
                        f"The engine did not start: {exit_reason(code, 'it')}. Log: {last_lines(log)}"
                    ) from None
            time.sleep(0.1)

    def keep_attached(self) -> None:
        """Have an engine now, and keep it and every later one alive until detach() or the end of this
        process.
        """
        self._keep = True
        self.ensure()

    def _attach(self) -> None:
        with self._attaching:
            if self._attachment is not None and self._about().get("pid") == self._attached_to:
                return
            self._let_go()
            attachment = self._connect()
            try:
                wire.send(attachment, {"command": "attach"})
                self._attached_to = wire.receive(attachment)["pid"]
            except (EOFError, OSError) as error:
                attachment.close()
                raise EngineUnavailable(f"The engine ended at once: {self.death_reason()}.") from error
            self._attachment = attachment
            if not self._keep:  # detached meanwhile, by another thread
                self._let_go()

    def detach(self) -> None:
        """Let the engine end when it has nothing to do."""
        self._keep = False
        self._let_go()

    def _let_go(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            attachment.close()

    def status(self) -> wire.Message | None:
        """What the engine says of itself; None if there is none."""
        try:
            return self._ask(self._connect(), {"command": "status"})
        except EngineUnavailable:
            return None

    def wake(self) -> None:
        """Tell the engine that a run is waiting."""
        self._ask(self._reach(), {"command": "wake"})

    def answer(
        self, base: wire.Message, rows: list[wire.Message], name: str = "", *, each: bool = False
    ) -> Iterator[TokenDone]:
        """Stream the answers of all rows. Closing the iterator early cancels them; `name` lets rows be
        cancelled one by one. each: what cannot be asked of one row is told as that one's error.

        base and rows are what the engine is told of them. Raises the engine's refusal, or EngineUnavailable
        if it is gone.
        """
        with self._talking(self._reach()) as connection:
            question = {"command": "answer", "base": base, "rows": rows, "name": name, "each": each}
            wire.send(connection, question)
            while "token" in (message := answered(self._next(connection))):
                yield TokenDone(**message["token"])

    def classify(
        self, base: wire.Message, adapters: list[wire.Message | None], texts: list[str]
    ) -> list[wire.Message]:
        """What each adapter, or the base's own head (None), tells of each text: problem_type, labels,
        probabilities [texts][labels], and cut [texts], whether a text was too long to be read to its end.

        Raises the engine's refusal, or EngineUnavailable if it is gone.
        """
        question = {"command": "classify", "base": base, "adapters": adapters, "texts": texts}
        found: list[wire.Message] = self._ask(self._reach(), question, _MEASURE_SECONDS)["classified"]
        return found

    def score(
        self,
        base: wire.Message,
        speakers: list[wire.Message | None],
        messages: list[dict[str, str]],
        answer: str,
        *,
        ended: bool,
        chat: dict[str, Any],
    ) -> list[Scored]:
        """How likely an answer is to each speaker, token by token; None is the plain base.

        Raises the engine's refusal, or EngineUnavailable if it is gone.
        """
        asked = {"base": base, "speakers": speakers, "messages": messages, "answer": answer, "ended": ended}
        asked["chat"] = chat
        found = self._ask(self._reach(), {"command": "score", **asked}, _MEASURE_SECONDS)
        return [Scored.told(one) for one in found["scored"]]

    def echo(self, base: wire.Message, rows: list[wire.Message]) -> list[Echo]:
        """The prompts of rows, as answer() takes them, and how likely each token of them is.

        Raises the engine's refusal, or EngineUnavailable if it is gone.
        """
        question = {"command": "echo", "base": base, "rows": rows}
        return [Echo.told(one) for one in self._ask(self._reach(), question, _MEASURE_SECONDS)["echoes"]]

    def cancel(self, name: str, row: int) -> None:
        """End one row of the answer called `name`; the others go on."""
        self._ask(self._connect(), {"command": "cancel", "name": name, "row": row})

    def tokens(
        self,
        base: str,
        rows: str,
        index: int,
        template: str | None = None,
        chat: dict[str, Any] | None = None,
    ) -> wire.Message:
        """A row as the base's tokens; `rows` is the digest of the rows, chat the options of its
        conversations.

        Raises the engine's refusal, or EngineUnavailable.
        """
        about = {"rows": rows, "index": index, "chat": chat}
        question = {"command": "tokens", "base": base, "template": template, **about}
        return self._ask(self._reach(), question, _TOKENIZER_SECONDS)

    def measure(
        self, base: str, dataset: str, configs: list[dict[str, Any]], name: str = ""
    ) -> Iterator[wire.Message]:
        """Measure what runs with these options would take. Yields how far it is, as
        `{"progress": {"text", "share"}}`, again and again, then the result. Closing the iterator early, or
        `end_measuring(name)`, ends it.

        Raises the engine's refusal, MeasuringEnded, or EngineUnavailable.
        """
        question = {"command": "measure", "base": base, "dataset": dataset, "configs": configs, "name": name}
        with self._talking(self._reach()) as connection:
            wire.send(connection, question)
            while "progress" in (message := answered(self._next(connection, _MEASURE_SECONDS))):
                yield message
            yield message

    def end_measuring(self, name: str) -> None:
        """End what is being measured under this name, if anything is."""
        self._ask(self._connect(), {"command": "end_measuring", "name": name})

    def _ask(
        self, connection: Connection, question: wire.Message, patience: float = _PATIENCE_SECONDS
    ) -> wire.Message:
        """Ask one question on a connection, which is closed then. Raises the engine's refusal."""
        with self._talking(connection):
            wire.send(connection, question)
            return answered(self._next(connection, patience))

    def _next(self, connection: Connection, patience: float = math.inf) -> wire.Message:
        """The engine's next message that says more than that it is there. Raises EngineSilent."""
        end = time.monotonic() + patience
        while True:
            if not connection.poll(_LOOK_SECONDS):
                _wait_for_word(connection, self._about()["pid"], end - time.monotonic())
            message = wire.receive(connection)
            if message != wire.STILL_THERE:
                return message

    @contextmanager
    def _talking(self, connection: Connection) -> Iterator[Connection]:
        try:
            yield connection
        except BlockingIOError:
            raise _silent(self._about()["pid"]) from None
        except (EOFError, OSError) as error:
            raise EngineUnavailable(f"The engine ended while it was asked: {self.death_reason()}.") from error
        finally:
            connection.close()

    def _connect(self) -> Connection:
        about = self._about()
        if not self.alive:  # what is written down is of one that was killed, or of a home that was copied
            raise EngineUnavailable("No engine is running on this home folder.")
        try:
            connection = _called(tuple(about["address"]), about["pid"])
            return _introduce(connection, bytes.fromhex(about["key"]), about["pid"])
        except BlockingIOError:
            raise _silent(about["pid"]) from None
        except (OSError, ValueError, KeyError, EOFError, AuthenticationError) as error:
            raise EngineUnavailable("No engine is running on this home folder.") from error

    def _about(self) -> dict[str, Any]:
        """What the engine has written down of itself: address, key, pid. Raises EngineUnavailable."""
        try:
            about: dict[str, Any] = json.loads(self._settings.engine_file.read_text())
        except (OSError, ValueError) as error:
            raise EngineUnavailable("No engine is running on this home folder.") from error
        return about
