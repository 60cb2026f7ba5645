"""K adapters at once against K in turn, and against one adapter at the same number of tokens.

python -m tests.benchmarks.many --shape 1b --runs 8 --length 512
"""

from __future__ import annotations

import argparse

import torch

from tests.benchmarks import ours, peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import DEVICE, build, resident


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    peer.forget()
    model = peer.with_adapter(build(args.shape))
    ids = torch.randint(0, model.config.vocab_size, (1, args.length), device=DEVICE)
    in_turn = peer.train(model, ids, steps=args.steps, warm_up=3)  # one after another: the rate of one
    rows: list[dict[str, object]] = [
        {"side": f"PEFT, {args.runs} in turn", "tok/s": in_turn, "peak GiB": peer.peak_gib()}
    ]
    del model, ids
    warm_up = 8
    for name, runs, blocks in (
        (f"{args.runs} adapters at once", args.runs, 1),
        ("one adapter, the same tokens", 1, args.runs),
    ):
        peer.forget()
        base = resident(args.shape)
        requests = ours.requests(base, runs, blocks, args.length, args.steps + warm_up)
        speed, first, notices = ours.train(base, requests, steps=args.steps, warm_up=warm_up)
        rows.append({"side": name, "tok/s": speed, "peak GiB": peer.peak_gib(), "first steps s": first})
        print(notices)
        del base, requests
    together, one = rows[1]["tok/s"], rows[2]["tok/s"]
    rows[1] |= {"÷ PEFT in turn": together / in_turn, "÷ one adapter": together / one}  # type: ignore[operator]
    show(f"many {args.shape} {args.runs}×1×{args.length}", rows)


if __name__ == "__main__":
    main()
