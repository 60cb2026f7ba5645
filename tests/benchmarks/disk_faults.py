"""Let every write, fsync and rename of a checkpoint, an export, a backup and a restore fail, one by one.

    python -m tests.benchmarks.disk_faults                       all of them
    python -m tests.benchmarks.disk_faults --only backup         one of them
    python -m tests.benchmarks.disk_faults --every 5             every fifth write; each fsync and rename

The faults are the system's own, put in by strace (skipped where there is none): ENOSPC and EIO at one call,
and ENOSPC from one call on, as on a disk that is full. After each: the database is sound and holds all that
it held, what is stored is what its digest says, nothing half done is to be seen, the reason is a sentence,
and the same again succeeds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from app.engine.checkpoints import save_checkpoint
from app.engine.session import RunSession
from app.jobs.process import run_job
from app.service.exports import verify_export
from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.settings import settings_for
from core.engine import Engine
from core.export import check_process
from core.files.publish import is_unfinished
from core.train.training_options import TrainingOptions
from storage.backup import backup, restore
from storage.blobs import BlobStore
from storage.tables import Adapter, Checkpoint, Export, Job, Run
from tests.conftest import make_llama, make_tokenizer
from tests.workbenches import STEADY, do_job, end_engine, write_rows

WRITES = ("write", "writev", "pwrite64", "sendfile", "copy_file_range")
CALLS = (*WRITES, "fsync", "fdatasync", "rename", "renameat", "renameat2")
FAULTS = {"ENOSPC": "", "EIO": "", "ENOSPC from there on": "+"}
UNTOLD = re.compile(r"Errno|Unexpected|Traceback|OperationalError|sqlalche|\[SQL", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """What is done again and again, and what must hold after it has failed."""

    do: Callable[[], object]
    """Done in a process of its own; raises what it is refused by."""
    require_none: Callable[[], None]
    require_done: Callable[[], None]


def main() -> None:
    """Print what was seen as JSON; an assertion that fails says what was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("checkpoint", "export", "backup", "restore"))
    parser.add_argument("--every", type=int, default=1, help="of the writes")
    chosen = parser.parse_args()
    if shutil.which("strace") is None:
        print(json.dumps({"skipped": "there is no strace"}))
        return
    os.environ["LORA_WORKBENCH_DTYPE"] = "float32"
    torch.set_num_threads(1)  # a forked process has none of the others
    tqdm.set_lock(threading.RLock())  # its own is shared with forked processes, which die holding it
    check_process.ask_process = check_process.check  # its process has torch to import each time
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_try_all(Path(folder), chosen.only, chosen.every), indent=2))


def _try_all(folder: Path, only: str | None, every: int) -> dict[str, object]:
    places = _places(folder)
    return {
        name: _try_place(name, place, folder, every) for name, place in places.items() if only in (None, name)
    }


def _try_place(name: str, place: Place, folder: Path, every: int) -> dict[str, object]:
    start, told = time.monotonic(), Counter[str]()
    trace = folder / "trace"
    outcome = _run(place, ["-o", str(trace), "-e", f"trace={','.join(CALLS)}"])
    assert outcome == "done", outcome
    place.require_done()
    counts = Counter(line.split(None, 1)[1].split("(")[0] for line in _lines(trace))
    for call in (one for one in CALLS if counts[one]):
        for number in range(1, counts[call] + 1, every if call in WRITES else 1):
            for fault, on in FAULTS.items():
                error = fault.split()[0]
                inject = f"inject={call}:error={error}:when={number}{on}"
                outcome = _run(place, ["-o", "/dev/null", "-e", f"trace={call}", "-e", inject])
                where = f"{name}: {fault} at {call} {number}: {outcome}"
                assert not UNTOLD.search(outcome), where
                try:
                    place.require_done() if outcome == "done" else place.require_none()
                    assert _run(place, []) == "done"
                    place.require_done()
                except Exception as lost:
                    raise AssertionError(where) from lost
                told[re.sub(r"/\S+|[\d.,]+ MB", "…", outcome)[:90]] += 1
        print(f"{name}: {counts[call]} × {call}, {time.monotonic() - start:.0f} s", flush=True)
    return {"calls": counts, "said": dict(told.most_common()), "seconds": round(time.monotonic() - start)}


def _lines(trace: Path) -> list[str]:
    return [line for line in trace.read_text().splitlines() if "(" in line and "resumed" not in line]


def _run(place: Place, strace: list[str]) -> str:
    """Do it in a forked process, under strace if that is given options. Returns done, or what was said."""
    said = mmap.mmap(-1, 1 << 16)  # tells without a system call, which would be counted
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            place.do()
            text = "done"
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is looked at)
            text = plain_sentence(error) if str(error) else repr(error)
        said[: len(text.encode())] = text.encode()
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    tracer = _attached(child, strace) if strace else None
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    if tracer is not None:
        tracer.wait()
    return said[:].rstrip(b"\0").decode() or "ended without a word"


def _attached(child: int, options: list[str]) -> subprocess.Popen[str]:
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(child), *options],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline(), "strace may not attach here"
    return tracer


# What is done.


def _places(folder: Path) -> dict[str, Place]:
    workbench = Workbench(settings_for(folder / "home"))
    model = make_llama(folder / "llama", make_tokenizer())
    do_job(workbench, "add_model", {"origin": str(model), "name": "llama"})
    workbench.datasets.add(write_rows(folder / "rows.jsonl"), "data")
    session, run_id, engine = _session(workbench)
    found = {
        "checkpoint": _checkpoint(workbench, session, run_id, engine),
        "export": _export(workbench, folder),
        "backup": _backup(workbench, folder / "home.backup"),
        "restore": _restore(workbench, folder),
    }
    workbench.registry.database.close()
    end_engine(workbench.settings)
    return found


def _session(workbench: Workbench) -> tuple[RunSession, int, Engine]:
    """A run that has a checkpoint, and an adapter made of it."""
    import torch

    workbench.engine.wake = lambda: None  # type: ignore[method-assign]
    engine = Engine(dtype=torch.float32)
    options = TrainingOptions.parse({**STEADY, "max_steps": 4000, "eval_steps": 100_000})
    run_id = workbench.training.start("llama", "data", options, "mine").id or 0
    session = RunSession(workbench.registry, engine, workbench.registry.queue.next(), workbench.settings)
    while not workbench.registry.checkpoints.of(run_id):
        session.advance()
    workbench.runs.keep(run_id, name="adapter")
    return session, run_id, engine


def _anew(workbench: Workbench) -> None:
    """A forked process has connections of its own."""
    workbench.registry.database._engine.dispose(close=False)


def _require_sound(workbench: Workbench) -> None:
    """What was there is there, and is what it was."""
    _anew(workbench)
    with closing(sqlite3.connect(workbench.settings.database)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    registry = workbench.registry
    for digest in registry.referenced():
        registry.blobs.verify(digest)
    assert registry.names(Adapter) >= {"adapter"}


def _checkpoint(workbench: Workbench, session: RunSession, run_id: int, engine: Engine) -> Place:
    registry, group = workbench.registry, session._group
    assert group is not None
    adapter, state = group.adapter(run_id), group.state(run_id)
    kept = [(row.id, row.adapter_digest) for row in registry.checkpoints.of(run_id)]

    def do() -> None:
        _anew(workbench)
        save_checkpoint(registry, registry.get(Run, run_id), engine, adapter, state)

    def forget_new() -> None:
        known = {row_id for row_id, _ in kept}
        registry.checkpoints.forget([row for row in registry.all(Checkpoint) if row.id not in known])

    def require_none() -> None:
        _require_sound(workbench)
        found = [(row.id, row.adapter_digest) for row in registry.checkpoints.of(run_id)]
        assert set(kept) <= set(found), "an earlier checkpoint is lost"
        forget_new()

    def require_done() -> None:
        _require_sound(workbench)
        found = {row.id for row in registry.checkpoints.of(run_id)}
        assert found > {row_id for row_id, _ in kept}, "no new checkpoint"
        forget_new()

    return Place(do, require_none, require_done)


def _export(workbench: Workbench, folder: Path) -> Place:
    registry, target = workbench.registry, folder / "out" / "export"
    arguments = {"adapter": "adapter", "folder": str(target), "config": {"format": "safetensors"}}

    def do() -> None:
        _anew(workbench)
        job = registry.save(Job(kind="export_adapter", title="Export", arguments=arguments))
        run_job(workbench.settings, job.id or 0)
        done = registry.get(Job, job.id or 0)
        if done.state != "finished":
            raise OSError(done.message)

    def require_none() -> None:
        _require_sound(workbench)
        workbench.jobs.notice_deaths()
        assert registry.all(Export) == []
        assert not target.exists() or is_unfinished(target), "what nobody registered looks done"

    def require_done() -> None:
        _require_sound(workbench)
        (row,) = registry.all(Export)
        verify_export(row)
        for table in ("export", "base"):
            with closing(sqlite3.connect(workbench.settings.database)) as connection, connection:
                connection.execute(f"delete from {table} where folder like '%out/export'")
        shutil.rmtree(target)

    return Place(do, require_none, require_done)


def _backup(workbench: Workbench, file: Path) -> Place:
    def do() -> None:
        _anew(workbench)
        backup(workbench.registry, file, lambda what, share: None)

    def require_none() -> None:
        _require_sound(workbench)
        assert not file.exists()
        assert list(file.parent.glob(f".{file.name}*")) == []

    def require_done() -> None:
        _require_sound(workbench)
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
        file.unlink()

    return Place(do, require_none, require_done)


def _restore(workbench: Workbench, folder: Path) -> Place:
    file = folder / "whole.backup"
    backup(workbench.registry, file, lambda what, share: None)
    settings = settings_for(folder / "restored")
    earlier = Workbench(settings)
    earlier.registry.save(Job(kind="none", title="what was there before"))
    earlier.close()
    before = folder / "before.db"
    shutil.copyfile(settings.database, before)

    def do() -> None:
        blobs = BlobStore(settings.blobs)
        restore(file, settings.database, blobs, lambda what, share: None, replace=True)

    def titles(database: Path) -> list[str]:
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
            return [row[0] for row in connection.execute("select title from job")]

    def require_none() -> None:
        if titles(settings.database) != ["what was there before"]:
            require_done()  # which is said, too: all of it is there, or nothing

    def require_done() -> None:
        restored = Workbench(settings)
        _require_sound(restored)
        restored.close()
        kept = list(settings.home.glob("registry-before-restore-*.db"))
        assert kept, "what was there is not kept"
        for one in kept:
            assert titles(one) in (["what was there before"], titles(settings.database)), "it is not whole"
        for path in settings.home.glob("registry-before-restore-*"):
            path.unlink()
        assert list(settings.home.glob(".restore-*")) == []
        shutil.rmtree(settings.blobs)
        shutil.copyfile(before, settings.database)

    return Place(do, require_none, require_done)


if __name__ == "__main__":
    sys.exit(main())
