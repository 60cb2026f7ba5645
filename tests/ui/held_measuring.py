"""A plug-in that holds measuring before its rows are prepared, for as long as the file named in
LORA_WORKBENCH_HELD_MEASURING is there, so that it can be ended meanwhile. It brings no kinds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from app.engine import measuring

HELD_VARIABLE = "LORA_WORKBENCH_HELD_MEASURING"
KINDS = ()

_prepare = measuring.prepare


def _held(*given, **options):
    file = os.environ.get(HELD_VARIABLE)  # not set in the tests' own process, where it is imported, too
    while file and Path(file).exists():
        time.sleep(0.01)
        yield
    return (yield from _prepare(*given, **options))


measuring.prepare = _held
