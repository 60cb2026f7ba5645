"""The command of a machine that trains with another one."""

from __future__ import annotations

import json as texts
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import Home, Json
from app.cli.console import Console, guarded
from app.shared.errors import EngineUnavailable
from app.shared.processes import exit_reason
from app.shared.refusals import answered
from app.shared.settings import settings_for


@guarded
def worker(
    join: Annotated[
        str,
        typer.Option(
            "--join", metavar="ADDRESS:PORT", help="Where the first machine waits: its setting join_address."
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            help="Folder of the base, if it is not among those of the home folder. All of it is read, to "
            "know that it is the same.",
            exists=True,
            file_okay=False,
            resolve_path=True,
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Minutes to wait for a run, and for the next one.", min=0.01, max=100_000)
    ] = 10.0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train with another machine, whose runs ask for several (train --set machines=2).

    Both need the same join_key (settings set join_key …, or $LORA_WORKBENCH_JOIN_KEY), the same base and the
    same versions. Rows and options come from the first one, which keeps everything. This one takes part in
    one run after another. The key keeps out who does not have it; what the machines say to each other
    afterwards is neither encrypted nor signed, on ports that the system chooses. Use it only on a network
    that you trust.
    """
    console = Console(json)
    settings = settings_for(home)
    question = {
        "home": str(settings.home),
        "join": join,
        "base": str(base) if base else "",
        "wait": wait,
    }
    result = _asked(question, settings.logs / "joined.log", console)
    console.result(result, [("Runs", f"trained {result['runs']} with it")])


def _asked(question: dict[str, Any], log: Path, console: Console) -> dict[str, Any]:
    """What came of it; what is said meanwhile is shown. Raises what refuses it."""
    last: dict[str, Any] = {}
    with _started(log) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(texts.dumps(question) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            last = texts.loads(line)
            if "said" in last:
                console.say(last["said"])
    if "result" not in answered(last):
        raise EngineUnavailable(f"{exit_reason(process.returncode, 'The worker')}. Its log is {log}.")
    return dict(last["result"])


def _started(log: Path) -> subprocess.Popen[str]:
    # torch is not for this process, nor what it prints; -P: the working folder may hold an app of its own
    command = [sys.executable, "-P", "-m", "app.engine.joined_machine"]
    with log.open("ab") as noted:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noted, text=True
        )
