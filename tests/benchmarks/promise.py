"""What "Measure first" and the plan promise against what the run then takes, through a whole workbench.

python -m tests.benchmarks.promise --shape starter 1b --steps 200        with a GPU
python -m tests.benchmarks.promise --shape tiny --steps 200              on a CPU
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from core.train.training_options import TrainingOptions
from tests.benchmarks.report import show
from tests.benchmarks.shapes import ALPHA, RANK, build
from tests.conftest import make_llama, make_tokenizer
from tests.workbenches import do_job, end_engine

_ROWS = 2000
_WORK = {
    "tiny": (4, 256),
    "starter": (16, 512),
    "1b": (8, 512),
    "8b": (4, 1024),
}
"""Blocks in a micro-batch, and the max length."""


def write_base(shape: str, folder: Path) -> Path:
    """A base of this shape with random weights and a tiny tokenizer, as files."""
    tokenizer = make_tokenizer()
    if shape == "tiny":
        return make_llama(folder, tokenizer)
    model = build(shape)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, longest: int, even: bool) -> Path:
    """Conversations of many lengths, in characters up to about `longest` tokens, or all of one length."""
    generator = np.random.default_rng(1)
    with path.open("w") as file:
        for number in range(_ROWS):
            words = longest // 3 if even else int(generator.integers(longest // 32 + 1, longest // 3))
            text = " ".join(str(word) for word in generator.integers(10, 99, words))
            turns = [{"role": "user", "content": f"number {number}"}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def promised_and_taken(workbench: Workbench, base: str, data: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run. The base is resident and the rows are rendered when it begins."""
    options = TrainingOptions.parse(chosen)
    found, _ = workbench.training.measure(base, data, [options])
    run = workbench.runs.wait(workbench.training.start(base, data, options).id)
    if run.state != "finished" or run.ended is None or run.started is None:
        raise RuntimeError(f"The run ended as {run.state}: {run.reason}")
    points = [one for one in workbench.registry.measurements.points(run.id or 0) if one.seconds]
    plan = workbench.training.estimate(base, data, options)
    whole = run.ended - run.started
    return {
        "promised ÷ taken": found["seconds"] / whole,
        "plan of the next ÷ taken": (plan.seconds or 0.0) / whole,
        "promised s": found["seconds"],
        "taken s": whole,
        "promised s/step": found["seconds_a_step"],
        "s/step of the first ten": (points[min(9, len(points) - 1)].seconds or 0.0) / min(10, len(points)),
        "of all": (points[-1].seconds or 0.0) / len(points),
        "promised evaluations s": found["evaluating_seconds"],
        "promised checkpoints s": found["saving_seconds"],
        "log": [one.text for one in workbench.registry.measurements.notes(run.id or 0)][-6:],
    }


def cases(shape: str, steps: int) -> Sequence[tuple[str, bool, dict[str, Any]]]:
    """What is tried with a shape: a name, whether all rows are as long, and options."""
    size, length = _WORK[shape]
    common = {
        "max_steps": steps,
        "micro_batch_size": size,
        "max_length": length,
        "rank": RANK,
        "alpha": ALPHA,
    }
    return [
        ("packed", False, {**common, "packing": "on", "gradient_accumulation_steps": 1}),
        ("rows of many lengths", False, {**common, "packing": "off", "gradient_accumulation_steps": 2}),
        ("rows of one length", True, {**common, "packing": "off", "gradient_accumulation_steps": 1}),
    ]


def main() -> None:
    """Print a row for each shape and kind of work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=sorted(_WORK), default=["tiny"])
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workbench = Workbench(settings_for(folder / "home"))
        for shape in given.shape:
            do_job(workbench, "add_model", {"origin": str(write_base(shape, folder / shape)), "name": shape})
            for even in (False, True):
                path = write_rows(folder / f"{shape}-{even}.jsonl", _WORK[shape][1], even)
                workbench.datasets.add(path, f"{shape}-{even}")
            for what, even, chosen in cases(shape, given.steps):
                found = promised_and_taken(workbench, shape, f"{shape}-{even}", chosen)
                print(shape, what, json.dumps(found), flush=True)
                found.pop("log")
                rows.append({"work": f"{shape}, {what}", **found})
        show(f"promised time, {given.steps} steps", rows)
        workbench.close()
        end_engine(workbench.settings)


if __name__ == "__main__":
    main()
