"""Importing and checking a large data set: speed, and the memory of the job's process and of the app's.

    python -m tests.benchmarks.data --rows 1000000 --base FOLDER

The file is made for the purpose: conversations of words drawn with the frequencies of a language. `--base` is
a folder with a tokenizer, for the checks that need one; without it only the import is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import psutil

from app.service.workbench import Workbench
from app.shared.data_import import ImportRequest
from app.shared.settings import settings_for
from storage.tables import Job

_WORDS = 20_000
_QUESTION, _ANSWER = 60, 110  # words


def make_rows(path: Path, count: int) -> None:
    """JSONL of `count` conversations, about 1 kB each; no two alike."""
    chance = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 1) for rank in range(len(letters))]
    words = ["".join(chance.choices(letters, weights, k=chance.randint(2, 9))) for _ in range(_WORDS)]
    text = chance.choices(words, [1 / (rank + 10) for rank in range(_WORDS)], k=400_000)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            at, to = chance.randrange(len(text) - _ANSWER), chance.randrange(len(text) - _ANSWER)
            question, answer = " ".join(text[at : at + _QUESTION]), " ".join(text[to : to + _ANSWER])
            turns = [
                {"role": "user", "content": f"{number}: {question}?"},
                {"role": "assistant", "content": f"{answer}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def follow(workbench: Workbench, job: Job) -> dict[str, float]:
    """Seconds of a job, and the most memory that its process and this one held, in MiB.

    Private: without mapped files.
    """
    process, begun = psutil.Process(workbench.jobs._processes[job.id or 0].pid), time.monotonic()
    most = {"worker MiB": 0.0, "worker private MiB": 0.0, "app MiB": 0.0}
    while workbench.registry.get(Job, job.id or 0).active:
        try:
            held = process.memory_info()
        except psutil.NoSuchProcess:
            break
        private = held.rss - getattr(held, "shared", 0)
        found = {
            "worker MiB": held.rss,
            "worker private MiB": private,
            "app MiB": psutil.Process().memory_info().rss,
        }
        most = {key: max(most[key], found[key] / 2**20) for key in most}
        time.sleep(0.05)
    workbench.jobs.wait(job)
    return {"seconds": time.monotonic() - begun, **most}


def main() -> None:
    """Make the file, import it without and with near duplicates, and check it with the base's tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--base", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        make_rows(path, given.rows)
        megabytes = os.path.getsize(path) / 1e6
        workbench = Workbench(settings_for(Path(folder) / "home"))
        results: list[dict[str, object]] = []
        for near in (False, True):
            name = f"import{' and near duplicates' if near else ''}"
            found = follow(
                workbench,
                workbench.datasets.import_files(ImportRequest([str(path)], name, near_duplicates=near)),
            )
            results.append({"work": name, "MB/s": megabytes / found["seconds"], **found})
        if given.base:
            workbench.jobs.wait(workbench.models.add(str(given.base), "base"))
            found = follow(workbench, workbench.datasets.check("import", "base", 1024))
            results.append(
                {"work": "check with the tokenizer", "MB/s": megabytes / found["seconds"], **found}
            )
        workbench.close()
    from tests.benchmarks.report import show  # it imports torch, which would count as the app's memory

    show(f"data {given.rows:,} rows, {megabytes:,.0f} MB", results)


if __name__ == "__main__":
    main()
