"""Quality by rank, by target modules and of full fine-tuning on E2E NLG, as LoRA's paper has it.

    python -m tests.benchmarks.e2e BASE_FOLDER e2e-nlg.txt --epochs 3

The file has one `attributes||sentence` a line (microsoft/LoRA's layout). A fifth of the sets of attributes is
held out with all of its sentences, which are the references of BLEU (sacrebleu: pip install '.[benchmarks]').
After arXiv 2106.09685: ranks 1 to 64 on q and v (Table 18), and one number of parameters on q, on v, on both,
and on all four of attention (Table 5); beside them all linear layers, and full fine-tuning at a tenth of the
rate. Alpha is twice the rank. All adapters learn at once, from the same rows in the same order; answers are
greedy. Neither decoding nor model nor split is the paper's, so figures compare within the table alone.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.base_model.load import ResidentBase, load_base
from core.data.conversations import conversation_rows
from core.data.tokens import TokenRows
from core.events import RunFailed, StepDone, TrainingDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.adapter import AdapterWeights
from core.lora.config import LoraConfig
from core.lora.mixed_bank import loaded_bank
from core.lora.whole import whole_bank
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.benchmarks.report import show

HELD_OUT = 5  # one in so many sets of attributes
LENGTH, BLOCKS, ROWS_AT_ONCE = 192, 8, 240


@dataclass(frozen=True)
class Work:
    """One line of the tables."""

    title: str
    lora: LoraConfig
    rate: float


def _on(modules: str, rank: int) -> LoraConfig:
    return LoraConfig(rank=rank, alpha=2.0 * rank, target_modules=modules)


def works(rate: float) -> list[Work]:
    """All adapters."""
    ranks = [Work(f"q, v · r = {rank}", _on("q_proj,v_proj", rank), rate) for rank in (1, 2, 4, 8, 64)]
    targets = {
        "q · r = 8": _on("q_proj", 8),
        "v · r = 8": _on("v_proj", 8),
        "q, k, v, o · r = 2": _on("q_proj,k_proj,v_proj,o_proj", 2),
        "all linear · r = 8": _on("all-linear", 8),
    }
    return [*ranks, *(Work(title, lora, rate) for title, lora in targets.items())]


def split(file: Path) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """Pairs to train on, and the held-out attributes with their sentences."""
    sentences: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        attributes, _, sentence = line.partition("||")
        sentences.setdefault(attributes.strip(), []).append(sentence.strip())
    names = sorted(sentences)
    random.Random(0).shuffle(names)
    held = {name: sentences[name] for name in names[::HELD_OUT]}
    pairs = [(name, one) for name in names if name not in held for one in sentences[name]]
    random.Random(1).shuffle(pairs)
    return pairs, held


def turns(attributes: str, sentence: str = "") -> list[dict[str, Any]]:
    """A conversation, or its question alone."""
    question = {"role": "user", "content": attributes}
    return [question, {"role": "assistant", "content": sentence}] if sentence else [question]


def train(
    base: ResidentBase, rows: TokenRows, wanted: Sequence[Work], epochs: float
) -> tuple[list[AdapterWeights], list[TrainingDone], float]:
    """The adapters, how each ended, and seconds a step of all of them together."""
    requests = [
        RunRequest(
            at,
            rows,
            TrainingOptions(
                work.lora,
                TrainConfig(
                    learning_rate=work.rate,
                    epochs=epochs,
                    micro_batch_size=BLOCKS,
                    gradient_accumulation_steps=1,
                    max_length=LENGTH,
                ),
            ),
        )
        for at, work in enumerate(wanted)
    ]
    group, begun, steps = TrainingGroup(base, requests), time.perf_counter(), 0
    adapters: dict[object, AdapterWeights] = {}
    ended: dict[object, TrainingDone] = {}
    for key, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        if isinstance(event, StepDone):
            steps = max(steps, event.step)
        if isinstance(event, TrainingDone):
            adapters[key], ended[key] = group.adapter(key), event
    seconds = (time.perf_counter() - begun) / max(1, steps)
    order = range(len(wanted))
    return [adapters[at] for at in order], [ended[at] for at in order], seconds


def answers(base: ResidentBase, bank: Any, slots: Sequence[int], asked: Sequence[str]) -> list[list[str]]:
    """What each slot answers to each question, greedily, [slots][asked]."""
    config = GenerationConfig(max_tokens=96, temperature=0.0)
    prompts = [base.renderer.encode_prompt(turns(one)) for one in asked]
    rows = [(slot, at) for slot in slots for at in range(len(asked))]
    texts = {row: "" for row in rows}
    for some in _batches(rows):
        decoder = Decoder(base, bank, [RowRequest(prompts[at], slot, config) for slot, at in some])
        for events in decoder.steps():
            for event in events:
                texts[some[event.row]] += event.text
    return [[texts[slot, at].strip() for at in range(len(asked))] for slot in slots]


def _batches(rows: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    for first in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[first : first + ROWS_AT_ONCE]


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """sacrebleu's corpus BLEU, 0 to 100, lower-cased as the data's own tokens are."""
    import sacrebleu

    most = max(map(len, references))
    columns = [[one[at] if at < len(one) else None for one in references] for at in range(most)]
    return float(sacrebleu.corpus_bleu(list(said), columns, lowercase=True).score)


def main() -> None:
    """Train and judge all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--no-full", action="store_true", help="without full fine-tuning")
    args = parser.parse_args()
    pairs, held = split(args.file)
    base = load_base(args.base, fingerprint="", name="base")
    rows = conversation_rows([turns(*pair) for pair in pairs], base.renderer, LENGTH)
    asked, references = list(held), list(held.values())
    whole = sum(one.numel() for one in base.model.parameters())  # a tied head is counted once
    plain = answers(base, loaded_bank(base.layers, [None]), [0], asked)[0]
    table: list[dict[str, object]] = [{"trained": "nothing", "BLEU": bleu(plain, references)}]

    def told(
        work: Work, adapter: AdapterWeights, said: Sequence[str], done: TrainingDone
    ) -> dict[str, object]:
        count = adapter.parameter_count
        return {
            "trained": work.title,
            "BLEU": bleu(said, references),
            "parameters": f"{count:,}",
            "share": f"{count / whole:.3%}",
            "file MB": 4 * count / 1e6,
            "training loss": done.train_loss,
        }

    wanted = works(args.rate)
    adapters, ended, together = train(base, rows, wanted, args.epochs)
    bank = loaded_bank(base.layers, adapters)
    said = answers(base, bank, range(len(wanted)), asked)
    table += [told(*one) for one in zip(wanted, adapters, said, ended, strict=True)]
    seconds = {f"{len(wanted)} adapters at once": together}
    if not args.no_full:
        full = Work("everything (full fine-tuning)", LoraConfig(kind="full"), args.rate / 10)
        (adapter,), (done,), seconds["full fine-tuning"] = train(base, rows, [full], args.epochs)
        own = answers(base, whole_bank(base.model, base.layers, adapter), [0], asked)[0]
        table.append(told(full, adapter, own, done))
    print(f"seconds a step: {seconds}; {len(pairs):,} pairs, {len(asked)} held-out sets of attributes")
    show(f"e2e, {args.epochs:g} epochs at {args.rate:g}", table)


if __name__ == "__main__":
    main()
