"""Switching between adapters that are resident, while decoding: what it costs, and that nothing is compiled
or captured anew.

python -m tests.benchmarks.switch --shape 1b
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from core.adapter_slots import AdapterMemory, AdapterSlots
from core.adapter_source import AdapterSource
from core.base_model.load import ResidentBase
from core.generate.state_pool import StatePool
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.peft.files import save_adapter
from storage.blobs import BlobStore
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
        row |= _cold(base, Path(folder))
    show(f"switch {args.shape}", [row])


def _cold(base: ResidentBase, folder: Path) -> dict[str, object]:
    """What it takes until an adapter that is in no slot could answer: read and checked from its files, and
    from memory, each time in the place of another.
    """
    blobs, sources = BlobStore(folder / "blobs"), []
    for number in range(2 * ADAPTERS):
        with blobs.staging() as staged:
            (made := staged / "adapter").mkdir()
            save_adapter(made, _adapter(base, number))
            digest = blobs.put(made)
        checked = partial(blobs.verify, digest)
        sources.append(AdapterSource(str(number), checked, digest, base.fingerprint, base.name))
    slots, seconds = AdapterSlots(base, AdapterMemory(2**33)), []
    for source in [*sources, *sources]:
        peer.wait()
        start = time.perf_counter()
        slots.seat(source)()
        peer.wait()
        seconds.append(1e3 * (time.perf_counter() - start))
    files, memory = seconds[1 : len(sources)], seconds[len(sources) :]  # the first makes the bank
    found: dict[str, object] = {}
    for where, times in (("from its files", files), ("from memory", memory)):
        found |= {f"{where}: median ms": statistics.median(times), f"{where}: worst ms": max(times)}
    return found


def _adapter(base: ResidentBase, seed: int) -> AdapterWeights:
    torch.manual_seed(seed)
    layers = {
        path: LayerFactors(torch.randn(RANK, n_in), torch.randn(n_out, RANK), ALPHA / RANK)
        for path, (n_in, n_out) in base.layer_shapes.items()
        if path != base.head
    }
    return AdapterWeights(RANK, ALPHA, 0.0, layers, base.fingerprint, base.name)


if __name__ == "__main__":
    main()
