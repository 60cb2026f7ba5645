"""Switching between adapters that are resident, while decoding: what it costs, and that nothing is compiled
or captured anew.

python -m tests.benchmarks.switch --shape 1b
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from core.generate.state_pool import StatePool
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.peft.files import load_adapter, save_adapter
from tests.benchmarks import peer
from tests.benchmarks.decode import random_bank
from tests.benchmarks.report import show
from tests.benchmarks.shapes import ALPHA, DEVICE, RANK, resident

ADAPTERS, SWITCHES = 8, 100


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b")
    args = parser.parse_args()
    base = resident(args.shape)
    bank = random_bank(base, ADAPTERS)
    state = StatePool(base, compiled=DEVICE.type == "cuda").borrow(bank, 1, 512)
    state.positions.fill_(8)
    for _ in range(3):
        state.step()
    graph, compiled = state._graph, dict(counters["stats"])
    seconds, answers = [], set()
    for number in range(SWITCHES):
        state.positions.fill_(8)
        peer.wait()
        start = time.perf_counter()
        state.slots.fill_(1 + number % ADAPTERS)
        peer.wait()
        seconds.append(time.perf_counter() - start)
        answers.add(round(float(state.step().float().std()), 5))
    row = {
        "switches": SWITCHES,
        "median ms": 1e3 * statistics.median(seconds),
        "worst ms": 1e3 * max(seconds),
        "different answers": len(answers),
        "captured anew": int(state._graph is not graph),
        "compiled anew": counters["stats"]["unique_graphs"] - compiled.get("unique_graphs", 0),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder), _adapter(base))
        start = time.perf_counter()
        weights = load_adapter(Path(folder), base.layer_shapes, base.head)
        read = time.perf_counter()
        bank.load(1, weights)
        peer.wait()
        row |= {
            "a cold one: reading ms": 1e3 * (read - start),
            "and placing ms": 1e3 * (time.perf_counter() - read),
        }
    show(f"switch {args.shape}", [row])


def _adapter(base) -> AdapterWeights:  # type: ignore[no-untyped-def]
    layers = {
        path: LayerFactors(torch.randn(RANK, n_in), torch.randn(n_out, RANK), ALPHA / RANK)
        for path, (n_in, n_out) in base.layer_shapes.items()
        if path != base.head
    }
    return AdapterWeights(RANK, ALPHA, 0.0, layers, base.fingerprint, base.name)


if __name__ == "__main__":
    main()
