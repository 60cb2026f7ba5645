"""Requests for many adapters on one base: in one running batch, one by one, and for the plain base alone.

    python -m tests.benchmarks.serve --shape 1b                                     with a GPU: 16 adapters
    python -m tests.benchmarks.serve --shape starter --tokens 32 --in-turn 8        on a CPU: 8 adapters
    python -m tests.benchmarks.serve --temperature 0.7 --top-p 0.95                 sampled, as clients ask

Prompts and answers are of mixed lengths, and the requests come a few a step. All in one batch and the plain
base take turns, and the medians of their rounds are told; on a GPU behind two rounds in which graphs are
captured, which is when a shape comes again. One after another is measured on some of them (`--in-turn`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from core.base_model.load import ResidentBase
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.running import RunningBatch
from core.generate.state_pool import StatePool
from core.lora.mixed_bank import Bank
from tests.benchmarks import peer
from tests.benchmarks.decode import random_bank
from tests.benchmarks.report import show
from tests.benchmarks.shapes import DEVICE, resident

COMING = 4  # requests that come in one step
ROUNDS, WARM_UP = (7, 2) if DEVICE.type == "cuda" else (1, 0)


def mixed(
    base: ResidentBase, count: int, adapters: int, prompt: int, tokens: int, **sampling: float
) -> list[RowRequest]:
    """Requests of a quarter to the whole of these lengths, for one adapter after the other."""
    chance, found = random.Random(0), []
    for number in range(count):
        length, limit = (chance.randint(max(1, most // 4), most) for most in (prompt, tokens))
        ids = [chance.randrange(base.model.config.vocab_size) for _ in range(length)]
        config = GenerationConfig(max_tokens=limit, seed=number, **{"temperature": 0.0} | sampling)
        found.append(RowRequest(ids, 1 + number % adapters, config))
    return found


def together(
    base: ResidentBase, bank: Bank | None, pool: StatePool, requests: Sequence[RowRequest]
) -> dict[str, float]:
    """All in one batch, which they join as they come."""
    batch = RunningBatch(base, lambda: bank, pool)
    begun, waiting, under_way, tokens, most = time.perf_counter(), list(requests), [], 0, 0
    waits: list[int] = []
    while waiting or under_way:
        for one in waiting[:COMING]:
            decoder = Decoder(base, None, [one], batch=batch)
            under_way.append((batch.passes, decoder.steps()))
        del waiting[:COMING]
        for pair in list(under_way):
            came, steps = pair
            events = next(steps, None)
            if events is None:
                under_way.remove(pair)
                continue
            tokens += len(events)
            waits += [batch.passes - came for event in events if event.tokens == 1]
        most = max(most, batch.held_bytes)
    peer.wait()
    return {
        "tok/s": tokens / (time.perf_counter() - begun),
        "longest wait for a first token, steps": float(max(waits)),
        "keys and values MiB": most / 2**20,
    }


def in_turn(base: ResidentBase, bank: Bank | None, pool: StatePool, requests: Sequence[RowRequest]) -> float:
    """Tokens a second where each request is answered before the next is begun."""
    begun, tokens = time.perf_counter(), 0
    for one in requests:
        tokens += sum(len(events) for events in Decoder(base, bank, [one], pool).steps())
    peer.wait()
    return tokens / (time.perf_counter() - begun)


def _over_rounds(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the speed; of the rest what was the most."""
    return {
        name: (statistics.median if name == "tok/s" else max)(one[name] for one in rounds)
        for name in rounds[0]
    }


def main() -> None:
    """Measure one shape."""
    cuda = DEVICE.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b" if cuda else "starter")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=16 if cuda else 8)
    parser.add_argument("--prompt", type=int, default=256 if cuda else 64)
    parser.add_argument("--tokens", type=int, default=128 if cuda else 48)
    parser.add_argument("--in-turn", type=int, default=64 if cuda else 8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args()
    base = resident(args.shape, torch.bfloat16 if cuda else torch.float32)
    bank = random_bank(base, args.adapters)
    sampling = {"temperature": args.temperature, "top_p": args.top_p}
    requests = mixed(base, args.requests, args.adapters, args.prompt, args.tokens, **sampling)
    plain = [replace(one, slot=0) for one in requests]
    pools = {True: StatePool(base, compiled=cuda, most=8), False: StatePool(base, compiled=cuda, most=8)}
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    for _ in range(WARM_UP + ROUNDS):
        found.append((together(base, bank, pools[True], requests), together(base, None, pools[False], plain)))
    ours, alone = map(_over_rounds, zip(*found[WARM_UP:], strict=True))
    if cuda:
        in_turn(base, bank, pools[True], requests[:2])
    one_by_one = in_turn(base, bank, pools[True], requests[: args.in_turn])
    each = [one["tok/s"] / other["tok/s"] for one, other in found[WARM_UP:]]
    ratios = {
        "÷ in turn": ours["tok/s"] / one_by_one,
        "÷ plain base": ours["tok/s"] / alone["tok/s"],
        "in the rounds": ", ".join(f"{one:.3f}" for one in each),
    }
    rows: list[dict[str, object]] = [
        {"side": f"{args.requests} requests, {args.adapters} adapters", **ratios, **ours},
        {"side": "the same on the plain base", **alone},
        {"side": "one after another", "tok/s": one_by_one},
    ]
    show(f"serve {args.shape} {args.requests}×{args.prompt}+{args.tokens}", rows)


if __name__ == "__main__":
    main()
