"""Measure, before a run starts, what it will take: a few of its micro-batches, on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from core.base_model.load import ResidentBase
from core.events import MicroBatchDone, Notice, RunFailed, TrainingDone
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.executing import COMPILE_GAIN, COMPILE_SECONDS, compiling_pays
from core.train.group import TrainingGroup
from core.train.hardware import PeakMemory
from core.train.memory import memory_figures, ran_out_of_memory
from core.train.pace import PlannedTime, TrialTimes, checkpoints, training_seconds
from core.train.run import RunRequest
from core.train.share import ALL, FirstOf, Share
from core.train.step_count import evaluations, planned_steps
from core.train.trial import Save, Trial, padded_tokens, shape_of

_STATE_BYTES = 12  # of one trained number in a checkpoint: itself and Adam's two moments, float32
_CHECKPOINTS = 4  # three are kept, one is being written
_LOOKED_AT = 1000  # steps of a run whose sizes are looked at; the others are taken to be like them


@dataclass(frozen=True)
class Trying:
    """What is said after each micro-batch."""

    share: float
    """Of the trial, from 0 to 1."""


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
    """On average over the run, the slower first ones counted; 0 if it does not fit, as are all seconds."""
    steps: int
    seconds: float
    """For the whole run: its start, steps, evaluations and checkpoints; not loading the base, reading the
    rows and answering sample prompts.
    """
    evaluating_seconds: float
    """Of these, for evaluations."""
    saving_seconds: float
    """Of these, for checkpoints and the adapter."""
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


def measure(
    base: ResidentBase,
    requests: Sequence[RunRequest],
    save: Save,
    share: Share | None = None,
    hand_out: Callable[[Sequence[RunRequest]], None] = lambda tried: None,
) -> Iterator[Preflight | Trying]:
    """Yield how far it is after each micro-batch, then the result. `save` is called once for each run. share:
    where other processes take part, to which hand_out() gives what is tried; else this one computes its part
    by itself.

    Raises what makes a run impossible whatever its size.
    """
    data = {
        request.key: RunData(request.rows, request.options.train, may_pack=base.way.quick)
        for request in requests
    }
    trial = Trial(base.device, data)
    processes = requests[0].options.train.processes
    share = share or (FirstOf(processes) if processes > 1 else ALL)
    tried = [trial.request(request) for request in requests]
    hand_out(tried)
    group = TrainingGroup(base, tried, share=share)
    peak, notices, fits = PeakMemory(base.device), dict[str, None](), True
    parameters: dict[Hashable, int] = {}
    try:
        for key, event in group.run():
            if isinstance(event, RunFailed):
                raise event.error
            if isinstance(event, Notice):
                notices[event.text] = None
            if isinstance(event, MicroBatchDone):
                parameters = parameters or {run.key: run.parameters for run in group.runs}
                trial.micro_batch_done(list(parameters))
                yield Trying(trial.share)
            trial.note(event)
            if isinstance(event, TrainingDone):
                trial.time_saving(group, key, save)
                if key == list(parameters)[-1]:
                    break  # others wait for their turn, and would take as long again
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        fits = False
        notices[
            (f"Even one block at a time is too much where {group.plan}: {memory_figures(base.device)}.")
        ] = None
    chosen = [request.options.train for request in requests if request.key in (parameters or data)]
    if not base.way.quick or share.in_step:
        chosen = [replace(one, compile="off") for one in chosen]
    steps = max(
        planned_steps(len(one.blocks), config) for one, config in zip(trial.data, chosen, strict=True)
    )
    spent = planned_time(trial.times(), trial.data, chosen, base.device) if fits else PlannedTime()
    yield Preflight(
        fits=fits,
        squeezed=group.squeezed,
        peak_bytes=peak.bytes,
        total_bytes=peak.total,
        seconds_a_step=spent.training / steps,
        steps=steps,
        seconds=spent.total,
        evaluating_seconds=spent.evaluating,
        saving_seconds=spent.saving,
        disk_bytes=sum(parameters.values()) * _STATE_BYTES * _CHECKPOINTS,
        together=len(chosen),
        notices=tuple(notices),
    )


def planned_time(
    times: TrialTimes, data: Sequence[RunData], configs: Sequence[TrainConfig], device: torch.device
) -> PlannedTime:
    """What the whole of the runs on these data will take, trained at once."""
    steps, longest, config = max(
        (
            (planned_steps(len(one.blocks), config), one, config)
            for one, config in zip(data, configs, strict=True)
        ),
        key=lambda run: run[0],
    )
    training = _training_seconds(times, data, steps, device)
    micro_batches = steps * config.gradient_accumulation_steps
    wants_compile = device.type == "cuda" and any(one.compile == "auto" for one in configs)
    if wants_compile and compiling_pays(micro_batches * times.usual.seconds):
        training = COMPILE_SECONDS + training * (1 - COMPILE_GAIN)
    evaluating = evaluations(steps, config) * _pass_seconds(times, data, device)
    spent = times.starting + training + evaluating
    saves = checkpoints(steps, spent, bool(longest.validation_blocks), config)
    return PlannedTime(times.starting, training, evaluating, saves * times.saving)


def _training_seconds(times: TrialTimes, data: Sequence[RunData], steps: int, device: torch.device) -> float:
    looked, shape = min(steps, _LOOKED_AT), shape_of(data, device)
    each = [itertools.islice(one.steps(), looked) for one in data]
    parts = itertools.zip_longest(*[[part for step in one for part in step.micro_batches] for one in each])
    return training_seconds(times, (padded_tokens(one, shape) for one in parts), steps / looked)


def _pass_seconds(times: TrialTimes, data: Sequence[RunData], device: torch.device) -> float:
    """For one pass over the validation rows."""
    if times.evaluated is None:
        return 0.0
    shape = shape_of(data, device)
    parts = itertools.zip_longest(*[one.validation() for one in data])
    return times.evaluated.seconds * sum(padded_tokens(one, shape) for one in parts) / times.evaluated.tokens
