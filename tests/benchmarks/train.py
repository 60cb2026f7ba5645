r"""One adapter: PEFT eager, PEFT with gradient checkpointing, and this engine, also on a base in few bits.

python -m tests.benchmarks.train --shape 1b --blocks 8 --length 512
python -m tests.benchmarks.train --shape 8b --blocks 4 --length 1024 --quantisation nf4 --only-ours
python -m tests.benchmarks.train --shape 8b --blocks 4 --length 1024 --quantisation fp8 --only-ours
python -m tests.benchmarks.train --shape starter --blocks 8 --length 512 --steps 192 --rate 1e-3 \
    --quantisation fp8 --only-ours        the last losses
python -m tests.benchmarks.train --shape 70b --blocks 1 --length 1024 --quantisation nf4 --only-quantised
python -m tests.benchmarks.train --shape gpt-oss-1b --blocks 8 --length 512    (or qwen3-next-1b)
python -m tests.benchmarks.train --shape gpt-oss-1b --blocks 8 --length 512 --experts
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from core.base_model.quantisation import NONE, QUANTISATIONS
from tests.benchmarks import ours, peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import DEVICE, build, resident


def measure(
    shape: str,
    blocks: int,
    length: int,
    steps: int,
    *,
    peers: bool = True,
    held: Sequence[str] = (NONE,),
    profile: bool = False,
    experts: bool = False,
    rate: float = 2e-4,
) -> list[dict[str, object]]:
    """One row for each side; of ours one for each way in which the base is held."""
    rows: list[dict[str, object]] = []
    for name, recompute in () if not peers else (("PEFT eager", False), ("PEFT, checkpointing", True)):
        peer.forget()
        model = peer.with_adapter(build(shape), experts=experts)
        ids = torch.randint(0, model.config.vocab_size, (blocks, length), device=DEVICE)
        speed = peer.train(model, ids, steps=steps, warm_up=3, checkpointing=recompute)
        rows.append({"side": name, "tok/s": speed, "peak GiB": peer.peak_gib()})
        del model, ids
    how = {"profile": profile, "experts": experts}
    mine = [_of_ours(shape, blocks, length, steps, one, rate, **how) for one in held]
    rows += mine
    for row in rows:
        row["ours ÷ it"] = mine[0]["tok/s"] / row["tok/s"]  # type: ignore[operator]
        row["memory ours ÷ it"] = mine[0]["peak GiB"] / (row["peak GiB"] or 1)  # type: ignore[operator]
    return rows


def _of_ours(
    shape: str,
    blocks: int,
    length: int,
    steps: int,
    quantisation: str,
    rate: float,
    *,
    profile: bool,
    experts: bool,
) -> dict[str, object]:
    """The base is let go of behind it."""
    peer.forget()
    base, warm_up = resident(shape, quantisation=quantisation), 8
    own = {"experts": experts, "learning_rate": rate}
    requests = ours.requests(base, 1, blocks, length, steps + warm_up, **own)
    speed, first, notices = ours.train(base, requests, steps=steps, warm_up=warm_up, profile=profile)
    print(notices)
    side = "LoRA Workbench" if quantisation == NONE else f"LoRA Workbench, {quantisation}"
    return {"side": side, "tok/s": speed, "peak GiB": peer.peak_gib(), "first steps s": first}


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only-ours", action="store_true", help="without the peer")
    parser.add_argument("--quantisation", default=NONE, choices=QUANTISATIONS, help="beside the base in bf16")
    parser.add_argument("--only-quantised", action="store_true", help="neither the peer nor the base in bf16")
    parser.add_argument("--experts", action="store_true", help="adapters on each expert of a mixture, too")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate, for the last loss")
    parser.add_argument("--profile", action="store_true", help="print where the device's time goes")
    args = parser.parse_args()
    held = dict.fromkeys([args.quantisation] if args.only_quantised else [NONE, args.quantisation])
    work = (args.shape, args.blocks, args.length, args.steps)
    peers = not (args.only_ours or args.only_quantised)
    how = {"profile": args.profile, "experts": args.experts, "rate": args.rate}
    rows = measure(*work, peers=peers, held=list(held), **how)
    show(f"train {args.shape}{' with experts' if args.experts else ''} {args.blocks}×{args.length}", rows)


if __name__ == "__main__":
    main()
