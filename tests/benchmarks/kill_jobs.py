"""Kill jobs of every kind, and restore, at random moments, and do each again.

    python -m tests.benchmarks.kill_jobs --kills 60

A model is added (from a GGUF file), data and an adapter are imported, adapters are combined and resized, one
is exported, and a backup is restored. Each is killed by SIGKILL somewhere in the time that it takes. After
every kill: the database is sound, no row has been added unless all is there, and the same command succeeds.
In the end every stored file, base model and export is what it was, and nothing is left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.service import jobs
from app.service.doctor import examine_deeply
from app.service.workbench import Workbench
from app.shared.data_import import ImportRequest
from app.shared.errors import JobFailed
from app.shared.settings import settings_for
from storage.backup import backup
from storage.tables import Adapter, Base, Dataset, Export, Job
from tests.conftest import make_llama, make_tokenizer
from tests.workbenches import copy_adapter, do_job, write_rows
from tests.zygote import Forked, Zygote

Start = Callable[[int], Job]


def main() -> None:
    """Print what was seen as JSON; an assertion that fails says what was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    os.environ["LORA_WORKBENCH_DTYPE"] = "float32"
    zygote = Zygote()
    zygote.wait_until_ready()
    jobs.start_detached = zygote.start  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        found = _kill_all(Path(folder), zygote, chosen.kills, random.Random(chosen.seed))
    print(json.dumps(found, indent=2))
    zygote.close()


def _kill_all(folder: Path, zygote: Zygote, kills: int, chance: random.Random) -> dict[str, object]:
    start = time.monotonic()
    workbench, kinds = _home(folder)
    file = folder / "home.backup"
    backup(workbench.registry, file, lambda what, share: None)
    counted: Counter[str] = Counter()
    late: Counter[str] = Counter()
    takes: dict[str, float] = {}
    number = 0
    while counted.total() < kills:
        for kind in (*kinds, "restore"):
            number += 1
            if kind == "restore":
                hit = _kill_restore(zygote, file, folder / f"restored-{number}", takes, chance)
            else:
                hit = _kill_job(workbench, kind, kinds[kind], number, takes, chance)
            (counted if hit else late)[kind] += 1
        print(f"{counted.total()} kills, {time.monotonic() - start:.0f} s", flush=True)
    workbench.usage.remove_leavings()
    faults = [one.found for one in examine_deeply(workbench) if one.level == "fault"]
    assert not faults, faults
    named = {Path(row.folder) for row in workbench.registry.all(Base) if row.owned}
    left = [path.name for path in workbench.settings.models.iterdir() if path not in named]
    assert all(name.startswith(".staging-") for name in left), left  # younger than what is tidied up
    workbench.close()
    return {
        "kills": dict(counted),
        "ended before the kill": dict(late),
        "all repeated": True,
        "seconds": round(time.monotonic() - start),
    }


def _kill_job(
    workbench: Workbench,
    kind: str,
    start: Start,
    number: int,
    takes: dict[str, float],
    chance: random.Random,
) -> bool:
    """Whether the job was killed before its end; then it is done again."""
    if kind not in takes:
        began = time.monotonic()
        workbench.jobs.wait(start(10_000 + number))
        takes[kind] = time.monotonic() - began
    before = _rows(workbench)
    job = start(number)
    process = workbench.jobs._processes[job.id or 0]
    time.sleep(chance.uniform(0.0, takes[kind]))
    with suppress(ProcessLookupError):  # it has ended already
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        workbench.jobs.wait(job)
    except JobFailed:
        assert _rows(workbench) == before, f"{kind} was interrupted, but something was registered"
    else:
        assert _rows(workbench) != before, f"{kind} has finished, but nothing was registered"
        return False
    with sqlite3.connect(workbench.settings.database) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    workbench.jobs.wait(start(number))
    return True


def _kill_restore(
    zygote: Zygote, file: Path, home: Path, takes: dict[str, float], chance: random.Random
) -> bool:
    """Whether restore was killed before its end; then it is done again."""

    def begin(into: Path) -> Forked:
        log = file.with_suffix(".log")
        return zygote.start("app.cli.main", ["restore", str(file), "--home", str(into)], log)

    if "restore" not in takes:
        began = time.monotonic()
        assert begin(home.with_name("restored-whole")).wait() == 0
        takes["restore"] = time.monotonic() - began
    process = begin(home)
    time.sleep(chance.uniform(0.0, takes["restore"]))
    with suppress(ProcessLookupError):  # it has ended already
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = begin(home).wait() == 0  # refused where all is back already
    restored = Workbench(settings_for(home))
    assert restored.registry.names(Adapter) == {"one", "other"}
    for digest in restored.registry.referenced():
        restored.registry.blobs.verify(digest)
    restored.close()
    return killed


def _rows(workbench: Workbench) -> list[list[int | None]]:
    registry = workbench.registry
    return [[row.id for row in registry.all(table)] for table in (Base, Dataset, Adapter, Export)]


def _home(folder: Path) -> tuple[Workbench, dict[str, Start]]:
    """A home with two adapters, and what is started again and again, each time under a number of its own."""
    workbench = Workbench(settings_for(folder / "home"))
    model = make_llama(folder / "llama", make_tokenizer())
    do_job(workbench, "add_model", {"origin": str(model), "name": "llama"})
    data = write_rows(folder / "rows.jsonl")
    workbench.datasets.add(data, "data")
    for seed, name in enumerate(("one", "other")):
        _add_adapter(workbench, model, name, seed)
    copy_adapter(workbench, "one", folder / "theirs")
    workbench.jobs.wait(workbench.exports.start("one", folder / "gguf", {"format": "gguf"}))
    (gguf,) = (folder / "gguf").glob("*.gguf")
    return workbench, {
        "add model": lambda n: workbench.models.add(str(gguf), f"model {n}"),
        "import data": lambda n: workbench.datasets.import_files(ImportRequest([str(data)], f"data {n}")),
        "import adapter": lambda n: workbench.adapters.import_files(folder / "theirs", f"mine {n}", "llama"),
        "combine": lambda n: workbench.adapters.combine({"one": 1.0, "other": 0.5}, {}, f"both {n}"),
        "resize": lambda n: workbench.adapters.resize("one", 1, f"small {n}"),
        "export": lambda n: workbench.exports.start("one", folder / f"export {n}"),
    }


def _add_adapter(workbench: Workbench, model: Path, name: str, seed: int) -> None:
    from core.lora.peft.files import save_adapter
    from tests.core.helpers import load, random_adapter

    base = workbench.registry.find(Base, "llama")
    folder = workbench.settings.home / name
    folder.mkdir()
    save_adapter(folder, random_adapter(load(model, base.fingerprint), rank=2, seed=seed))
    do_job(workbench, "import_adapter", {"folder": str(folder), "name": name, "base": "llama"})


if __name__ == "__main__":
    main()
