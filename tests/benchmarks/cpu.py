"""The starter model on a CPU: PEFT in float32 and this engine in the dtype it chooses, on the same batches.

python -m tests.benchmarks.cpu --steps 30                  every token carries loss
python -m tests.benchmarks.cpu --steps 30 --kind chat      conversations, of which the answers carry loss

They need the starter model, which is fetched once into a folder of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib import resources
from pathlib import Path

import numpy as np
import peft
import platformdirs
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from core.base_model.gguf_convert import convert_gguf
from core.base_model.load import ResidentBase, best_dtype, load_base
from core.base_model.starter import fetch_gguf
from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.reading import RowReader
from core.data.rendering import IGNORE
from core.data.tokens import TokenRows, tokenised
from core.events import StepDone
from core.files.publish import published_folder
from core.lora.config import LoraConfig
from core.lora.peft.files import save_adapter
from core.train.batches import MicroBatch, RunData
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.benchmarks.report import show
from tests.benchmarks.shapes import ALPHA, RANK

CPU = torch.device("cpu")


def fetch_starter(cache: Path, folder: Path) -> None:
    """The starter model as the workbench converts it."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as staging, published_folder(folder) as target:
        convert_gguf(fetch_gguf(Path(staging), lambda progress: None), target, lambda progress: None)


def sample_rows(base: ResidentBase, length: int, cache: Path) -> TokenRows:
    """The sample conversations as one long text, cut into rows of exactly this length."""
    with resources.as_file(resources.files("assets") / "captain_conversations.jsonl") as path:
        turns = [message["content"] for _, row in RowReader(path) for message in row["messages"]]
    ids = base.tokenizer("\n".join(turns))["input_ids"]
    text = base.tokenizer.decode(ids[: len(ids) // length * length])
    file = tokenised([StoredRow(1, 0, Example(1, (), text))], f"cpu-{length}", base.renderer, cache)
    return TokenRows(file, length)


def chat_rows(base: ResidentBase, length: int, cache: Path) -> TokenRows:
    """The sample conversations through the base's template: only the answers carry loss."""
    with resources.as_file(resources.files("assets") / "captain_conversations.jsonl") as path:
        rows = [
            StoredRow(number, 0, Example(number, tuple(row["messages"]))) for number, row in RowReader(path)
        ]
    return TokenRows(tokenised(rows, "cpu-chat", base.renderer, cache), length)


ROWS = {"text": sample_rows, "chat": chat_rows}


def ours(
    folder: Path, kind: str, rows: int, length: int, steps: int, cache: Path, start: Path
) -> dict[str, object]:
    """Our training group; writes the adapter it starts from to `start`."""
    base = load_base(folder, device=CPU, name="starter")
    train = _train_config(rows, length, steps)
    options = TrainingOptions(_lora(), train)
    group = TrainingGroup(base, [RunRequest("ours", ROWS[kind](base, length, cache), options)])
    losses, tokens, begun = [], 0, 0.0
    for event in alone(group):
        if not start.exists() and group.runs:
            start.mkdir(parents=True)
            save_adapter(start, group.adapter("ours"))
        if isinstance(event, StepDone):
            losses.append(event.loss)
            begun = begun or time.perf_counter()  # after the first step
            tokens += event.tokens if len(losses) > 1 else 0
    seconds = time.perf_counter() - begun
    return {
        "side": f"LoRA Workbench, {str(base.dtype)[6:]}",
        "tok/s": tokens / seconds,
        "last loss": losses[-1],
    }


def theirs(
    folder: Path, kind: str, rows: int, length: int, steps: int, cache: Path, start: Path
) -> dict[str, object]:
    """A plain PEFT loop in float32 from the same start over the same batches."""
    base = load_base(folder, device=CPU, dtype=torch.float32)
    train = _train_config(rows, length, steps)
    batches = RunData(ROWS[kind](base, length, cache), train).steps()
    del base
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), start, is_trainable=True
    )
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=0.0)
    losses, tokens, begun = [], 0, 0.0
    for _ in range(steps):
        step = next(batches)
        (part,) = step.micro_batches
        loss = model(**_padded(part), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
        begun = begun or time.perf_counter()
        tokens += step.tokens if len(losses) > 1 else 0
    return {"side": "PEFT, float32", "tok/s": tokens / (time.perf_counter() - begun), "last loss": losses[-1]}


def _lora() -> LoraConfig:
    return LoraConfig(rank=RANK, alpha=ALPHA)


def _train_config(rows: int, length: int, steps: int) -> TrainConfig:
    return TrainConfig(
        micro_batch_size=rows,
        gradient_accumulation_steps=1,
        max_length=length,
        max_steps=steps,
        lr_scheduler="constant",
        warmup_ratio=0.0,
        packing="off",
    )


def _padded(part: MicroBatch) -> dict[str, torch.Tensor]:
    """The rows side by side, as transformers' own collators lay them."""
    found = [part.rows[row] for block in part.blocks for row in block]
    columns = {"input_ids": [ids for ids, _ in found], "labels": [labels for _, labels in found]}
    columns["attention_mask"] = [np.ones_like(ids) for ids, _ in found]
    fillings = {"input_ids": 0, "labels": IGNORE, "attention_mask": 0}
    return {
        name: pad_sequence([torch.tensor(one, dtype=torch.long) for one in rows], True, fillings[name])
        for name, rows in columns.items()
    }


def main() -> None:
    """Measure both sides, ours first, since it makes the start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=ROWS, default="text", help="text: every token carries loss")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    cache = Path(platformdirs.user_cache_dir("lora-workbench-benchmarks"))
    folder = cache / "starter"
    if not folder.exists():
        fetch_starter(cache, folder)
    start = cache / f"start-{time.time_ns()}"
    work = (folder, args.kind, args.rows, args.length, args.steps, cache / "rows", start)
    sides = [one(*work) for one in (ours, theirs)]
    mine, peers = sides
    mine["÷ PEFT"] = mine["tok/s"] / peers["tok/s"]  # type: ignore[operator]
    mine["loss ÷ PEFT's"] = mine["last loss"] / peers["last loss"]  # type: ignore[operator]
    print(f"dtype chosen here: {best_dtype(CPU)}")
    show(f"cpu starter, {args.kind} {args.rows}×{args.length}, {args.steps} steps", [peers, mine])


if __name__ == "__main__":
    main()
