"""Measure, before a run starts, what it will take: a few micro-batches of its longest blocks,
on the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from core.base_model.load import ResidentBase
from core.events import MicroBatchDone, Notice, RunFailed, StepDone
from core.train.batches import RunData
from core.train.group import TrainingGroup
from core.train.hardware import PeakMemory
from core.train.memory import memory_figures, ran_out_of_memory
from core.train.run import RunRequest
from core.train.step_count import planned_steps

_STEPS = {
    "cuda": 6,
    "cpu": 3,
}  # three before a CUDA graph may be captured, the capture, and two that show its pace
_STATE_BYTES = 12  # of one trained number in a checkpoint: itself and Adam's two moments, float32
_CHECKPOINTS = 4  # three are kept, one is being written


@dataclass(frozen=True)
class Preflight:
    """What was measured."""

    fits: bool
    squeezed: bool
    """Whether it only fits in smaller pieces or recomputed, as the notices say."""
    peak_bytes: int
    """Of the device's memory, the base and everything else resident counted; on a CPU of this process."""
    total_bytes: int
    seconds_a_step: float
    """Of the longest blocks."""
    steps: int
    seconds: float
    """For the whole run without its evaluations, if every block were as long as the longest."""
    disk_bytes: int
    """That the run's checkpoints take at most."""
    together: int
    """Runs that were measured at once."""
    notices: tuple[str, ...]
    """What had to be done to make it fit, or why it does not."""

    @property
    def verdict(self) -> str:
        """In a few words."""
        return "does not fit" if not self.fits else "fits in smaller pieces" if self.squeezed else "fits"


def measure(base: ResidentBase, requests: Sequence[RunRequest]) -> Iterator[Preflight | None]:
    """Yield None after each micro-batch, then the result.

    Raises what makes a run impossible whatever its size.
    """
    data = {request.key: RunData(request.rows, request.options.train) for request in requests}
    group = TrainingGroup(
        base, [_tried(request, data[request.key], base.device.type) for request in requests]
    )
    peak, notices, times = PeakMemory(base.device), dict[str, None](), [time.perf_counter()]
    members, parameters, fits = {request.key for request in requests}, 0, True
    try:
        for _, event in group.run():
            if isinstance(event, RunFailed):
                raise event.error
            if isinstance(event, Notice):
                notices[event.text] = None
            if isinstance(event, StepDone):
                times.append(time.perf_counter())
            if isinstance(event, MicroBatchDone):
                members, parameters = (
                    {run.key for run in group.runs},
                    sum(run.parameters for run in group.runs),
                )
                yield None
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        fits = False
        notices[
            (
                "Even one block at a time with every layer computed again is too much: "
                f"{memory_figures(base.device)}."
            )
        ] = None
    chosen = [request for request in requests if request.key in members]
    steps = max(planned_steps(len(data[one.key].blocks), one.options.train) for one in chosen)
    pace = _pace(times, len(chosen)) * max(one.options.train.gradient_accumulation_steps for one in chosen)
    yield Preflight(
        fits=fits,
        squeezed=group.squeezed,
        peak_bytes=peak.bytes,
        total_bytes=peak.total,
        seconds_a_step=pace,
        steps=steps,
        seconds=pace * steps,
        disk_bytes=parameters * _STATE_BYTES * _CHECKPOINTS,
        together=len(chosen),
        notices=tuple(notices),
    )


def _pace(times: Sequence[float], runs: int) -> float:
    """Seconds a step at the end of the trial, when everything is warm; `times` is its start and the end of
    each run's steps.

    On an accelerator the last two steps are told together, so they are taken together.
    """
    ends = [times[0], *times[runs::runs]]
    last = min(2, len(ends) - 1)
    return (ends[-1] - ends[-1 - last]) / last if last else 0.0


def _tried(request: RunRequest, data: RunData, device: str) -> RunRequest:
    """The same run for a few steps of one micro-batch, all of the longest blocks; packed as the whole run
    would be.
    """
    train = request.options.train
    short = replace(
        train,
        max_steps=_STEPS.get(device, 2),
        gradient_accumulation_steps=1,
        packing="on" if data.packed else "off",
        compile="off" if train.compile == "auto" else train.compile,
    )
    options = replace(request.options, train=short)
    return replace(request, longest_first=True, resume=None, changes=(), options=options)
