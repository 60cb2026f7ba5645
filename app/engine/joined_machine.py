"""This machine as one that trains with another, the first: it is let in with the key that both have, finds
the base, starts a worker for each card, tells that it is there, and ends its workers when the first one says
so or is gone. As torchrun's agent it computes nothing itself, so what it tells of its workers holds however
they end.

It is asked by one line of JSON on its standard input, and ends with that. It answers in lines of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from filelock import FileLock, Timeout

from app.engine.faults import reason
from app.engine.machines import machine_name
from app.engine.worker_processes import WorkerProcesses
from app.engine.workers import told_of
from app.shared.bases import open_registry, source_of
from app.shared.errors import USER_ERRORS, AlreadyRunning
from app.shared.join_address import parsed_address, require_key
from app.shared.private import private_by_default
from app.shared.refusals import refused
from app.shared.settings import Settings, settings_for
from app.shared.user_settings import PreferenceStore
from core.base_model.fingerprint import file_digest, manifest, stat_key
from core.base_model.source import BaseSource
from core.errors import WorkerLost, WrongBase
from core.train import joining
from core.train.accelerators import card_names
from core.train.cards_here import require_count
from core.train.joining import Invitation, versions
from core.train.meeting import network_of
from storage.tables import Base

_BEAT_SECONDS = 0.5  # between two signs that this machine is there
_LOOK_SECONDS = 0.1  # between two looks at the workers
_POLL_SECONDS = 0.5  # between two looks whether a first machine is there
_LAST_SECONDS = 5.0  # for workers whose work is done to end by themselves

log = logging.getLogger("joined")


class JoinedMachine:
    """What `lora-workbench worker` does."""

    def __init__(self, settings: Settings, address: str, folder: Path | None, wait_seconds: float) -> None:
        """folder: of the base, if it is not one of this home's. Raises InvalidConfig, AlreadyRunning."""
        self._settings, self._folder, self._wait = settings, folder, wait_seconds
        self._address, (self._host, self._port) = address, parsed_address(address)
        self._network = network_of(joining.own_address(self._host, self._port))
        self._key = PreferenceStore(settings).values().join_key
        require_key(self._key)

    def work(self) -> int:
        """Take part in one run after another, until none has come for long; returns in how many. Raises
        WorkerLost where none has come at all, or the first machine is gone in the middle, and what keeps this
        one from taking part.
        """
        taken, until = 0, time.monotonic() + self._wait
        say(f"Waiting for a run at {self._address}")
        while time.monotonic() < until:
            if invitation := self._invited():
                self._take_part(invitation)
                taken, until = taken + 1, time.monotonic() + self._wait
                say(f"Waiting for another run at {self._address}")
            time.sleep(_POLL_SECONDS)
        if not taken:
            raise WorkerLost(
                f"No run waited for this machine at {self._address} within {self._wait / 60:g} minutes. "
                "Start one there with machines=2 or more, and its settings join_address and join_key."
            )
        return taken

    def _invited(self) -> Invitation | None:
        store = joining.reach(self._host, self._port)
        try:
            return joining.ask(store, self._key, machine_name(), versions()) if store else None
        except RuntimeError as error:  # torch's, of a connection that is gone
            log.info("nobody there any more: %s", error)
            return None

    def _take_part(self, invitation: Invitation) -> None:
        beats = _Beats(invitation)
        try:
            task = self._task(invitation)
        except Exception as error:
            invitation.unfit(reason(error))
            raise
        with self._working(task, invitation) as processes:
            invitation.fit()
            say(f"Training as machine {invitation.seat + 1}; {task['count']} processes in all")
            beats.wait_for_end(processes, self._address)
            self._tell_of(processes)

    def _task(self, invitation: Invitation) -> dict[str, Any]:
        """What this machine's workers are told. Raises WrongBase, InvalidConfig."""
        told = invitation.task
        require_count(card_names(), told["devices"])
        return {
            "place": {
                "address": self._address,
                "name": invitation.name,
                "network": self._network,
                "where": machine_name(),
            },
            "count": told["count"],
            "first": invitation.seat * told["devices"],
            "devices": told["devices"],
            "secret": invitation.secret,
            "base": told_of(self._source(told["base"])),
        }

    @contextmanager
    def _working(self, task: dict[str, Any], invitation: Invitation) -> Iterator[WorkerProcesses]:
        self._settings.cache.mkdir(exist_ok=True)
        for left in self._settings.cache.glob("joined-*"):  # by one that was killed
            rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="joined-", dir=self._settings.cache))
        numbers = range(task["first"], task["first"] + task["devices"])
        processes = WorkerProcesses(self._settings, folder, task, numbers)
        try:
            yield processes
        except KeyboardInterrupt:
            invitation.leave("The worker was ended by its user")
            raise
        finally:
            processes.kill()
            rmtree(folder, ignore_errors=True)

    def _tell_of(self, processes: WorkerProcesses) -> None:
        failed = processes.folder / "failed.txt"
        if failed.exists():
            for why in dict.fromkeys(failed.read_text(encoding="utf-8").splitlines()):
                say(f"Not trained: {why}")

    # The base.

    def _source(self, wanted: dict[str, str]) -> BaseSource:
        """The base that is trained on, as it lies here. Raises WrongBase."""
        found = self._named_source(wanted) if self._folder else self._own_source(wanted)
        if wanted["config"] and file_digest(found.folder / "config.json") != wanted["config"]:
            raise WrongBase(
                f"{found.folder} has the weights of {wanted['name']} but another config.json, which may have "
                "something else computed. Take the first machine's."
            )
        return replace(found, quantisation=wanted["quantisation"], config=wanted["config"])

    def _own_source(self, wanted: dict[str, str]) -> BaseSource:
        registry = open_registry(self._settings)
        same = [one for one in registry.all(Base) if one.fingerprint == wanted["fingerprint"]]
        base = next((one for one in same if Path(one.folder).is_dir()), None)
        if base is None:
            raise WrongBase(
                f"{machine_name()} does not have the base {wanted['name']} ({wanted['fingerprint'][:12]}) in "
                f"{self._settings.home}. Add it there (models add), or name its folder with --base."
            )
        return source_of(registry, base)

    def _named_source(self, wanted: dict[str, str]) -> BaseSource:
        assert self._folder is not None
        say(f"Reading all of {self._folder}, to know whether it is the base")
        about = stat_key(self._folder)
        found = manifest(self._folder).fingerprint
        if found != wanted["fingerprint"]:
            raise WrongBase(
                f"{self._folder} on {machine_name()} is not the base {wanted['name']}: its fingerprint is "
                f"{found[:12]}, the first machine's {wanted['fingerprint'][:12]}."
            )
        return BaseSource(self._folder.name, self._folder, found, about)


class _Beats:
    """Tells the first machine that this one is there, and hears from it, in a thread."""

    def __init__(self, invitation: Invitation) -> None:
        self._invitation, self._heard, self._gone = invitation, time.monotonic(), False
        self._over: str | None = None
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while self._over is None and not self._gone:
            try:
                self._over = self._invitation.beat()
                self._heard = time.monotonic()
            except RuntimeError as error:  # torch's, of a connection that is gone
                log.info("the first machine is gone: %s", error)
                self._gone = True
            time.sleep(_BEAT_SECONDS)

    @property
    def _is_gone(self) -> bool:
        return self._gone or time.monotonic() - self._heard > joining.SILENT_SECONDS

    def wait_for_end(self, processes: WorkerProcesses, address: str) -> None:
        """Until the first machine says that it is over. Raises WorkerLost where that is gone before."""
        told = ""
        while self._over is None:
            if self._is_gone:
                raise WorkerLost(f"The first machine, at {address}, is gone, and its run with it.")
            if not told and (told := processes.lost()):
                self._invitation.lost(told)
                say(told)
            time.sleep(_LOOK_SECONDS)
        if self._over:
            say(f"The run was interrupted: {self._over}")
            return
        until = time.monotonic() + _LAST_SECONDS
        while time.monotonic() < until and not processes.have_ended():
            time.sleep(_LOOK_SECONDS)
        say("The run has ended")


def say(sentence: str) -> None:
    """To who has asked."""
    print(json.dumps({"said": sentence}), flush=True)


def main() -> int:
    """Do what is asked on standard input; the result, or a refusal, is the last line."""
    private_by_default()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asked = json.loads(sys.stdin.readline())
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _end)
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    settings = settings_for(Path(asked["home"]))
    folder = Path(asked["base"]) if asked["base"] else None
    # Compiled kernels outlive the process, as the engine's do.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.cache / "kernels"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(settings.cache / "triton"))
    try:
        with _alone(settings):
            taken = JoinedMachine(settings, asked["join"], folder, asked["wait"] * 60).work()
    except KeyboardInterrupt:
        return 130
    except (*USER_ERRORS, OSError) as error:
        print(json.dumps(refused(error, reason(error))), flush=True)
        return 1
    print(json.dumps({"result": {"runs": taken}}), flush=True)
    return 0


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    try:
        with FileLock(settings.locks / "joined.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise AlreadyRunning(f"A worker has joined from {settings.home} already.") from None


def _end(*about: object) -> None:
    """Once: to end may take a moment, and whoever ends this process may have closed its input, too."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_who_asked() -> None:
    sys.stdin.read()
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
