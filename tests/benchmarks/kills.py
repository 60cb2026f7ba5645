"""Kill the engine at random times, again and again, and see that nothing is lost.

    python -m tests.benchmarks.kills --kills 200            a tiny model
    python -m tests.benchmarks.kills --kills 10 --starter   the starter model, which is fetched

Each run is killed by SIGKILL and resumed until it ends. After every kill: the database is sound, every
checkpoint there is reads back under its digest, and no more than one checkpoint interval of steps is lost. In
the end: the same digest and the same measurements as the run that was never interrupted.
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
from pathlib import Path

from app.service.workbench import Workbench
from app.shared import engine_client
from app.shared.settings import settings_for
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Run
from tests.workbenches import do_job, end_engine, wait_for, write_rows
from tests.zygote import Zygote

EVERY = 10
TINY = {
    "max_steps": 200,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "rank": 2,
    "learning_rate": 1e-3,
    "dropout": 0.1,
    "save_steps": EVERY,
    "save_minutes": 0,
    "eval_steps": 50,
}
STARTER = {
    "max_steps": 24,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "rank": 4,
    "learning_rate": 1e-3,
    "dropout": 0.1,
    "save_steps": 4,
    "save_minutes": 0,
    "eval_steps": 12,
    "max_length": 64,
}


def main() -> None:
    """Print what was seen as JSON; an assertion that fails says what was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--starter", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    zygote = Zygote()
    zygote.wait_until_ready()
    engine_client.start_detached = zygote.start  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(
                _kill_runs(Path(folder), chosen.kills, chosen.starter, random.Random(chosen.seed)), indent=2
            )
        )
    zygote.close()


def _kill_runs(folder: Path, kills: int, starter: bool, chance: random.Random) -> dict[str, object]:
    os.environ["LORA_WORKBENCH_DTYPE"] = "bfloat16" if starter else "float32"
    workbench, options = _home(folder, starter), STARTER if starter else TINY
    start = time.monotonic()
    whole = workbench.runs.wait(
        workbench.training.start("base", "data", TrainingOptions.parse(options), "whole").id or 0
    )
    assert whole.state == "finished", whole.reason
    seconds = max(1.0, (workbench.registry.measurements.last_point(whole.id or 0).seconds or 0.0))  # type: ignore[union-attr]
    digest, measured = workbench.registry.find(Adapter, "whole").digest, _measured(workbench, whole)
    killed = runs = lost = in_flight = 0
    while killed < kills:
        runs += 1
        run = workbench.training.start("base", "data", TrainingOptions.parse(options), f"killed {runs}")
        for _ in range(6):  # then it may end
            if killed >= kills:
                break
            wait_for(lambda: workbench.engine.status() is not None)
            time.sleep(chance.uniform(0.0, 0.5 * seconds))
            now = workbench.registry.get(Run, run.id or 0)
            if not now.active:
                break
            before = len(_measured(workbench, run)[0])
            in_flight += now.state == "running"
            status = workbench.engine.status()
            if status is None:
                continue
            os.kill(status["pid"], signal.SIGKILL)
            wait_for(lambda: not workbench.engine.alive)
            workbench.notice_deaths()
            killed += 1
            lost = max(lost, _require_sound(workbench, run, before, options["save_steps"]))
            workbench.runs.resume(run.id or 0)
        done = workbench.runs.wait(run.id or 0)
        assert done.state == "finished", done.reason
        assert workbench.registry.find(Adapter, f"killed {runs}").digest == digest, (
            f"run {run.id} ended with another adapter"
        )
        assert _measured(workbench, run) == measured, f"run {run.id} measured something else"
        print(f"{killed} kills, {runs} runs, {time.monotonic() - start:.0f} s", flush=True)
    workbench.close()
    end_engine(workbench.settings)
    return {
        "kills": killed,
        "while training": in_flight,
        "runs": runs,
        "all digests equal": True,
        "most steps lost": lost,
        "interval": options["save_steps"],
        "seconds": round(time.monotonic() - start),
    }


def _require_sound(workbench: Workbench, run: Run, before: int, interval: object) -> int:
    """How many measured steps were lost by a kill."""
    with sqlite3.connect(workbench.settings.database) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    saved = workbench.registry.checkpoints.of(run.id or 0)
    for one in saved:
        workbench.registry.blobs.verify(one.adapter_digest)
        workbench.registry.blobs.verify(one.state_digest)
    lost = max(0, before - (saved[0].step if saved else 0))
    assert lost <= int(str(interval)), f"{lost} steps lost"
    return lost


def _measured(workbench: Workbench, run: Run) -> tuple[list[object], list[object]]:
    points = workbench.registry.measurements.points(run.id or 0)
    return (
        [(one.step, one.loss, one.tokens) for one in points if one.loss is not None],
        [(one.step, one.validation_loss) for one in points if one.validation_loss is not None],
    )


def _home(folder: Path, starter: bool) -> Workbench:
    """A home with the base model "base" and the data set "data"."""
    settings = settings_for(folder / "home")
    workbench = Workbench(settings)
    if starter:
        do_job(workbench, "add_model", {"origin": "starter", "name": ""})
        row = workbench.registry.all(Base)[0]
        row.name = "base"
        workbench.registry.save(row)
    else:
        from tests.conftest import make_llama, make_tokenizer

        do_job(
            workbench,
            "add_model",
            {"origin": str(make_llama(folder / "llama", make_tokenizer())), "name": "base"},
        )
    workbench.datasets.add(write_rows(folder / "rows.jsonl"), "data")
    return workbench


if __name__ == "__main__":
    main()
