"""A process that has imported the engine once and forks an engine each time a test wants one: seconds saved a test.

The workbench starts an engine with `python -m app.engine_process`; here a child is forked that runs the same main().
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


class Zygote:
    """Forks engines on request."""

    def __init__(self) -> None:
        # Tiny models gain nothing by more threads, and those of several engines would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=environment,
        )  # fmt: skip

    def start(self, module: str, arguments: list[str], log: Path) -> ForkedEngine:
        """As app.processes.start_detached, for the engine."""
        assert module == "app.engine_process"
        environment = {name: value for name, value in os.environ.items() if name.startswith("LORA_WORKBENCH")}
        return ForkedEngine(self, self.ask({"arguments": arguments, "log": str(log), "environment": environment})["pid"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One line out, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process; engines that still run are their tests' business."""
        self._process.kill()
        self._process.wait()


class ForkedEngine:
    """What the workbench needs of a Popen."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        code: int | None = self._zygote.ask({"poll": self.pid})["code"]
        return code


def _fork(question: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(question["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in [name for name in os.environ if name.startswith("LORA_WORKBENCH")]:
        del os.environ[name]
    os.environ.update(question["environment"])
    sys.argv = ["app.engine_process", *question["arguments"]]
    from app.engine_process import main

    code = 1
    try:
        code = main()
    except BaseException:  # noqa: BLE001  (as a process that ends with a traceback)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import app.engine_process  # noqa: F401  (this is what takes the seconds)

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
