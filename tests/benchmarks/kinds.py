"""Every adapter kind against plain LoRA: one adapter of each, and one of each beside a plain LoRA.

python -m tests.benchmarks.kinds --shape 1b --blocks 8 --length 512 --rounds 3 --kinds lora dora --pairs

Each round measures all kinds in turn, so that a slow minute of the machine meets all of them; the figures are
medians.
"""

from __future__ import annotations

import argparse
import statistics

from core.lora.kinds import ADAPTER_KINDS
from tests.benchmarks import ours, peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import resident

PLAIN = "lora"


def measure(
    shape: str, kinds: tuple[str, ...], blocks: int, length: int, steps: int, *, profile: bool = False
) -> tuple[float, float]:
    """Tokens a second and the peak in GiB of a group with one adapter of each kind."""
    peer.forget()
    base, warm_up = resident(shape), 8
    requests = [
        ours.requests(base, len(kinds), blocks, length, steps + warm_up, kind=kind)[seed]
        for seed, kind in enumerate(kinds)
    ]
    speed, _, _ = ours.train(base, requests, steps=steps, warm_up=warm_up, profile=profile)
    return speed, peer.peak_gib()


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=ADAPTER_KINDS.names, help="lora among them")
    parser.add_argument("--pairs", action="store_true", help="each beside a plain LoRA, too")
    parser.add_argument("--profile", action="store_true", help="print where the device's time goes")
    args = parser.parse_args()
    groups = [(kind,) for kind in args.kinds] + [(kind, PLAIN) for kind in args.kinds if args.pairs]
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {group: [] for group in groups}
    for _ in range(args.rounds):
        for group in groups:
            work = args.shape, group, args.blocks, args.length, args.steps
            found[group].append(measure(*work, profile=args.profile))
    rows: list[dict[str, object]] = []
    for group in groups:
        plain = found[(PLAIN,) * len(group)]
        slower = [own[0] / other[0] for own, other in zip(found[group], plain, strict=True)]
        memory = max(peak for _, peak in found[group]) / max(peak for _, peak in plain)
        rows.append(
            {
                "kinds": " + ".join(group),
                "time ÷ LoRA": statistics.median(1 / one for one in slower),
                "memory ÷ LoRA": memory,
                "tok/s": statistics.median(speed for speed, _ in found[group]),
                "peak GiB": max(peak for _, peak in found[group]),
            }
        )
    show(f"kinds {args.shape} {args.blocks}×{args.length}, {args.rounds} rounds", rows)


if __name__ == "__main__":
    main()
