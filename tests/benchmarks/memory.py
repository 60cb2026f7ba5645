"""What preflight says against what the run then takes; and runs that are too large for a device with less
memory.

python -m tests.benchmarks.memory                the peak, for the shapes of the starter, 1B and 8B
python -m tests.benchmarks.memory --pressure     the same work with ever less memory
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence

import numpy as np
import torch

from core.base_model.load import ResidentBase
from core.events import Notice, StepDone
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.memory import ran_out_of_memory
from core.train.preflight import measure
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.benchmarks.report import show
from tests.benchmarks.shapes import ALPHA, DEVICE, RANK, RandomRows, resident

WORK = (("starter", 16, 512), ("1b", 8, 512), ("8b", 4, 1024))
_STEPS, _GIB = 10, 2**30


class UnevenRows(RandomRows):
    """Rows from a sixteenth of the length to all of it, some for validation, as real data has them."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        super().__init__(count, length, vocabulary)
        self.lengths = np.random.default_rng(1).integers(length // 16, length + 1, count)
        self.lengths[0] = length
        self.supervised = self.lengths - 1
        self.validation = np.arange(count) % 20 == 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = self._ids[index][: self.lengths[index]]
        return part, part


def request(base: ResidentBase, rows: RandomRows, blocks: int, length: int, **options: object) -> RunRequest:
    """One run of a few steps."""
    chosen = {
        "micro_batch_size": blocks,
        "gradient_accumulation_steps": 2,
        "max_length": length,
        "max_steps": _STEPS,
        "learning_rate": 1e-4,
        "eval_steps": 5,
        "packing": "off",
        **options,
    }
    given = TrainingOptions(LoraConfig(rank=RANK, alpha=ALPHA), TrainConfig(**chosen))  # type: ignore[arg-type]
    return RunRequest("run", rows, given)


def peaks(work: Sequence[tuple[str, int, int]]) -> list[dict[str, object]]:
    """Preflight's peak against the run's, for rows of one length and of many."""
    found: list[dict[str, object]] = []
    for shape, blocks, length in work:
        base = resident(shape)
        vocabulary = base.model.config.vocab_size
        for kind, rows in (
            ("even", RandomRows(400, length, vocabulary)),
            ("uneven", UnevenRows(400, length, vocabulary)),
        ):
            *_, before = measure(base, [request(base, rows, blocks, length)], lambda *state: None)
            _forget()
            group, taken = TrainingGroup(base, [request(base, rows, blocks, length)]), 0
            for event in alone(group):
                if isinstance(event, StepDone):
                    taken, pace = event.memory_bytes, event.total_seconds / event.step
            assert before is not None
            found.append(
                {
                    "shape": f"{shape} {blocks}×{length} {kind}",
                    "preflight ÷ run": before.peak_bytes / taken,
                    "preflight GiB": before.peak_bytes / _GIB,
                    "run GiB": taken / _GIB,
                    "preflight s/step": before.seconds_a_step,
                    "run s/step": pace,
                }
            )
            del group
            _forget()
        del base
        _forget()
    return found


def pressure(shape: str, blocks: int, length: int) -> list[dict[str, object]]:
    """The same run with less and less of the device's memory, until nothing helps; then once more with all of
    it.
    """
    base = resident(shape)
    rows, total = (
        UnevenRows(200, length, base.model.config.vocab_size),
        torch.cuda.get_device_properties(DEVICE).total_memory,
    )
    found: list[dict[str, object]] = []
    held, free_peak = torch.cuda.memory_allocated(), 0
    for share in (None, 0.7, 0.4, 0.25, 0.03, None):
        if share is not None:  # of what the run takes beside the base
            torch.cuda.set_per_process_memory_fraction(min(1.0, (held + share * free_peak) / total))
        losses, notices, failed = [], [], ""
        try:
            for event in alone(TrainingGroup(base, [request(base, rows, blocks, length)])):
                if isinstance(event, StepDone):
                    losses.append(event.loss)
                    peak = event.memory_bytes
                if isinstance(event, Notice):
                    notices.append(event.text.rpartition(": ")[2])
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            failed = "out of memory"
        torch.cuda.set_per_process_memory_fraction(1.0)
        if not free_peak:
            free_peak, reference = peak - held, losses[-1]
        found.append(
            {
                "memory beside the base GiB": "all" if share is None else f"{share * free_peak / _GIB:.2f}",
                "final loss": losses[-1] if len(losses) == _STEPS else failed,
                "relative difference": abs(losses[-1] / reference - 1) if len(losses) == _STEPS else "",
                "how": "; ".join(notices[-1:]) or ("as planned" if not failed else ""),
            }
        )
        _forget()
    return found


def _forget() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pressure", action="store_true")
    parser.add_argument("--shapes", default=",".join(shape for shape, *_ in WORK))
    args = parser.parse_args()
    wanted = [one for one in WORK if one[0] in args.shapes.split(",")]
    if args.pressure:
        for shape, blocks, length in wanted:
            show(f"{shape} {blocks}×{length} under pressure", pressure(shape, blocks, length))
    else:
        show("preflight", peaks(wanted))


if __name__ == "__main__":
    main()
