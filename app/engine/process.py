"""The engine's own process: owns the device, trains queued runs, answers chats. One for each home folder.

The main thread does all device work: it alternates one micro-batch of training with a slice of decoding. One
thread for each connection passes questions in and events out. State lives in the registry, so nothing is lost
with a client.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from app.engine.answering import Answers
from app.engine.faults import reason
from app.engine.measuring import Measuring
from app.engine.preparing import base_source
from app.engine.runs_apart import RunsApart
from app.engine.session import RunSession
from app.engine.token_views import TokenViews
from app.shared import wire
from app.shared.bases import open_registry
from app.shared.errors import USER_ERRORS, EngineUnavailable
from app.shared.private import private_by_default, write_private
from app.shared.processes import ALREADY_RUNNING
from app.shared.refusals import refused
from app.shared.settings import DTYPE_VARIABLE, Settings, settings_for
from app.shared.ways import StoredWays
from core.base_model.decisions import keep_decisions_in
from core.base_model.load import ResidentBase
from core.base_model.quantisation import LABELS, NONE
from core.engine import Engine
from core.errors import InvalidConfig, WorkerLost
from core.panics import panics_as_errors
from core.train.accelerators import all_named, card_names, cards_here
from core.train.hardware import memory_to_train
from storage.tables import Run

_FIRST_GRACE = 30.0  # seconds to wait for the first client
_GRACE = 5.0  # seconds without clients and work before the engine ends
_IDLE_WAIT = 0.5
_BACKLOG = 16  # connections that wait to be taken
_SWITCH_SECONDS = 0.0005  # Python's own 5 ms would keep finished tokens waiting behind the next step's work
_LEAST_SLICE = 0.25  # seconds of decoding between two micro-batches of training

log = logging.getLogger("engine")


class EngineServer:
    """The engine, its queue of work and its clients."""

    def __init__(self, settings: Settings) -> None:
        self._registry, self._settings = open_registry(settings), settings
        self._tokens = TokenViews(self._registry)
        self._engine = Engine(dtype=dtype_from_environment())
        self._session: RunSession | None = None
        self._apart = RunsApart(settings, self._registry)
        self._measuring: Iterator[None] | None = None
        self._measure_asked: queue.SimpleQueue[Measuring] = queue.SimpleQueue()
        self._measured_by_name: dict[str, Measuring] = {}
        self._ended_before = set[str]()  # names under which measuring was ended that has not come yet
        self._answers = Answers(self._registry, self._engine)
        self._answers.explained = self._explained
        self._wake = threading.Event()
        self._attached = 0
        self._attached_lock = threading.Lock()
        self._idle_since = time.monotonic() + _FIRST_GRACE

    # The main thread.

    def work(self) -> None:
        """Train and answer until there is nothing to do and nobody is attached."""
        for run_id in self._registry.runs.interrupt_all("the engine ended while it was training"):
            log.info("run %s was interrupted", run_id)
        while not self._is_over():
            slice_seconds = self._measure_a_little() if self._measures() else self._train_a_little()
            self._answers.decode_for(slice_seconds if self._session else 0.0)
            if self._session is None and self._measuring is None and not self._answers:
                self._wake.wait(_IDLE_WAIT)
                self._wake.clear()

    def _is_over(self) -> bool:
        self._apart.look()
        waits = self._apart.run_ids or self._registry.queue.next()
        if self._session or self._measuring or self._answers or self._attached or waits:
            self._idle_since = time.monotonic()
        self._idle_since = max(self._idle_since, self._answers.classified_at)
        return time.monotonic() - self._idle_since > _GRACE

    def _train_a_little(self) -> float:
        """One micro-batch of the runs under way, or the start of the next. Returns the seconds it took."""
        if self._session is None:
            runs = self._registry.queue.next()
            if not runs or not self._is_free_for(runs[0]):
                # nothing waits, or what waits needs another base than the one that is answering
                return _LEAST_SLICE
            runs = self._apart.spread(runs)
            if not runs:
                return _LEAST_SLICE
            self._session = RunSession(self._registry, self._engine, runs, self._settings)
        start = time.monotonic()
        session = self._session
        try:
            with panics_as_errors():
                goes_on = session.advance()
            if not goes_on and not self._winds_up():
                self._session = None
                session.close()
                self._engine.end_training()
        except Exception as error:  # noqa: BLE001  (the boundary: whatever ends a run must end up in its row)
            self._session = None
            self._end_parts()
            self._engine.end_training()
            session.fail(error)
            self._engine.free_memory()
        return max(_LEAST_SLICE, time.monotonic() - start)

    def _winds_up(self) -> bool:
        """Whether answers are still under way on a base in parts, which goes with the last of them. Who asks
        meanwhile waits until it is loaded whole.
        """
        self._engine.held_back = self._engine.in_parts
        return self._engine.in_parts and bool(self._answers)

    def _end_parts(self) -> None:
        """Refuse the answers on a base of which the other parts are gone."""
        if self._engine.in_parts:
            self._answers.break_off(
                WorkerLost("The base lay in parts on several cards, which have ended their work; ask again")
            )

    def _explained(self, error: Exception) -> Exception:
        parts = self._engine.in_parts and self._session is not None
        return self._session.explained(error) if parts and self._session else error

    def _is_free_for(self, run: Run) -> bool:
        """Whether the run's base can be loaded now. Where its base is none any more, its session says so."""
        try:
            return self._engine.free_for(base_source(self._registry, run))
        except USER_ERRORS:
            return True

    def _measures(self) -> bool:
        """Whether something is being measured, now that nothing trains."""
        if self._session is None and self._measuring is None and not self._measure_asked.empty():
            self._measuring = self._measured(self._measure_asked.get())
        return self._measuring is not None

    def _measure_a_little(self) -> float:
        start = time.monotonic()
        assert self._measuring is not None
        if next(self._measuring, StopIteration) is StopIteration:
            self._measuring = None
            self._engine.free_memory()
        return max(_LEAST_SLICE, time.monotonic() - start)

    def _measured(self, asked: Measuring) -> Iterator[None]:
        try:
            with (
                panics_as_errors(),
                closing(asked.work(self._registry, self._engine, self._settings)) as work,
            ):
                while not asked.ended and next(work, StopIteration) is not StopIteration:
                    yield
        except Exception as error:
            if not isinstance(error, USER_ERRORS):
                log.error("measuring failed", exc_info=error)
            asked.out.put(refused(error, reason(error)))
        self._end_parts()
        self._engine.end_training()

    # Threads, one for each connection.

    def serve(self, listener: Listener) -> None:
        """Accept connections for ever."""
        while True:
            try:
                connection = listener.accept()
            except (
                OSError,
                EOFError,
                AuthenticationError,
            ) as error:  # a stranger without the key, or a client that left at once
                log.warning("a connection was refused: %r", error)
                continue
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: Connection) -> None:
        with connection:
            try:
                while True:
                    self._respond(connection, wire.receive(connection))
            except (EOFError, OSError):
                return  # the client has closed

    def _respond(self, connection: Connection, message: wire.Message) -> None:
        match message.get("command"):
            case "status":
                wire.send(connection, self.status())
            case "wake":
                self._wake.set()
                wire.send(connection, {"done": True})
            case "attach":
                self._hold(connection)
            case "answer" | "classify" | "score" | "echo":
                self._answer(connection, message)
            case "measure":
                self._measure(connection, message)
            case "tokens":
                wire.send(connection, self._tokens.view(message))
            case "cancel":
                self._answers.cancel(message["name"], int(message["row"]))
                wire.send(connection, {"done": True})
            case "end_measuring":
                self._end_measuring(message["name"])
                wire.send(connection, {"done": True})
            case other:
                why = f"The engine does not know the command {other!r}; end it, so that a new one starts."
                wire.send(connection, refused(EngineUnavailable(), why))

    def _hold(self, connection: Connection) -> None:
        """Stay alive for as long as this client keeps its connection."""
        with self._attached_lock:
            self._attached += 1
        try:
            wire.send(connection, {"done": True, "pid": os.getpid()})
            wire.receive(connection)
        finally:
            with self._attached_lock:
                self._attached -= 1

    def _answer(self, connection: Connection, question: wire.Message) -> None:
        asked = self._answers.ask(question)
        self._wake.set()
        try:
            while "token" in wire.send_next(connection, asked.out):
                pass
        except OSError:
            asked.cancelled.add(None)  # nobody listens any more
            raise

    def _measure(self, connection: Connection, message: wire.Message) -> None:
        """Wait for what a run would take. While a run trains its memory would be measured too."""
        if self._session is not None:
            why = (
                "A run is under way, whose memory and time would be measured too; wait for its end, "
                "or pause it."
            )
            wire.send(connection, refused(EngineUnavailable(), why))
            return
        asked, name = Measuring(message), message.get("name", "")
        self._measured_by_name[name] = asked
        if name in self._ended_before:
            self._ended_before.discard(name)
            asked.end()
        else:
            self._measure_asked.put(asked)
            self._wake.set()
        try:
            while "progress" in wire.send_next(connection, asked.out):
                pass
        except OSError:
            asked.ended = True  # nobody listens any more
            raise
        finally:
            self._measured_by_name.pop(name, None)

    def _end_measuring(self, name: str) -> None:
        """Whoever asks and ends at once does so by two connections, of which either may be heard first."""
        self._ended_before.add(name)
        if asked := self._measured_by_name.get(name):
            self._ended_before.discard(name)
            asked.end()

    def status(self) -> wire.Message:
        """What the engine is doing, for the page and the doctor."""
        base = self._engine.base
        return {
            "pid": os.getpid(),
            "device": all_named(self._engine.device_name, card_names()),
            "torch": torch.__version__,
            "resident": base.name if base else None,
            "dtype": _held(base) if base else None,
            "runs": [*(self._session.run_ids if self._session else []), *self._apart.run_ids],
            "answering": len(self._answers),
            "measuring": self._measuring is not None,
            "weight_bytes": self._engine.weight_bytes,
            "memory_bytes": memory_to_train(self._engine.device),
            "cards": asdict(cards_here()),
            "disk_full": bool(self._session and self._session.waiting_for_space),
            "notice": self._engine.notice,
        }


def _held(base: ResidentBase) -> str:
    """In which number format a base computes, and in which it is held where that is another."""
    dtype = str(base.dtype).removeprefix("torch.")
    parts = f", in parts on {base.parts} cards" if base.parts > 1 else ""
    return (dtype if base.quantisation == NONE else f"{LABELS[base.quantisation]}, {dtype}") + parts


def dtype_from_environment() -> torch.dtype | None:
    """A dtype asked for by name; none for the best one."""
    name, known = os.environ.get(DTYPE_VARIABLE), {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name and name not in known:
        raise InvalidConfig(f"{DTYPE_VARIABLE} is {name!r}; use {' or '.join(known)}, or leave it unset.")
    return known[name] if name else None


def main() -> int:
    """Hold the home folder's engine lock and work."""
    private_by_default()
    parser = argparse.ArgumentParser(description="The LoRA Workbench engine; started by the app.")
    parser.add_argument("--home", type=Path, required=True)
    settings = settings_for(parser.parse_args().home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    lock = FileLock(settings.engine_lock)
    try:
        lock.acquire(timeout=2)  # a client may be probing it at this moment
    except Timeout:
        return ALREADY_RUNNING
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Compiled kernels outlive the process: the next start finds them.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.cache / "kernels"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(settings.cache / "triton"))
    key = secrets.token_bytes(32)
    with lock, Listener(("127.0.0.1", 0), backlog=_BACKLOG, authkey=key) as listener:
        keep_decisions_in(StoredWays(open_registry(settings)))
        server = EngineServer(settings)
        device = server.status()["device"]  # before others ask, since the number format is measured once
        threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
        about = {"address": list(listener.address), "key": key.hex(), "pid": os.getpid()}
        write_private(settings.engine_file, json.dumps(about))
        log.info("ready on %s", device)
        server.work()
        settings.engine_file.unlink(missing_ok=True)
        log.info("nothing to do and nobody attached; ending")
    return 0


if __name__ == "__main__":
    sys.exit(main())
