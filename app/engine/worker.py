"""A process that trains a group together with the engine's: on a card of its own, with the base and all
adapters of the group, and its part of every micro-batch. It reads and writes nothing of the home folder's
registry, and ends with the group, or with the engine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from app.engine.faults import reason
from app.engine.process import dtype_from_environment
from app.shared.private import private_by_default
from core.base_model.source import BaseSource, check_unchanged
from core.engine import Engine
from core.train.accelerators import worker_device
from core.train.meeting import Meeting, leave

_LOOK_SECONDS = 0.5  # between two looks whether the engine is there

log = logging.getLogger("worker")


def main() -> int:
    """Load the base, join, and train until the group has ended."""
    private_by_default()
    parser = argparse.ArgumentParser(description="A worker of the LoRA Workbench engine; started by it.")
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    task = json.loads(given.task.read_text())
    threading.Thread(target=end_with, args=(task["engine"],), daemon=True).start()
    meeting = Meeting(Path(task["meeting"]), given.number, task["count"])
    engine = Engine(worker_device(given.number), dtype_from_environment())
    try:
        source = BaseSource(**{**task["base"], "folder": Path(task["base"]["folder"])})
        if source.parts == 1:
            engine.load_base(source)
        else:
            check_unchanged(source)
    except Exception as error:
        log.exception("the base cannot be loaded")
        meeting.refuse(reason(error))
        return 1
    meeting.arrive()
    _train(engine, source, meeting)
    return 0


def _train(engine: Engine, source: BaseSource, meeting: Meeting) -> None:
    share: Any = meeting.open(engine.device, in_parts=source.parts > 1)
    if source.parts > 1:
        share.accompany(engine.load_base(source))
    (requests,) = share.asked([])
    log.info("training with %s others", share.count - 1)
    for _ in engine.train(source, requests, share).run():
        pass
    share.meet()  # answers may still be under way on a base in parts
    leave()


def end_with(pid: int) -> None:
    """End this process when the engine is gone, whatever it waits for."""
    while _is_there(pid):
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _is_there(pid: int) -> bool:
    try:
        status: Any = psutil.Process(pid).status()
    except psutil.Error:
        return False
    return bool(status != psutil.STATUS_ZOMBIE)


if __name__ == "__main__":
    sys.exit(main())
