"""A process that trains a group together with the engine's: on a card of its own, with the base and all
adapters of the group, and its part of every micro-batch. It reads and writes nothing of the home folder's
registry, and ends with the group, or with who has started it.
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
from app.shared.join_address import parsed_address
from app.shared.private import private_by_default
from core.base_model.source import BaseSource, check_unchanged
from core.engine import Engine
from core.events import RunFailed
from core.train.accelerators import worker_device
from core.train.carried import read_requests
from core.train.handing_out import take_in
from core.train.meeting import Meeting, store_at, store_in

_LOOK_SECONDS = 0.5  # between two looks whether who has started it is there

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
    meeting = _meeting(task, given.number)
    engine = Engine(worker_device(given.number - task["first"]), dtype_from_environment())
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
    _train(engine, source, meeting, given.task.parent / f"runs-{given.number}", task["secret"])
    return 0


def _meeting(task: dict[str, Any], number: int) -> Meeting:
    place, count = task["place"], task["count"]
    if "file" in place:
        return Meeting(store_in(Path(place["file"]), count), number, count)
    store = store_at(*parsed_address(place["address"]), place["name"])
    return Meeting(store, number, count, place["network"], place["where"])


def _train(engine: Engine, source: BaseSource, meeting: Meeting, folder: Path, secret: str) -> None:
    share: Any = meeting.open(engine.device, in_parts=source.parts > 1)
    base = engine.load_base(source)  # in parts all load it together
    if source.parts > 1:
        share.accompany(base)
    take_in(share, folder, secret)
    requests = read_requests(folder, base)
    log.info("training with %s others", share.count - 1)
    for _, event in engine.train(source, requests, share).run():
        if isinstance(event, RunFailed):
            _note(folder, str(event.error))
    share.meet()  # answers may still be under way on a base in parts
    share.leave()


def _note(folder: Path, why: str) -> None:
    """Leave a sentence for who has started this process."""
    log.error(why)
    with (folder.parent / "failed.txt").open("a", encoding="utf-8") as file:
        file.write(f"{why}\n")


def end_with(pid: int) -> None:
    """End this process when the one that has started it is gone, whatever it waits for."""
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
