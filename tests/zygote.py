"""A process that has imported torch and Gradio once and forks an engine, a job or a server each time a test
wants one.

The workbench starts them with `python -m app.engine.process` and `python -m app.jobs.process`, users the
server with `lora-workbench`; here a child is forked that runs the same main(), which saves seconds a test.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any


class Zygote:
    """Forks engines and jobs on request."""

    def __init__(self) -> None:
        # Tiny models gain nothing by more threads, and those of several engines would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )

    def start(self, module: str, arguments: list[str], log: Path) -> Forked:
        """As app.shared.processes.start_detached."""
        environment = {name: value for name, value in os.environ.items() if name.startswith("LORA_WORKBENCH")}
        question = {"module": module, "arguments": arguments, "log": str(log), "environment": environment}
        return Forked(self, self.ask(question)["pid"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One line out, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process; engines that still run are their tests' business."""
        with self._process:  # which closes its pipes, and waits
            self._process.kill()


class Forked:
    """What the workbench needs of a Popen."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        code: int | None = self._zygote.ask({"poll": self.pid})["code"]
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def _fork(question: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    nothing, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(question["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    )
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in [name for name in os.environ if name.startswith("LORA_WORKBENCH")]:
        del os.environ[name]
    os.environ.update(question["environment"])
    sys.argv = [question["module"], *question["arguments"]]
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
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"code": ended.get(question["poll"])} if "poll" in question else {"pid": _fork(question)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
