"""What work on weights costs: combining against PEFT, merging against copying, fingerprints.

python -m tests.benchmarks.merging --combine          four rank-16 adapters on one 4096×4096 layer, against
PEFT's svd python -m tests.benchmarks.merging --merge 8b FOLDER  a checkpoint of this shape, merged and copied
on FOLDER's disk
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn

from core.base_model.fingerprint import fingerprint
from core.combine.combining import Part, combine
from core.combine.config import CombineConfig
from core.files.safetensors_file import build_header
from core.lora.adapter import AdapterWeights, LayerFactors
from core.merge.merge import merge_into_base
from core.reporting import silent
from tests.benchmarks.report import show
from tests.benchmarks.shapes import RANK, SHAPES

_SIDE, _PARENTS, _SHARD = 4096, 4, 5_000_000_000
_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """The best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def combining() -> list[dict[str, Any]]:
    """The same four adapters, combined by us and by PEFT,
    and how far both are from the sum they stand for.
    """
    torch.manual_seed(0)
    factors = [(torch.randn(RANK, _SIDE) / 64, torch.randn(_SIDE, RANK) / 64) for _ in range(_PARENTS)]
    parts = [
        Part(f"a{at}", AdapterWeights(RANK, 32.0, 0.0, {"layer": LayerFactors(A, B, 2.0)}), weight)
        for at, ((A, B), weight) in enumerate(zip(factors, _WEIGHTS, strict=True))
    ]
    wanted = sum(part.weight * part.adapter.layers["layer"].delta_weight() for part in parts)
    config = CombineConfig(method="svd", rank=RANK)
    ours = combine(parts, config, silent).adapter.layers["layer"].delta_weight()
    our_seconds = seconds(lambda: combine(parts, config, silent), 5)
    model = _peft_model(factors)
    names, how = [f"a{at}" for at in range(_PARENTS)], {"combination_type": "svd", "svd_rank": RANK}
    their_seconds = seconds(lambda: model.add_weighted_adapter(names, list(_WEIGHTS), "all", **how))
    layer = model.base_model.model.layer
    theirs = layer.get_delta_weight("all")
    return [
        {
            "times PEFT": their_seconds / our_seconds,
            "ours (s)": our_seconds,
            "PEFT (s)": their_seconds,
            "our error": _error(ours, wanted),
            "PEFT's error": _error(theirs, wanted),
        }
    ]


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _peft_model(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(_SIDE, _SIDE, bias=False)

    model: Any = None
    for at, (A, B) in enumerate(factors):
        config = PeftConfig(r=RANK, lora_alpha=32, target_modules=["layer"])
        if model is None:
            model = get_peft_model(One(), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{at}", config)
        with torch.no_grad():
            model.base_model.model.layer.lora_A[f"a{at}"].weight.copy_(A)
            model.base_model.model.layer.lora_B[f"a{at}"].weight.copy_(B)
    return model


def merging(shape: str, place: Path) -> list[dict[str, Any]]:
    """Copying a checkpoint and merging into it, in turn, each from and to a cold disk where the system allows
    that.
    """
    folder = Path(tempfile.mkdtemp(dir=place, prefix="merge-"))
    try:
        layers, total = write_checkpoint(shape, folder / "base")
        rows = []
        for name, work in (("copy", _copy), ("merge", _merge)):
            _forget_cache()
            took, peak = work(folder, layers)
            rows.append(
                {"what": name, "GB/s": total / took / 1e9, "seconds": took, "peak memory (GiB)": peak}
            )
            shutil.rmtree(folder / "out")
        _forget_cache()
        took = seconds(lambda: fingerprint(folder / "base"))
        rows.append({"what": "fingerprint", "GB/s": total / took / 1e9, "seconds": took})
        return [{"of the copy's speed": rows[0]["seconds"] / row["seconds"], **row} for row in rows]
    finally:
        shutil.rmtree(folder)


def write_checkpoint(shape: str, folder: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """A checkpoint of random bf16 weights in shards; its linear layers as (in, out) by path,
    and its bytes.
    """
    about = SHAPES[shape]
    hidden, inner, count = about["hidden_size"], about["intermediate_size"], about["num_hidden_layers"]
    narrow = hidden // about["num_attention_heads"] * about["num_key_value_heads"]
    linear = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, narrow),
        "self_attn.v_proj": (hidden, narrow),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    layers = {f"model.layers.{at}.{name}": one for at in range(count) for name, one in linear.items()}
    tensors = [
        ("model.embed_tokens.weight", (about["vocab_size"], hidden)),
        ("lm_head.weight", (about["vocab_size"], hidden)),
    ]
    tensors += [(f"{path}.weight", (n_out, n_in)) for path, (n_in, n_out) in layers.items()]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    block = torch.randn(1 << 23).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    shards: list[list[tuple[str, tuple[int, int]]]] = [[]]
    for one in tensors:
        if sum(2 * a * b for _, (a, b) in shards[-1]) + 2 * one[1][0] * one[1][1] > _SHARD:
            shards.append([])
        shards[-1].append(one)
    for at, shard in enumerate(shards):
        with (folder / f"model-{at:05d}.safetensors").open("wb") as file:
            file.write(build_header([(name, "BF16", one) for name, one in shard], {"format": "pt"}))
            for _, (a, b) in shard:
                for left in range(2 * a * b, 0, -len(block)):
                    file.write(block[: min(left, len(block))])
            os.fsync(file.fileno())
    return layers, sum(2 * a * b for _, (a, b) in tensors)


def _copy(folder: Path, layers: object) -> tuple[float, float]:
    (folder / "out").mkdir()

    def work() -> None:
        for path in sorted((folder / "base").glob("*.safetensors")):
            shutil.copyfile(path, folder / "out" / path.name)
        _sync(folder / "out")

    return seconds(work), 0.0


def _merge(folder: Path, layers: dict[str, tuple[int, int]]) -> tuple[float, float]:
    """In a process of its own, so that its peak memory is its own."""
    (folder / "layers.json").write_text(json.dumps(layers))
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.merging", "--merge-here", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["seconds"], found["peak"]


def merge_here(folder: Path) -> None:
    """The child of _merge()."""
    shapes = json.loads((folder / "layers.json").read_text())
    torch.manual_seed(1)
    factors = {
        path: LayerFactors(torch.randn(RANK, n_in) / 64, torch.randn(n_out, RANK) / 64, 2.0)
        for path, (n_in, n_out) in shapes.items()
    }
    adapter = AdapterWeights(RANK, 32.0, 0.0, factors)
    (folder / "out").mkdir()

    def work() -> None:
        merge_into_base(folder / "base", adapter, frozenset(), folder / "out", silent, {})
        _sync(folder / "out")

    took = seconds(work)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": took, "peak": peak / 2**20}))


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _forget_cache() -> None:
    """Ask the system to drop what it has read; without the right to, both sides are measured warm."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--combine", action="store_true")
    parser.add_argument("--merge", nargs=2, metavar=("SHAPE", "FOLDER"))
    parser.add_argument("--merge-here", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.merge_here:
        merge_here(given.merge_here)
    if given.combine:
        show("Combining four adapters by SVD", combining())
    if given.merge:
        show(
            f"Merging into a checkpoint of {given.merge[0]} shapes",
            merging(given.merge[0], Path(given.merge[1])),
        )


if __name__ == "__main__":
    main()
