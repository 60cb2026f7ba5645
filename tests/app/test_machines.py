"""Runs that two machines train, here two home folders on the loopback: let in by a key, held to the same
base, told apart when they end.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from app.cli.main import app
from app.shared.settings import settings_for
from app.shared.user_settings import PreferenceStore
from core.errors import InvalidConfig, WorkerLost
from core.train.joining import Door, Invitation, ask, listen, reach, versions
from core.train.meeting import network_of
from storage.tables import FAILED, FINISHED, INTERRUPTED, PAUSED, STOPPED, Base, Run
from tests.app.test_workers import _factors, _go
from tests.workbenches import free_port, wait_for

KEY = "a-key-of-both"
TWO = {
    "machines": 2,
    "micro_batch_size": 2,
    "max_steps": 12,
    "save_steps": 1,
    "eval_steps": 6,
    "dropout": 0.2,
    "packing": "off",
}
HERE = platform.node()


class Other:
    """Another machine, which is asked to join."""

    def __init__(self, zygote, settings, address, base="", wait=1.0):
        self.process = zygote.asked("app.engine.joined_machine")
        question = {"home": str(settings.home), "join": address, "base": str(base), "wait": wait}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        self._log = settings.logs / "worker-1.log"

    def said(self, until=""):
        """What it says until a sentence holds `until`, or to its end."""
        found = []
        for line in self.process.stdout:
            found += [str(one) for one in json.loads(line).values()]
            if until and until in " ".join(found):
                break
        return " ".join(found)

    def worker(self):
        """The process that trains on it."""
        return next(one for one in psutil.process_iter() if self._writes_log(one))

    def _writes_log(self, process):
        try:
            if "tests.zygote" not in process.cmdline():
                return False
            return str(self._log) in [file.path for file in process.open_files()]
        except psutil.Error:  # other tests' processes come and go
            return False


@pytest.fixture
def address(workbench):
    """Where the first machine listens; both have the key."""
    found = f"127.0.0.1:{free_port()}"
    workbench.preferences.change({"join_address": found, "join_key": KEY})
    return found


@pytest.fixture
def home(tmp_path, furnished):
    """The other machine's."""
    found = settings_for(tmp_path / "other")
    shutil.copytree(furnished, found.home, dirs_exist_ok=True)
    PreferenceStore(found).change({"join_key": KEY})
    return found


@pytest.fixture
def other(zygote, home, address):
    """Asks the other machine to join; ends it."""
    asked = []

    def begin(**how):
        asked.append(Other(zygote, home, address, **how))
        return asked[-1]

    yield begin
    for one in asked:
        one.process.kill()
        with one.process:
            pass


def _notes(workbench, run_id):
    return " ".join(one.text for one in workbench.registry.measurements.notes(run_id))


def _until(session, condition):
    """Train, or wait, until something holds."""
    end = time.monotonic() + 120
    while not condition():
        assert session.advance()
        assert time.monotonic() < end


def test_two_machines_learn_what_one_does_and_a_lost_worker_interrupts_a_run_that_goes_on(
    workbench, session, other
):
    machine = other()  # before there is anything to join
    _, begun = session("alone", **TWO | {"machines": 1})
    _go(begun)
    run_id, begun = session("together", **TWO)
    _until(begun, lambda: workbench.registry.checkpoints.of(run_id))
    os.kill(machine.worker().pid, signal.SIGKILL)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == INTERRUPTED
    assert (
        f"Worker 1 of 1 was killed (SIGKILL; the system may have run out of memory) on {HERE}" in run.reason
    )
    assert "Worker 1 of 1 was killed" in machine.said(until="Waiting for another run")
    workbench.runs.resume(run_id)
    _go(session.next())
    assert workbench.registry.get(Run, run_id).state == FINISHED, workbench.registry.get(Run, run_id).reason
    assert f"{HERE} has joined" in _notes(workbench, run_id)
    assert "interrupted" not in machine.said(until="Waiting for another run")
    torch.testing.assert_close(
        _factors(workbench, "together"), _factors(workbench, "alone"), atol=1e-5, rtol=0
    )


def test_who_has_another_key_is_refused_on_both_sides_and_who_has_the_right_one_comes_later(
    workbench, session, other, monkeypatch
):
    run_id, begun = session("run", **TWO)
    _until(begun, lambda: "Waiting at 127.0.0.1" in _notes(workbench, run_id))
    with monkeypatch.context() as wrong:
        wrong.setenv("LORA_WORKBENCH_JOIN_KEY", "another-key")
        stranger = other()
    _until(begun, lambda: "Another machine was refused" in _notes(workbench, run_id))
    assert "The first machine refuses this one: It does not have this machine's join_key" in stranger.said()
    other()
    _go(begun)
    assert workbench.registry.get(Run, run_id).state == FINISHED


def test_another_base_is_refused_on_both_sides_and_the_run_waits_until_it_is_paused(
    workbench, session, other, tiny_llama, tmp_path
):
    run_id, begun = session("run", **TWO)
    changed = tmp_path / "changed"
    shutil.copytree(tiny_llama, changed)
    about = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(about | {"rms_norm_eps": 0.5}))
    machine = other(base=changed)
    _until(
        begun,
        lambda: f"{HERE} cannot join: {changed} on {HERE} is not the base llama" in _notes(workbench, run_id),
    )
    assert "is not the base llama: its fingerprint is" in machine.said()
    workbench.runs.pause(run_id)
    _go(begun)
    assert workbench.registry.get(Run, run_id).state == PAUSED


def test_a_machine_without_the_base_says_so_and_a_run_that_waits_can_be_stopped(
    workbench, session, other, home
):
    run_id, begun = session("run", **TWO)
    (home.home / "registry.db").unlink()
    _until(begun, lambda: "Waiting at 127.0.0.1" in _notes(workbench, run_id))
    machine = other()
    _until(begun, lambda: f"{HERE} does not have the base llama" in _notes(workbench, run_id))
    assert "or name its folder with --base" in machine.said()
    workbench.runs.stop(run_id)
    _go(begun)
    assert workbench.registry.get(Run, run_id).state == STOPPED


def test_a_machine_that_computes_otherwise_is_refused_before_the_first_step(
    workbench, session, other, monkeypatch
):
    with monkeypatch.context() as otherwise:
        otherwise.setenv("LORA_WORKBENCH_DTYPE", "bfloat16")
        machine = other()
    run_id, begun = session("run", **TWO)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    said = f"Process 1 of 2 on {HERE} does not have the first one's number format: its is bfloat16 none"
    assert run.state == FAILED
    assert said in run.reason
    assert said in machine.said(until="Waiting for another run")
    assert not [one for one in workbench.registry.measurements.points(run_id) if one.loss is not None]


def test_a_machine_that_falls_silent_interrupts_the_run(workbench, session, other, monkeypatch):
    machine = other()
    run_id, begun = session("run", **TWO | {"max_steps": 10_000})
    _until(begun, lambda: workbench.registry.checkpoints.of(run_id))
    worker = machine.worker()
    for pid in (machine.process.pid, worker.pid):
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("core.train.joining.SILENT_SECONDS", 1.5)  # before, a busy one would seem to be
    _go(begun)
    worker.kill()
    run = workbench.registry.get(Run, run_id)
    assert run.state == INTERRUPTED
    assert f"Nothing was heard of {HERE} for 2 s; the run can go on" in run.reason


def test_a_worker_that_is_ended_by_its_user_says_so(workbench, session, other):
    machine = other()
    run_id, begun = session("run", **TWO | {"max_steps": 10_000})
    _until(begun, lambda: workbench.registry.checkpoints.of(run_id))
    os.kill(machine.process.pid, signal.SIGINT)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == INTERRUPTED
    assert f"The worker was ended by its user on {HERE}; the run can go on" in run.reason
    assert machine.process.wait() == 130


def test_a_run_for_which_no_machine_comes_is_interrupted_and_goes_on_with_this_one(
    workbench, session, address, monkeypatch
):
    monkeypatch.setattr("app.engine.machines._JOIN_SECONDS", 0.1)
    run_id, begun = session("run", **TWO)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == INTERRUPTED
    assert "1 other machine did not join at 127.0.0.1" in run.reason
    with pytest.raises(InvalidConfig, match="rank cannot change when a run goes on; only devices, machines"):
        workbench.runs.resume(run_id, spread={"rank": "3"})
    workbench.runs.resume(run_id, spread={"machines": "1"})
    _go(session.next())
    assert workbench.registry.get(Run, run_id).state == FINISHED
    assert "Goes on with machines = 1: as before up to rounding" in _notes(workbench, run_id)


def test_the_command_ends_with_a_sentence_where_no_run_waits(zygote, home, monkeypatch):
    monkeypatch.setattr("app.cli.join._started", lambda log: zygote.asked("app.engine.joined_machine"))
    command = ["worker", "--join", f"127.0.0.1:{free_port()}", "--wait", "0.01", "--home", str(home.home)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "Waiting for a run at 127.0.0.1" in done.stderr
    assert "Error: No run waited for this machine" in done.stderr
    PreferenceStore(home).reset(["join_key"])
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["kind"] == "InvalidConfig"
    assert "none is set here. Set one on both" in json.loads(done.stdout)["error"]


def test_a_port_in_use_a_foreign_address_and_a_missing_key_are_told(workbench, session, address):
    port = int(address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        assert f"Port {port} of 127.0.0.1, where other machines are to join, is taken" in _why(
            workbench, session
        )
    workbench.preferences.change({"join_address": f"203.0.113.7:{port}"})
    assert "203.0.113.7, where other machines are to join, is no address of this" in _why(workbench, session)
    workbench.preferences.change({"join_key": ""})
    with pytest.raises(InvalidConfig, match=r"none is set here\. Set one on both"):
        session("keyless", **TWO)
    with pytest.raises(InvalidConfig, match=r"must be one address of this machine"):
        workbench.preferences.change({"join_address": "0.0.0.0:29500"})
    with pytest.raises(InvalidConfig, match=r"is no ADDRESS:PORT"):
        workbench.preferences.change({"join_address": "10.0.0.1"})
    with pytest.raises(InvalidConfig, match=r"203\.0\.113\.7 is no address of this machine, which has 127"):
        network_of("203.0.113.7")


def _why(workbench, session):
    run_id, begun = session(f"run-{time.monotonic()}", **TWO)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == FAILED
    return run.reason


def _door(port, key=KEY, **about):
    task = {"base": {}, "devices": 1, "count": 2}
    return Door(listen("127.0.0.1", port), key, 2, versions() | about, task)


def _asked(door, port, key=KEY):
    """What the first machine says of who comes, and what that one hears."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(ask, reach("127.0.0.1", port), key, "gpu2", versions())
        said = wait_for(lambda: door.look() or (coming.done() and ["let in"]))
        return said, coming


def test_machines_with_other_versions_are_refused_by_name():
    port = free_port()
    said, coming = _asked(_door(port, torch="1.0"), port)
    wanted = f"gpu2 has torch {torch.__version__}, the first machine 1.0; install the same"
    assert wanted in said[0]
    with pytest.raises(WorkerLost, match="refuses this one: gpu2 has torch"):
        coming.result()


def test_a_first_machine_that_ends_as_soon_as_all_have_heard_of_it_is_not_taken_for_lost():
    """It waits for no more than that word, and takes the meeting along."""

    class Ending(dist.HashStore):
        ended = False

        def set(self, key, value):
            super().set(key, value)
            self.ended = self.ended or key.startswith("heard-")

        def get(self, key):
            if self.ended:
                raise RuntimeError("Connection reset by peer")
            return super().get(key)

    meeting = Ending()
    invitation = Invitation(1, {}, "name", "secret", meeting)
    assert invitation.beat() is None
    meeting.set("over", "it was paused")
    assert invitation.beat() == "it was paused"
    assert meeting.ended


def test_a_first_machine_that_is_gone_ends_its_workers_with_a_sentence(other, address, workbench):
    base = workbench.registry.find(Base, "llama")
    port, task = int(address.rpartition(":")[2]), {"devices": 1, "count": 2}
    task["base"] = {"name": "llama", "fingerprint": base.fingerprint, "config": "", "quantisation": "none"}
    doors = [Door(listen("127.0.0.1", port), KEY, 2, versions(), task)]
    machine = other()
    wait_for(lambda: f"{HERE} has joined" in doors[0].look())
    doors.clear()
    assert machine.process.wait() == 1
    assert "The first machine, at 127.0.0.1" in machine.said()
