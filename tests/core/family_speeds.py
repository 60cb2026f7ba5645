"""How fast each family trains, as a share of a Llama of the same shapes on the quick way.

`python -m tests.core.family_speeds` measures and writes core/base_model/FAMILIES.md anew; nothing else times.
With the names of families behind it, it measures these alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from core.data.formats import Example
from core.lora.bank import AdapterBank
from core.train.batches import MicroBatch, Shape
from core.train.group_objective import GroupObjective
from core.train.memory import ExecutionPlan, Tier
from core.train.objectives.supervised import KIND
from core.train.step import MicroBatchStep
from tests.conftest import _save, make_tokenizer
from tests.core.families import PAGE, SPEEDS, TRAINABLE, page, tiny_model
from tests.core.helpers import load, random_adapter, token_rows

ROWS = [Example(at, (), ("abcdefghij" * 9)[: 12 + 7 * at]) for at in range(12)]
_LENGTH = 128
_ROUNDS, _STEPS = 6, 3


def step_of(folder: Path) -> tuple[Callable[[], None], int]:
    """A training step, forward and backward, of two adapters with the same rows, and its number of tokens."""
    base = load(folder)
    rows = token_rows(base, ROWS, _LENGTH, validation_rows=0)
    adapter = random_adapter(base, rank=2)
    bank = AdapterBank(base.layers, list(adapter.layers), 2, 2, trainable=True)
    for slot in range(2):
        bank.load(slot, adapter)
    lengths = [len(rows[at][0]) for at in range(len(ROWS))]
    packed = base.way.quick
    blocks = _packed(lengths) if packed else [(at,) for at in range(len(ROWS))]
    shape = Shape(2, len(blocks), _LENGTH, packed, sum(lengths), 4 * len(ROWS), fixed=False)
    step = MicroBatchStep(
        base, bank, ExecutionPlan(Tier.KEEP, False), GroupObjective(KIND, [KIND.options()] * 2)
    )
    part = MicroBatch(rows, blocks, 1.0)

    def once() -> None:
        step.train(step.collate([part, part], shape))

    return once, sum(lengths)


def _packed(lengths: list[int]) -> list[tuple[int, ...]]:
    """Rows in blocks, in their order."""
    blocks: list[list[int]] = [[]]
    for at, length in enumerate(lengths):
        if sum(lengths[one] for one in blocks[-1]) + length > _LENGTH:
            blocks.append([])
        blocks[-1].append(at)
    return [tuple(one) for one in blocks]


def _seconds(once: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(_STEPS):
        once()
    return time.perf_counter() - start


def speed(folder: Path, llama: Path) -> float:
    """Tokens a second as a share of the Llama's; the best of several rounds, in which both take turns."""
    (ours, tokens), (theirs, usual) = step_of(folder), step_of(llama)
    ours(), theirs()
    rounds = [(_seconds(ours), _seconds(theirs)) for _ in range(_ROUNDS)]
    return (tokens / min(one for one, _ in rounds)) / (usual / min(other for _, other in rounds))


def main(families: list[str]) -> None:
    """Measure, and write the figures and the page."""
    torch.set_num_threads(1)
    found = json.loads(SPEEDS.read_text()) if SPEEDS.is_file() and families else {}
    with tempfile.TemporaryDirectory() as place:
        tokenizer = make_tokenizer()
        llama = _save(tiny_model("llama"), tokenizer, Path(place) / "usual")
        for family, values in TRAINABLE.items():
            if not families or family in families:
                folder = _save(tiny_model(family, **values), tokenizer, Path(place) / family)
                found[family] = float(f"{speed(folder, llama):.2g}")
                print(family, found[family], flush=True)
    SPEEDS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
