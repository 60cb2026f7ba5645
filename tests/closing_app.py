"""An app in a process of its own that queues a run and closes: tests start it with a home and the options of
the run, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from core.train.training_options import TrainingOptions


def main() -> int:
    """Have an engine, queue the run "on", and end while it goes on."""
    home, options = sys.argv[1:]
    workbench = Workbench(settings_for(Path(home)))
    workbench.engine.keep_attached()
    workbench.training.start("llama", "data", TrainingOptions.parse(json.loads(options)), "on")
    workbench.close()
    return 0
