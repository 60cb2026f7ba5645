"""One row of very many tokens: the plan that is taken, its speed, and its memory on the device and the host.

python -m tests.benchmarks.contexts --lengths 32768,131072                        8B in bfloat16
python -m tests.benchmarks.contexts --lengths 32768 --how on,offload --compile on --steps 3
python -m tests.benchmarks.contexts --lengths 200000 --quantisation nf4           one step takes minutes
python -m tests.benchmarks.contexts --lengths 200000 --quantisation nf4 --how offload --most-gib 79

Operations a token are 4N of the frozen products, and 7·T·(heads·width) of each layer's causal attention;
"of the first" compares operations a second, so that the attention's own growth counts as work.
"""

from __future__ import annotations

import argparse
import time

import psutil
import torch

from core.base_model.load import ResidentBase
from core.base_model.quantisation import NONE, QUANTISATIONS
from core.events import Notice, Prepared, RunFailed, StepDone
from core.train.group import TrainingGroup
from core.train.hardware import PeakMemory, operations_a_token
from tests.benchmarks import ours, peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import DEVICE, resident

_FORWARD_AND_BACKWARD = (
    7.0  # of a causal attention's 2·T·width: 2 forward, 5 backward with its recomputed scores
)


def operations(base: ResidentBase, length: int) -> float:
    """Of one token of a row of `length` tokens, on average; what is computed again does not count."""
    config = base.model.config
    width = config.num_attention_heads * base.attention[0].value_width
    return operations_a_token(base) + _FORWARD_AND_BACKWARD * length * width * config.num_hidden_layers


def measure(base: ResidentBase, length: int, steps: int, how: str, compile_: str) -> dict[str, object]:
    """Train one row; the first steps are not timed where there are more than two: what is pinned of the
    host's memory is pinned once.
    """
    peer.forget()
    host = psutil.Process().memory_info().rss
    options = {"gradient_checkpointing": how, "compile": compile_}
    group = TrainingGroup(base, ours.requests(base, 1, 1, length, steps, **options))
    peak, told, start, loss = PeakMemory(DEVICE), [], time.perf_counter(), 0.0
    untimed = 1 + ours.LATE if steps > 2 else 0
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        if isinstance(event, Prepared):
            start = time.perf_counter()
        if isinstance(event, Notice):
            told.append(event.text)
        if isinstance(event, StepDone):
            loss, plan = event.loss, group.plan
            if untimed and event.step == 1:
                peer.wait()
                start = time.perf_counter()
            host = max(host, psutil.Process().memory_info().rss)
    peer.wait()
    seconds = (time.perf_counter() - start) / (steps - untimed)
    print(told)
    return {
        "length": length,
        "how": how,
        "tok/s": length / seconds,
        "TFLOP/s": length / seconds * operations(base, length) / 1e12,
        "peak GiB": peak.bytes / 2**30,
        "host GiB": host / 2**30,
        "seconds a step": seconds,
        "loss": loss,
        "plan": plan,
    }


def main() -> None:
    """Measure each length in each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--quantisation", default=NONE, choices=QUANTISATIONS)
    parser.add_argument(
        "--how", default="auto", help="of gradient_checkpointing: auto, on, offload; several with commas"
    )
    parser.add_argument("--compile", default="off", choices=("on", "off"))
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--most-gib", type=float, default=0.0, help="of the card, as if it had no more")
    args = parser.parse_args()
    if args.most_gib:
        peer.limit(DEVICE, args.most_gib)
    base = resident(args.shape, quantisation=args.quantisation)
    rows = []
    for length in map(int, args.lengths.split(",")):
        for how in args.how.split(","):
            try:
                rows.append(measure(base, length, args.steps, how, args.compile))
            except torch.OutOfMemoryError as error:
                print(f"{length:,} tokens, {how}: {str(error)[:200]}")
    for row in rows:
        row["of the first"] = row["TFLOP/s"] / rows[0]["TFLOP/s"]  # type: ignore[operator]
    show(f"contexts {args.shape} {args.quantisation}", rows)


if __name__ == "__main__":
    main()
