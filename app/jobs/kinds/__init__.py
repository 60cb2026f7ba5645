"""Jobs: work that a process of its own does once, outside the engine. Each kind is one file here; see
core/seam.py.

The heads need no torch, since the service lists them, names the jobs and checks what they are given; what
run() needs is imported inside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import SQLModel

from app.shared.settings import Settings
from core.files.publish import Publication
from core.options import Config, NoOptions
from core.reporting import Report, silent
from core.seam import Seam
from storage.registry import Registry

Arguments = dict[str, Any]


@dataclass(frozen=True)
class JobContext:
    """What a job works on: a home folder, its registry, and whom it tells how far it is."""

    settings: Settings
    registry: Registry
    report: Report = silent
    job_id: int | None = None
    """The row that tells its end; None while its arguments are only looked at."""
    concluding: threading.Event = field(default_factory=threading.Event)
    """Set once its end is being written, or has been: then it is not to be ended from outside any more."""

    def conclude(self, register: Callable[[], Arguments]) -> Arguments:
        """Register what was made and note the job's end, in one transaction: a job that is killed has either
        finished or registered nothing. `register` returns the result.
        """
        self.concluding.set()
        try:
            with self.registry.database.together():
                result = register()
                if self.job_id is not None:
                    self.registry.jobs.finish(self.job_id, result)
        except BaseException:
            self.concluding.clear()
            raise
        return result

    def publish(self, out: Publication, register: Callable[[], Arguments]) -> Arguments:
        """The same for a job that makes a folder: it is put in its place first."""
        out.publish()
        result = self.conclude(register)
        out.finish()
        return result


@dataclass(frozen=True)
class NextStep:
    """What people may want to do with what a job has made: words, and the section of the page with what it
    is to show or do there.
    """

    words: str
    section: str
    about: Mapping[str, str]


class JobKind:
    """One kind of job."""

    name: str
    label: str
    help: str
    order: int = 100
    options: type[Config] = NoOptions
    """What a form or the command line asks for before such a job is started."""
    place: str = ""
    """Where people start it, for a kind that has a place of its own; any other is offered with its options
    among the other jobs of the page, and by the command line's jobs start.
    """
    keeps: tuple[type[SQLModel], ...] = ()
    """The tables it adds rows to. A kind that keeps nothing is started however full the home folder is."""

    left: str = "Nothing was added"
    """What one leaves behind that was ended before its end, in a few words."""

    def title(self, arguments: Mapping[str, Any]) -> str:
        """What the job is called while it is under way."""
        return self.label

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """The arguments as the job's row holds them, as JSON. Raises what makes the job impossible."""
        return self.options.parse(arguments).to_dict()

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Do the job, in its own process. What it returns, as JSON, is the result that the job's row keeps.

        Raises a user error with the reason it could not be done; then nothing of it is left.
        """
        raise NotImplementedError

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        """What is offered when the job has ended, from its result; the likeliest first."""
        return ()


def adapter_steps(result: Mapping[str, Any]) -> Sequence[NextStep]:
    """For a job that may have kept an adapter under its result's `name`."""
    name = result.get("name")
    if not name:
        return ()
    return NextStep("Chat with it", "playground", {"adapter": name}), NextStep(
        "Show it", "adapters", {"name": name}
    )


JOBS: Seam[JobKind] = Seam("app.jobs.kinds", JobKind, "job")


def left_by(name: str) -> str:
    """What a job of this kind leaves that was ended; its kind may have gone with its plug-in."""
    kind = JOBS.all().get(name)
    return kind.left if kind is not None else JobKind.left
