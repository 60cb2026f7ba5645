"""Processes of our own: started apart from this one, and known to be alive by the lock they hold."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from app.shared.errors import AlreadyRunning
from app.shared.settings import Settings

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
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return False  # nobody holds anything on a disk that cannot be written
    probe.release()
    return False


@contextmanager
def nothing_running(settings: Settings) -> Iterator[None]:
    """Keep page, engine and jobs from a home folder during the block.

    Raises AlreadyRunning if one is there.
    """
    try:
        with ExitStack() as held:
            for lock in (settings.app_lock, settings.engine_lock, *settings.locks.glob("job-*.lock")):
                held.enter_context(FileLock(lock).acquire(timeout=0))
            yield
    except Timeout:
        raise AlreadyRunning(
            f"The workbench is running on {settings.home}; close the page and wait for its runs and jobs to "
            "end."
        ) from None


def work_of(pid: int) -> float | None:
    """Seconds of computing that a process has done; None if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP or a debugger."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
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
