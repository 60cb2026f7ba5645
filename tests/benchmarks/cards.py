r"""Several cards: tokens a second of one card, of one group on all of them (data apart), of a group on each
(runs apart), and of one group on a base that lies in parts on all of them (base apart), all in one session.

python -m tests.benchmarks.cards --shape 8b --cards 2 --blocks 4 --length 1024
python -m tests.benchmarks.cards --shape 8b --cards 2 --blocks 4 --length 1024 --ways one,data
python -m tests.benchmarks.cards --shape 8b --layers 200 --cards 2 --blocks 1 --ways base --steps 3 \
    --warm-up 1 --most-gib 79 --how on   (a base of 83 GiB)
python -m tests.benchmarks.cards --shape 70b --cards 2 --blocks 1 --ways base --quantisation nf4   (20 GiB)
python -m tests.benchmarks.cards --shape tiny --cards 2 --blocks 2 --length 64 --steps 4   (no card: gloo)

--blocks are those of each card: data apart has `cards` times as many in a step. Each way has processes of
its own, which begin to count at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from core.base_model.quantisation import NONE, QUANTISATIONS
from core.train.accelerators import worker_device
from core.train.meeting import Meeting, store_in
from core.train.share import ALL
from tests.benchmarks import ours, peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import laid_out, resident

WAYS = ("one", "data", "runs", "base")


@dataclass(frozen=True)
class Work:
    """What every process is told."""

    shape: str
    layers: int
    blocks: int
    length: int
    steps: int
    warm_up: int
    quantisation: str
    most_gib: float
    how: str


def measure(work: Work, cards: int, ways: list[str]) -> list[dict[str, object]]:
    """One row for each way."""
    rows: list[dict[str, object]] = []
    for way in ways:
        found = _together(way, 1 if way == "one" else cards, work)
        speed = found[0]["tok/s"] if way in ("data", "base") else sum(one["tok/s"] for one in found)
        rows.append(
            {
                "way": way,
                "cards": len(found),
                "tok/s": speed,
                "peak GiB": max(one["peak GiB"] for one in found),
            }
        )
        rows[-1]["÷ one"] = speed / float(rows[0]["tok/s"])  # type: ignore[arg-type]
    return rows


def _together(way: str, cards: int, work: Work) -> list[dict[str, float]]:
    """What each process has measured."""
    with tempfile.TemporaryDirectory() as folder:
        about = {"way": way, "cards": cards, "work": asdict(work), "meeting": f"{folder}/meeting"}
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.benchmarks.cards",
                    "--process",
                    json.dumps({**about, "number": number}),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(cards)
        ]
        said = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit(f"{way}: a process has failed; what it says stands above")
    return [json.loads(one.strip().splitlines()[-1]) for one in said]


def _process(way: str, cards: int, work: dict[str, Any], meeting: str, number: int) -> None:
    """One of the processes; its last line is what it has measured."""
    begun, device = time.perf_counter(), worker_device(number)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // cards))
    what = Work(**work)
    if what.most_gib:
        peer.limit(device, what.most_gib)
    together = way in ("data", "base")
    share: Any = Meeting(store_in(Path(meeting), cards), number, cards).open(device, in_parts=way == "base")
    if way == "base":
        base = laid_out(what.shape, what.layers, device, what.quantisation)
    else:
        base = resident(what.shape, device=device, quantisation=what.quantisation)
    rows = what.blocks * (cards if together else 1)
    options = {"gradient_checkpointing": what.how} | ({} if device.type == "cuda" else {"compile": "off"})
    wanted = ours.requests(base, 1, rows, what.length, what.steps + what.warm_up, **options)
    dist.barrier()
    print(f"{way}, {number}: the base is there after {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    group_share = share if together else ALL
    speed, _, notices = ours.train(base, wanted, steps=what.steps, warm_up=what.warm_up, share=group_share)
    print(notices, file=sys.stderr)
    dist.barrier()
    share.leave()
    print(json.dumps({"tok/s": speed, "peak GiB": peer.peak_gib()}))


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--layers", type=int, default=0, help="of base apart, where not the shape's own")
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=8, help="steps before these")
    parser.add_argument("--most-gib", type=float, default=0.0, help="of each card, as if it had no more")
    parser.add_argument(
        "--how",
        default="auto",
        help="of gradient_checkpointing; auto sees all of a card, whatever --most-gib is",
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="some of them, with commas")
    parser.add_argument("--quantisation", default=NONE, choices=QUANTISATIONS, help="how the base is held")
    parser.add_argument("--process", type=json.loads, help="for itself")
    args = parser.parse_args()
    if args.process:
        _process(**args.process)
        return
    work = Work(**{field.name: getattr(args, field.name) for field in fields(Work)})
    rows = measure(work, args.cards, args.ways.split(","))
    show(f"cards {args.shape} {args.blocks}×{args.length} a card", rows)


if __name__ == "__main__":
    main()
