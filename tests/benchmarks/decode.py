"""Decoding rows with an adapter each: PEFT's generate in turn, and this engine in one batch, merged and
unmerged.

python -m tests.benchmarks.decode --shape 1b --rows 8
"""

from __future__ import annotations

import argparse
import time

import torch

from core.base_model.load import ResidentBase
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.state_pool import StatePool
from core.lora.bank import AdapterBank
from tests.benchmarks import peer
from tests.benchmarks.report import show
from tests.benchmarks.shapes import DEVICE, RANK, build, resident

PROMPT = 64


def peft_tokens_a_second(shape: str, tokens: int) -> float:
    """One row, greedy, with transformers' generate."""
    model = peer.with_adapter(build(shape))
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT), device=DEVICE)
    options = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    model.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, **options)
    peer.wait()
    start = time.perf_counter()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, **options)
    peer.wait()
    return tokens / (time.perf_counter() - start)


def random_bank(base: ResidentBase, adapters: int) -> AdapterBank:
    """A bank of adapters that do something; slot 0 is the plain base."""
    bank = AdapterBank(
        base.layers, [path for path in base.layers if path != base.head], adapters + 1, RANK, dtype=base.dtype
    )
    bank.flat.normal_(0, 0.01)
    bank.scale.fill_(2.0)
    bank.flat[0].zero_()
    return bank


def our_tokens_a_second(
    base: ResidentBase, bank: AdapterBank | None, pool: StatePool, rows: int, tokens: int
) -> tuple[float, float]:
    """All rows' tokens a second once the first is there, and the seconds until then."""
    config = GenerationConfig(max_tokens=tokens, temperature=0.0)
    prompts = torch.randint(0, base.model.config.vocab_size, (rows, PROMPT)).tolist()
    decoder = Decoder(base, bank, [RowRequest(one, 1 + at, config) for at, one in enumerate(prompts)], pool)
    begun, count, start = time.perf_counter(), 0, 0.0
    for events in decoder.steps():
        if events and not start:
            start = time.perf_counter()
        elif events:
            count += len(events)
    return count / (time.perf_counter() - start), start - begun


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--peft-tokens", type=int, default=48)
    parser.add_argument("--plain", action="store_true", help="without compiled layers, too")
    args = parser.parse_args()
    peer.forget()
    rows: list[dict[str, object]] = []
    peft = 0.0
    if args.peft_tokens:
        peft = peft_tokens_a_second(args.shape, args.peft_tokens)
        rows.append({"side": "PEFT generate, one row", "tok/s": peft})
    peer.forget()
    base = resident(args.shape)
    limit = bandwidth() / sum(one.numel() * one.element_size() for one in read_weights(base))
    bank = random_bank(base, args.rows)
    for compiled in (True, False) if args.plain else (True,):
        pool = StatePool(base, compiled=compiled, most=8)
        for name, chosen, count in (
            ("merged", None, 1),
            ("unmerged", bank, 1),
            (f"{args.rows} adapters", bank, args.rows),
        ):
            _, first = our_tokens_a_second(base, chosen, pool, count, 16)
            pool_first = first
            speed, first = our_tokens_a_second(base, chosen, pool, count, args.tokens)
            row: dict[str, object] = {
                "side": f"{name}{'' if compiled else ', layers not compiled'}",
                "tok/s": speed,
            }
            row |= {"÷ PEFT in turn": speed / peft} if peft else {}
            row |= {
                "share of bandwidth": speed / count / limit,
                "first token s": first,
                "with capture s": pool_first,
            }
            rows.append(row)
    show(f"decode {args.shape}", rows)
    print(f"limit by bandwidth: {limit:.0f} tok/s")


def read_weights(base: ResidentBase) -> list[torch.Tensor]:
    """What one token reads: every weight but the input embedding, unless that is the output head too."""
    embedding, head = base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight
    return [one for one in base.model.parameters() if one is not embedding or embedding is head]


def bandwidth() -> float:
    """Bytes a second that a large copy reads and writes on this device."""
    if DEVICE.type != "cuda":
        return float("nan")
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    peer.wait()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    peer.wait()
    return 10 * 2 * source.numel() / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
