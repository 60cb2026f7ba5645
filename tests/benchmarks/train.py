"""One adapter: PEFT eager, PEFT with gradient checkpointing, and this engine.

python -m tests.benchmarks.train --shape 1b --blocks 8 --length 512
python -m tests.benchmarks.train --shape gpt-oss-1b --blocks 8 --length 512    (or qwen3-next-1b)
"""

from __future__ import annotations

import argparse

import torch

from tests.benchmarks import ours, peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import DEVICE, build, resident


def measure(
    shape: str, blocks: int, length: int, steps: int, *, only_ours: bool = False, profile: bool = False
) -> list[dict[str, object]]:
    """One row for each side."""
    rows: list[dict[str, object]] = []
    for name, recompute in () if only_ours else (("PEFT eager", False), ("PEFT, checkpointing", True)):
        peer.forget()
        model = peer.with_adapter(build(shape))
        ids = torch.randint(0, model.config.vocab_size, (blocks, length), device=DEVICE)
        speed = peer.train(model, ids, steps=steps, warm_up=3, checkpointing=recompute)
        rows.append({"side": name, "tok/s": speed, "peak GiB": peer.peak_gib()})
        del model, ids
    peer.forget()
    base = resident(shape)
    warm_up = 8
    requests = ours.requests(base, 1, blocks, length, steps + warm_up)
    speed, first, notices = ours.train(base, requests, steps=steps, warm_up=warm_up, profile=profile)
    rows.append(
        {"side": "LoRA Workbench", "tok/s": speed, "peak GiB": peer.peak_gib(), "first steps s": first}
    )
    for row in rows:
        row["ours ÷ it"] = speed / row["tok/s"]  # type: ignore[operator]
        row["memory ours ÷ it"] = rows[-1]["peak GiB"] / (row["peak GiB"] or 1)  # type: ignore[operator]
    print(notices)
    return rows


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only-ours", action="store_true", help="without the peer")
    parser.add_argument("--profile", action="store_true", help="print where the device's time goes")
    args = parser.parse_args()
    rows = measure(
        args.shape, args.blocks, args.length, args.steps, only_ours=args.only_ours, profile=args.profile
    )
    show(f"train {args.shape} {args.blocks}×{args.length}", rows)


if __name__ == "__main__":
    main()
