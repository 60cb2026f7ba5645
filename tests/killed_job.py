"""A job's process that kills itself (SIGKILL) at a named moment: before or after a function is called.

The moment stands in the environment as "module:name:before" or "module:name:after", or is empty; tests start
this in place of app.jobs.process. Exports are checked in the same process, which has imported torch already.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from app.jobs import process
from core.export import check_process

MOMENT = "LORA_WORKBENCH_TEST_KILL"


def main() -> int:
    """Do the job of the command line until the moment comes."""
    check_process.ask_process = check_process.check
    if moment := os.environ[MOMENT]:
        _die_at(*moment.split(":"))
    return process.main()


def _die_at(module: str, name: str, when: str) -> None:
    owner: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for one in outer:
        owner = getattr(owner, one)
    setattr(owner, last, _deadly(getattr(owner, last), when))


def _deadly(function: Callable[..., object], when: str) -> Callable[..., object]:
    @wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        if when == "after":
            function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process goes on")

    return wrapper
