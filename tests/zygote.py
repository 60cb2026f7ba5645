"""A process that has imported torch and Gradio once and forks an engine, a job or a server each time a test
wants one.

The workbench starts them with `python -m app.engine.process` and `python -m app.jobs.process`, users the
server with `lora-workbench`; here a child is forked that runs the same main(), which saves seconds a test. It
listens on a socket, so that a server which was forked has its engine and jobs forked, too.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

_STARTERS = ("app.shared.engine_client", "app.service.jobs")
"""Where processes are started."""


def _is_handed_on(variable: str) -> bool:
    """Whether a fork has the variable as who asked for it has."""
    return variable.startswith("LORA_WORKBENCH") or variable == "DISPLAY"


class Forks:
    """Has processes forked by the zygote that listens on a socket."""

    def __init__(self, address: str) -> None:
        self._address = address

    def start(self, module: str, arguments: list[str], log: Path) -> Forked:
        """As app.shared.processes.start_detached."""
        log.open("ab").close()  # made by the process that starts the other, with its rights
        environment = {name: value for name, value in os.environ.items() if _is_handed_on(name)}
        question = {"module": module, "arguments": arguments, "log": str(log), "environment": environment}
        return Forked(self, self.ask(question)["pid"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One line out, one line back."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
            with connection.makefile("rw") as stream:
                print(json.dumps(question), file=stream, flush=True)
                answer: dict[str, Any] = json.loads(stream.readline())
                return answer


class Zygote(Forks):
    """The process that forks engines and jobs on request; it ends with the one that made it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="zygote-")
        super().__init__(str(Path(self._folder) / "socket"))
        # Tiny models gain nothing by more threads, and those of several engines would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it listens

    def close(self) -> None:
        """End the process; engines that still run are their tests' business."""
        with self._process:  # which closes its pipes, and waits
            self._process.kill()
        shutil.rmtree(self._folder)


class Forked:
    """What the workbench needs of a Popen."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks, self.pid = forks, pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        code: int | None = self._forks.ask({"poll": self.pid})["code"]
        return code

    def terminate(self) -> None:
        """Ask it to end, if it has not."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def _fork(question: dict[str, Any], listening: socket.socket) -> int:
    address = listening.getsockname()
    pid = os.fork()
    if pid:
        return pid
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    nothing, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(question["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
    )
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in filter(_is_handed_on, list(os.environ)):
        del os.environ[name]
    os.environ.update(question["environment"])
    sys.argv = [question["module"], *question["arguments"]]
    for starter in _STARTERS:
        setattr(importlib.import_module(starter), "start_detached", Forks(address).start)  # noqa: B010
    code = 1
    try:
        code = importlib.import_module(question["module"]).main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  (as a process that ends with a traceback)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    for module in (
        "app.engine.process",
        "app.jobs.process",
        "tests.killed_job",
        "app.jobs.adapters",
        "app.jobs.evaluating",
        "app.jobs.registering",
        "app.cli.main",
        "app.web.page",
        "app.web.server",
        "core.base_model.gguf_convert",
        "core.export.exporting",
        "core.lora.foreign.fit",
    ):
        importlib.import_module(module)  # this is what takes the seconds

    ended: dict[int, int] = {}

    def reap(*about: object) -> None:  # at once, since tests wait for processes to be gone
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            ended[pid] = os.waitstatus_to_exitcode(status)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as waiting:
        listening.bind(sys.argv[1])
        listening.listen(64)
        print("listens", flush=True)
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)  # which ends when nobody needs us any more
        while all(key.fileobj is listening for key, _ in waiting.select()):
            _answer(listening, ended)


def _answer(listening: socket.socket, ended: dict[int, int]) -> None:
    connection, _ = listening.accept()
    with connection, connection.makefile("rw") as stream:
        question = json.loads(stream.readline())
        if "poll" in question:
            answer = {"code": ended.get(question["poll"])}
        else:
            answer = {"pid": _fork(question, listening)}
        print(json.dumps(answer), file=stream, flush=True)


if __name__ == "__main__":
    _serve()
