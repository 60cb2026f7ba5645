"""Checking what was exported, in a process of its own: nothing that wrote it is left in memory.

Reads a line with one JSON object from standard input, writes lines of JSON to standard output:
{"progress": …} now and then, at the end {"result": …} or {"refused": …}. If "watched" is in the object, it
ends with whoever asks: when its standard input is closed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.base_model.decisions import InMemory, decisions, keep_decisions_in
from core.base_model.skeleton import skeleton
from core.errors import WorkbenchError
from core.events import Progress
from core.export.config import split_export_options
from core.export.duties import Exported
from core.lora.peft.files import load_adapter
from core.reporting import Report

Result = dict[str, Any]
Options = Mapping[str, object]


def check_export(
    base_folder: Path, adapter_folder: Path, target: Path, config: Options, template: str, report: Report
) -> Result:
    """The result: verdict, a sentence, and the figures. config: all options, flat. Raises WorkbenchError."""
    question = {
        "base": str(base_folder),
        "adapter": str(adapter_folder),
        "target": str(target),
        "config": dict(config),
        "template": template,
    }
    return ask_process(question, report)


def ask_process(question: dict[str, Any], report: Report) -> Result:
    """Have a process of its own do what check() does.

    Raises WorkbenchError if it refuses or ends without a result.
    """
    with _started() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = {"watched": True, "ways": decisions().all()}
        process.stdin.write(json.dumps(question | told) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = {}
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    answer = json.loads(line)
                    if "progress" in answer:
                        report(Progress(answer["progress"]))
        except BaseException:
            process.kill()  # whoever is cancelled does not wait for the end of the check
            raise
    if "refused" in answer:
        raise WorkbenchError(answer["refused"])
    if "result" not in answer:
        raise WorkbenchError(
            f"The check of the export ended without a result (exit code {process.returncode})."
        )
    return dict(answer["result"])


def _started() -> subprocess.Popen[str]:
    # -P: Python would import the working folder's modules first, and that may hold a core of its own.
    command = [sys.executable, "-P", "-m", "core.export.check_process"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def check(question: dict[str, Any], report: Report) -> Result:
    """Do what was asked."""
    base_folder = Path(question["base"])
    config, own = split_export_options(question["config"])
    layers = skeleton(base_folder)
    exported = Exported(
        folder=Path(question["target"]),
        base_folder=base_folder,
        skeleton=layers,
        adapter=load_adapter(Path(question["adapter"]), layers.shapes, layers.head, layers.wholes),
        config=config,
        own=own,
        template=question["template"],
    )
    return config.kind.check(exported, report).to_dict()


def _end_with_whoever_asks() -> None:
    """One who was killed reads no answer, and what is checked is removed by the next."""
    while os.read(sys.stdin.fileno(), 1 << 10):
        pass
    os._exit(1)


def main() -> int:
    """Answer the question on standard input."""
    question = json.loads(sys.stdin.readline())
    keep_decisions_in(InMemory(question.get("ways", {})))
    if question.get("watched"):
        threading.Thread(target=_end_with_whoever_asks, daemon=True).start()

    def say(**line: object) -> None:
        print(json.dumps(line), flush=True)

    try:
        say(result=check(question, lambda progress: say(progress=progress.message)))
    except WorkbenchError as error:
        say(refused=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
