"""Processes of our own: started apart from this one, and known to be alive by the lock they hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

ALREADY_RUNNING = 3  # exit code of an engine that found another one on its home folder


def start_detached(module: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a session of its own, so that closing this process leaves it going.

    With -P the working folder is not importable: it is the user's, and may hold an app/ or core/ of its own.
    """
    apart: dict[str, object] = {"start_new_session": True}
    if os.name == "nt":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}  # type: ignore[attr-defined]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **apart,
        )  # type: ignore[call-overload]


def is_held(lock: Path) -> bool:
    """Whether some process holds this lock.

    A lock is given up by the system when its process dies, however it dies.
    """
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    probe.release()
    return False


def exit_reason(code: int | None, what: str) -> str:
    """Why a process ended, in words."""
    if code is None:
        return f"{what} ended unexpectedly"
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"{what} was killed ({name}{hint})"
    return f"{what} ended with exit code {code}; its log says why"


def last_lines(log: Path, count: int = 3) -> str:
    """The last lines of a log, for a message."""
    if not log.is_file():
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-count:])[-500:]
