"""A process that trains runs of its own on another card, beside the engine's: with its own base and group,
and without a word to the others. What people ask of its runs stands in their rows, as for the engine's. It
ends with its runs, or with the engine.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from pathlib import Path

from app.engine.process import dtype_from_environment
from app.engine.session import RunSession
from app.engine.worker import end_with
from app.shared.bases import open_registry
from app.shared.private import private_by_default
from app.shared.settings import Settings, settings_for
from core.engine import Engine
from core.panics import panics_as_errors
from core.train.accelerators import worker_device
from storage.tables import Run


def main() -> int:
    """Train the runs to their end."""
    private_by_default()
    parser = argparse.ArgumentParser(description="Runs beside the LoRA Workbench engine's; started by it.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--card", type=int, required=True)
    parser.add_argument("--engine", type=int, required=True)
    parser.add_argument("--runs", type=int, nargs="+", required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    threading.Thread(target=end_with, args=(given.engine,), daemon=True).start()
    _train(settings_for(given.home), given.card, given.runs)
    return 0


def _train(settings: Settings, card: int, numbers: list[int]) -> None:
    registry = open_registry(settings)
    engine = Engine(worker_device(card), dtype_from_environment())
    session = RunSession(registry, engine, [registry.get(Run, number) for number in numbers], settings)
    try:
        with panics_as_errors():
            while session.advance():
                pass
    except Exception as error:  # noqa: BLE001  (the boundary: whatever ends a run must end up in its row)
        session.fail(error)


if __name__ == "__main__":
    sys.exit(main())
