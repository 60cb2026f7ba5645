"""What a tick of the live page costs the server with many points stored, and what it sends.

python -m tests.benchmarks.page --points 100000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from app.web.parts.curve import MOST_POINTS, run_news
from app.web.parts.head import activity_html, masthead_html
from app.web.parts.picker import Query
from app.web.sections.runs.listing import find
from storage.tables import RUNNING, Point, Run
from tests.benchmarks.report import show

_REPEATS = 50


def main() -> None:
    """Print the median and the slowest of each part in milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100_000)
    count = parser.parse_args().points
    with tempfile.TemporaryDirectory() as folder:
        workbench = Workbench(settings_for(Path(folder)))
        run = _run(workbench, count)
        last = workbench.registry.measurements.last_point(run)
        assert last is not None
        news = {"runs": [[run, last.id]], "main": run, "samples": 0, "notes": 0, "started": None}
        first = {**news, "runs": [[run, 0]]}
        rows = [
            _timed("a tick: nothing new", lambda: run_news(workbench, news)),
            _timed(
                "a tick: one new point", lambda: (_add(workbench, run, count), run_news(workbench, news))[1]
            ),
            _timed(f"first load: {MOST_POINTS:,} points", lambda: run_news(workbench, first)),
            _timed("the rest of a tick: masthead, jobs, change count", lambda: _rest(workbench)),
            _timed("the list of runs", lambda: asdict(find(workbench, Query()))),
        ]
        show(f"page, {count:,} points stored", rows)


def _timed(what: str, work: Callable[[], object]) -> dict[str, object]:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        answer = work()
        times.append(1000 * (time.perf_counter() - start))
    return {
        "what": what,
        "median ms": statistics.median(times),
        "slowest ms": max(times),
        "bytes": len(json.dumps(answer, default=str)),
    }


def _run(workbench: Workbench, count: int) -> int:
    row = workbench.registry.save(
        Run(
            name="long",
            base_id=1,
            base_name="base",
            base_fingerprint="f",
            dataset_id=1,
            dataset_name="data",
            dataset_digest="d",
            config={"lora": {}, "train": {}},
            state=RUNNING,
            started=time.time(),
            details={"total_steps": count},
        )
    )
    for start in range(0, count, 10_000):
        steps = range(start + 1, min(count, start + 10_000) + 1)
        workbench.registry.measurements.add_points([_point(row.id or 0, step) for step in steps])
    return row.id or 0


def _point(run: int, step: int) -> Point:
    return Point(
        run_id=run,
        step=step,
        epoch=step / 100,
        loss=2.0 + 1.0 / step,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens_per_second=100.0,
        memory_bytes=1 << 30,
        seconds_left=1.0,
        tokens=step * 100,
        seconds=float(step),
    )


def _add(workbench: Workbench, run: int, count: int) -> None:
    workbench.registry.measurements.add_points([_point(run, count + 1)])


def _rest(workbench: Workbench) -> object:
    return masthead_html(workbench), activity_html(workbench), workbench.registry.change_count()


if __name__ == "__main__":
    main()
