"""What an adapter adds to the time of an answer: the plain base, the base with the adapter beside it, and
both merged, in turns on one device.

The measurement behind LoRA's claim of no additional latency (arXiv 2106.09685, section 4.1 and table 1), for
answers instead of single passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.base_model.load import ResidentBase
from core.events import Progress
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.state_pool import StatePool
from core.lora.adapter import AdapterWeights
from core.lora.mixed_bank import Bank, loaded_bank
from core.reporting import Report

WAYS = ("base", "adapter", "merged")
_ROUNDS = 7
_NEVER: frozenset[int] = frozenset()  # no token ends an answer: all are of one length


@dataclass(frozen=True)
class Load:
    """What is answered: so many rows at once, each with a prompt of so many tokens and so many new ones."""

    rows: int
    prompt: int
    new: int


LOADS = (Load(1, 128, 32), Load(8, 128, 32))


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds, in seconds, and how far the rounds lie apart (the range over the median)."""

    first: float
    """Until the first token of every row is there."""
    token: float
    """From each further token of all rows to the next."""
    spread: float
    """Of `token`."""


@dataclass(frozen=True)
class Latency:
    """One load, by the ways of WAYS."""

    load: Load
    ways: dict[str, Timing]


def measure_latency(
    base: ResidentBase,
    adapter: AdapterWeights,
    merged: ResidentBase,
    report: Report,
    loads: Sequence[Load] = LOADS,
    rounds: int = _ROUNDS,
) -> list[Latency]:
    """The times of each load. Both models are on the same device, and compute in the same dtype.

    Each round takes all three in turn, so that a clock that changes meets them alike; a first round, which
    allocates and captures, is not counted. Raises InvalidInput if a load is longer than the model's context.
    """
    bank = loaded_bank(base.layers, [adapter])
    ways: dict[str, tuple[ResidentBase, Bank | None, StatePool]] = {
        "base": (base, None, StatePool(base)),
        "adapter": (base, bank, StatePool(base)),
        "merged": (merged, None, StatePool(merged)),
    }
    found = []
    for number, load in enumerate(loads):
        seen: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for turn in range(rounds + 1):
            share = (number + turn / (rounds + 1)) / len(loads)
            report(Progress(f"Answering {load.rows} at once, round {turn} of {rounds}", share))
            for way in WAYS:
                seen[way].append(_once(*ways[way], load))
        found.append(Latency(load, {way: _median(times[1:]) for way, times in seen.items()}))
    return found


def _once(base: ResidentBase, bank: Bank | None, pool: StatePool, load: Load) -> tuple[float, float]:
    """Seconds until the first tokens, and for each that follows."""
    numbers = torch.Generator().manual_seed(0)
    highest = int(base.model.config.get_text_config().vocab_size)
    config = GenerationConfig(max_tokens=load.new, temperature=0.0)
    prompts = torch.randint(highest, (load.rows, load.prompt), generator=numbers).tolist()
    requests = [RowRequest(prompt, 0, config) for prompt in prompts]
    decoder = Decoder(base, bank, requests, pool, ends=_NEVER)
    begun, told = time.perf_counter(), []
    for events in decoder.steps():
        if events:
            told.append(time.perf_counter())
    return told[0] - begun, (told[-1] - told[0]) / max(1, len(told) - 1)


def _median(times: Sequence[tuple[float, float]]) -> Timing:
    first, token = ([one[at] for one in times] for at in (0, 1))
    middle = statistics.median(token)
    return Timing(statistics.median(first), middle, (max(token) - min(token)) / middle)
