"""Our side of the training benchmarks: the product's own training group, on rows of random ids."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from core.base_model.load import ResidentBase
from core.events import Notice, RunFailed, StepDone
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.share import ALL, Share
from core.train.training_options import TrainingOptions
from tests.benchmarks.peer import wait
from tests.benchmarks.shapes import ALPHA, DEVICE, RANK, RandomRows

_LAST = 16  # losses that are told as their mean
LATE = 1 if DEVICE.type == "cuda" else 0
"""Steps that are launched already when one is told of: a GPU's figures come behind the next step."""


def requests(
    base: ResidentBase,
    runs: int,
    blocks: int,
    length: int,
    steps: int,
    kind: str = "lora",
    *,
    experts: bool = False,
    **options: object,
) -> list[RunRequest]:
    """`runs` runs of an adapter kind that train on `blocks` full blocks of `length` tokens a step; with
    `experts` on each expert, too.
    """
    vocabulary = base.model.config.vocab_size
    train = {
        "micro_batch_size": blocks,
        "gradient_accumulation_steps": 1,
        "max_length": length,
        "max_steps": steps,
        **dict.fromkeys(("packing", "compile"), "on" if base.way.quick else "auto"),
        **options,
    }
    lora = LoraConfig(kind, rank=RANK, alpha=ALPHA, target_parameters="experts" if experts else "")
    return [
        RunRequest(
            seed,
            RandomRows(2 * blocks, length, vocabulary, seed),
            TrainingOptions(lora, TrainConfig(seed=seed, **train)),  # type: ignore[arg-type]
        )
        for seed in range(runs)
    ]


def train(
    base: ResidentBase,
    wanted: Sequence[RunRequest],
    *,
    steps: int,
    warm_up: int,
    profile: bool = False,
    share: Share = ALL,
) -> tuple[float, float, list[str]]:
    """Tokens a second of all runs together, seconds until the first timed step, and the notices."""
    group = TrainingGroup(base, wanted, share=share)
    watch = (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        if profile
        else nullcontext()
    )
    done, tokens, notices, losses, begun = 0, 0, [], [], time.perf_counter()
    first_timed = (warm_up + LATE) * len(wanted)
    start = first = begun
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        if isinstance(event, Notice):
            notices.append(event.text)
        if isinstance(event, StepDone):
            graphs = group.graphs
            losses.append(event.loss)
            done += 1
            if done == warm_up * len(wanted):
                wait()
                start = first = time.perf_counter()
                watch.__enter__()
            if done > first_timed:
                tokens += event.tokens
    wait()
    seconds = time.perf_counter() - start
    notices += [f"captured graphs: {graphs}", f"last loss: {losses[-1]:.4f}"]
    notices.append(f"mean of the last {_LAST}: {statistics.mean(losses[-_LAST:]):.4f}")
    if profile:
        watch.__exit__(None, None, None)
        print(
            watch.key_averages().table(
                sort_by="self_device_time_total", row_limit=28, max_name_column_width=90
            )
        )
    return tokens / seconds, first - begun, notices
