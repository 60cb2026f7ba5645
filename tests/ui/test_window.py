"""The window of its own: Chromium's app mode on a display that nobody sees."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.train.training_options import TrainingOptions
from storage.tables import Run
from tests.ui.conftest import REQUIRED
from tests.workbenches import QUICK, free_port, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def display(browser, tmp_path) -> Iterator[str]:
    """An X server without a screen; its name. The browser is asked for so that the test needs one."""
    if not shutil.which("Xvfb"):
        reason = "no Xvfb found: apt-get install xvfb"
        pytest.fail(reason) if os.environ.get(REQUIRED) else pytest.skip(reason)
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    with (tmp_path / "xvfb.log").open("w") as log:
        server = subprocess.Popen(command, pass_fds=[writing], stdout=log, stderr=log)
    os.close(writing)
    with os.fdopen(reading) as said:
        name = said.readline().strip()
    assert name, (tmp_path / "xvfb.log").read_text()
    yield f":{name}"
    server.terminate()
    server.wait()


def _window_of(server: int, profile: Path) -> psutil.Process | None:
    """The browser's first process, which the server has started."""
    with contextlib.suppress(psutil.NoSuchProcess):  # the server, or a child of it, has ended meanwhile
        for process in psutil.Process(server).children():
            if f"--user-data-dir={profile}" in process.cmdline():
                return process
    return None


def _has_a_visitor(server: int, port: int) -> bool:
    """Whether a browser holds a connection to the server, as an open page does."""
    held = psutil.Process(server).net_connections("tcp")
    return any(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in held)


def test_a_window_opens_and_closing_it_stops_the_run_and_ends_the_server(
    workbench, zygote, display, monkeypatch, tmp_path
):
    monkeypatch.setenv("DISPLAY", display)
    home, port, log = workbench.settings.home, free_port(), tmp_path / "server.log"
    options = TrainingOptions.parse({**QUICK, "max_steps": 100_000})
    run = workbench.training.start("llama", "data", options, "mine")
    arguments = ["--home", str(home), "--port", str(port), "--window", "--on-close", "stop"]
    server = zygote.start("app.cli.main", arguments, log)
    try:
        wait_for(lambda: _window_of(server.pid, home / "window") or server.poll() is not None, 120)
        window = _window_of(server.pid, home / "window")
        assert window is not None, log.read_text()
        assert "token=" not in " ".join(window.cmdline())
        assert ("--no-sandbox" in window.cmdline()) == (os.geteuid() == 0)
        wait_for(lambda: _has_a_visitor(server.pid, port), 60)
        wait_for(lambda: workbench.registry.measurements.last_point(run.id))
        window.terminate()
        wait_for(lambda: server.poll() is not None, 120)
        assert server.poll() == 0, log.read_text()
    finally:
        server.terminate()
        wait_for(lambda: server.poll() is not None, 20)
    assert workbench.registry.get(Run, run.id).state == "stopped"
    said = log.read_text()
    assert "in app mode" in said
    assert f"Run {run.id} (mine) is stopped." in said
    assert "Traceback" not in said
    assert not workbench.settings.app_file.exists()
