"""A process that has imported torch and Gradio once and forks an engine, a job or a server each time a test
wants one.

The workbench starts them with `python -m app.engine.process` and `python -m app.jobs.process`, users the
server with `lora-workbench`; here a child is forked that runs the same main(), which saves seconds a test. It
listens on a socket, so that a server which was forked has its engine and jobs forked, too.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import app
import core
import storage

_NOT_OURS = (
    "encodings.utf_8_sig",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "sqlalchemy.dialects.sqlite",
    "tqdm.contrib.logging",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "typer._adapters",
)
"""What others import only when it is needed; some of it takes longer than all that a test asks for."""


SMALL_PRODUCT = {"cpu": 256}
"""What the speed of the device is measured with, once in each engine: a sixtieth of what users' take."""


def _is_handed_on(variable: str) -> bool:
    """Whether a fork has the variable as who asked for it has."""
    return variable.startswith("LORA_WORKBENCH") or variable == "DISPLAY"


class Forks:
    """Has processes forked by the zygote that listens on a socket."""

    def __init__(self, address: str) -> None:
        self.address = address

    def wait_until_ready(self) -> None:
        """Wait until all is imported: a job whose process does not come up is taken for dead."""
        self.ask({"poll": 0})

    def start(self, module: str, arguments: list[str], log: Path) -> Forked:
        """As app.shared.processes.start_detached."""
        log.open("ab").close()  # made by the process that starts the other, with its rights
        return Forked(self, self._fork(module, arguments, log))

    def import_too(self, module: str) -> None:
        """Have what only some tests want imported once, by the zygote, and not by each process they start."""
        self.ask({"import": module})

    def asked(self, module: str) -> Asked:
        """A process that is asked over its standard input, and answers over its standard output."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        pid = self._fork(module, [], Path(os.devnull), theirs_in, theirs_out)
        for end in (theirs_in, theirs_out):
            os.close(end)
        return Asked(self, pid, ours_out, ours_in)

    def _fork(self, module: str, arguments: list[str], log: Path, *pipes: int) -> int:
        environment = {name: value for name, value in os.environ.items() if _is_handed_on(name)}
        question = {"module": module, "arguments": arguments, "log": str(log), "environment": environment}
        pid: int = self.ask(question, *pipes)["pid"]
        return pid

    def ask(self, question: dict[str, Any], *pipes: int) -> dict[str, Any]:
        """One line out, with the ends of pipes that go with it, and one line back."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            socket.send_fds(connection, [json.dumps(question).encode() + b"\n"], pipes)
            with connection.makefile() as stream:
                answer: dict[str, Any] = json.loads(stream.readline())
                return answer


class Zygote(Forks):
    """The process that forks engines and jobs on request; it ends with the one that made it.

    It can be asked from the first moment on, and answers when it has imported all.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="zygote-")
        super().__init__(str(Path(self._folder) / "socket"))
        # Tiny models gain nothing by more threads, and those of several engines would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)
            listening.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(listening.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                env=environment,
            )

    def close(self) -> None:
        """End the process; engines that still run are their tests' business."""
        with self._process:  # which closes its pipe, and waits
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
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it does, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code


class Asked(Forked):
    """What is needed of a Popen with pipes."""

    def __init__(self, forks: Forks, pid: int, stdin: int, stdout: int) -> None:
        super().__init__(forks, pid)
        self.stdin = os.fdopen(stdin, "w", encoding="utf-8")
        self.stdout = os.fdopen(stdout, encoding="utf-8")
        self.returncode: int | None = None

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *about: object) -> None:
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.returncode = self.wait()


def forking(forks: Forks) -> dict[str, Callable[..., Forked]]:
    """What starts engines, jobs and checks of exports, each with what has them forked."""
    return {
        "app.shared.engine_client.start_detached": forks.start,
        "app.service.jobs.start_detached": forks.start,
        "app.engine.worker_processes.start_detached": forks.start,
        "app.engine.runs_apart.start_detached": forks.start,
        "core.export.check_process._started": functools.partial(forks.asked, "core.export.check_process"),
    }


def _fork(question: dict[str, Any], pipes: list[int], listening: socket.socket) -> int:
    address = listening.getsockname()
    pid = os.fork()
    if pid:
        return pid
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.setsid()
    log = os.open(question["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    took, gives = pipes or [os.open(os.devnull, os.O_RDONLY), log]
    for end, standard in ((took, 0), (gives, 1), (log, 2)):
        os.dup2(end, standard)
    for end in {took, gives, log}:
        os.close(end)  # one that stays open here never ends for the other side
    for name in filter(_is_handed_on, list(os.environ)):
        del os.environ[name]
    os.environ.update(question["environment"])
    sys.argv = [question["module"], *question["arguments"]]
    forks = Forks(address)
    templates = {
        "core.data.templating._started": functools.partial(forks.asked, "core.data.template_process")
    }
    for name, start in (forking(forks) | templates).items():
        owner, _, function = name.rpartition(".")
        setattr(importlib.import_module(owner), function, start)
    code = 1
    try:
        code = importlib.import_module(question["module"]).main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  (as a process that ends with a traceback)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ours() -> Iterator[str]:
    """All our modules, but migrations, which are none, and kernels, which need Triton."""
    for package in (app, core, storage):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.startswith("storage.migrations") and not found.name.endswith("kernels"):
                yield found.name


def _serve() -> None:
    gc.disable()  # until all is imported: see tests/conftest.py
    for module in (*_ours(), "tests.closing_app", "tests.killed_job", *_NOT_OURS):
        importlib.import_module(module)  # this is what takes the seconds
    importlib.import_module("core.train.hardware")._SIZE = SMALL_PRODUCT  # type: ignore[attr-defined]
    _freeze()

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
    with socket.socket(fileno=int(sys.argv[1])) as listening, selectors.DefaultSelector() as waiting:
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)  # which ends when nobody needs us any more
        while all(key.fileobj is listening for key, _ in waiting.select()):
            _answer(listening, ended)


def _import_too(module: str) -> dict[str, Any]:
    if module not in sys.modules:
        importlib.import_module(module)
        _freeze()
    return {}


def _freeze() -> None:
    """Take all there is for needed: else each child copies it as soon as it looks for what nobody needs."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _answer(listening: socket.socket, ended: dict[int, int]) -> None:
    """Do what one asks. Who was killed in the midst of asking, as engines are in tests, gets no answer."""
    connection, _ = listening.accept()
    with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        line, pipes, *_ = socket.recv_fds(connection, 1 << 16, 2)
        while line and not line.endswith(b"\n"):
            more = connection.recv(1 << 16)
            line = line + more if more else b""
        answer = _done(json.loads(line), pipes, listening, ended) if line else {}
        for end in pipes:
            os.close(end)
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _done(
    question: dict[str, Any], pipes: list[int], listening: socket.socket, ended: dict[int, int]
) -> dict[str, Any]:
    if "poll" in question:
        return {"code": ended.get(question["poll"])}
    if "who" in question:
        return {"pid": os.getpid()}
    if "import" in question:
        return _import_too(question["import"])
    # A number that an ended one had comes round again; the new one may end before we are back here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = _fork(question, pipes, listening)
    ended.pop(pid, None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    return {"pid": pid}


if __name__ == "__main__":
    _serve()
