"""A plug-in that holds jobs in the middle of their work, so that they can be cancelled there: their process
waits behind its first report for somebody to write to the pipe named in LORA_WORKBENCH_HELD.

It brings a kind of job of its own, which has no place on the page.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from app.jobs import process
from app.jobs.kinds import JobKind
from core.events import Progress
from core.options import Config, option

HELD_VARIABLE = "LORA_WORKBENCH_HELD"


@dataclass(frozen=True)
class LookAboutOptions(Config):
    """Where to look."""

    place: str = option("here", "Place", "Any word.")


class LookAbout(JobKind):
    """Says what it was given."""

    name, label, help = "look_about", "Look about", "A job from elsewhere."
    options = LookAboutOptions

    def title(self, arguments):
        return f"Look about {arguments['place']}"

    def run(self, context, arguments):
        context.report(Progress("Looking", 0.5))
        return {"seen": arguments["place"]}


_report = process._RowReport.__call__


def _held_report(self, progress: Progress) -> None:
    _report(self, progress)
    if os.environ.get(HELD_VARIABLE):
        Path(os.environ.pop(HELD_VARIABLE)).read_text()


process._RowReport.__call__ = _held_report
KINDS = (LookAbout(),)
