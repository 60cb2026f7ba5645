"""One of several processes that train a group; the tests start them, forked or by torchrun.

Its one argument is a JSON file: the base's folder, the runs with their options, how it is to be trained, and
where the first process puts what came of it. Forked, LORA_WORKBENCH_RANK and so on say which one it is, and
the file where they meet; by torchrun the usual variables.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from core.base_model.quantisation import NONE
from core.base_model.quantised_load import quantised_layers
from core.data.formats import Example
from core.errors import WorkbenchError
from core.events import EvalDone, Notice, RunFailed, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.lora.peft.files import load_adapter, save_adapter
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run_state import RunState
from core.train.share import ALL, NotHeld
from tests.core.helpers import load, load_float64, request


def rows(word: str, count: int) -> list[Example]:
    """Conversations of different lengths."""
    return [
        Example(
            i,
            (
                {"role": "user", "content": f"{word} {i}"},
                {"role": "assistant", "content": f"{word} fine " * (1 + i % 5)},
            ),
        )
        for i in range(count)
    ]


def _load(job: dict[str, Any]) -> Any:
    folder = Path(job["base"])
    if job.get("float64"):
        return load_float64(folder)
    return load(folder, quantisation=job.get("quantisation", NONE))


def train(job: dict[str, Any], share: Any = ALL, loaded: Any = _load) -> dict[str, Any]:
    """What came of it: adapters in folders, losses by step, and errors, by run."""
    torch.set_num_threads(1)
    if "compiler" in job:  # a quick one, since what is tested is not the code that it makes
        torch.compile = functools.partial(torch.compile, backend=job["compiler"])
    base = loaded(job)
    Path(job["out"], f"held-{share.number}").write_text(str(_held_bytes(base)))
    mine = job.get("differs", {}) if share.number else {}
    requests = [_request(base, name, one | mine) for name, one in job["runs"].items()]
    group = TrainingGroup(base, requests, share=share)
    if share.number in job.get("short", {}).get("processes", ()):
        _run_short(base, **job["short"])
    found: dict[str, Any] = {name: {"losses": [], "error": "", "notices": []} for name in job["runs"]}
    for key, event in group.run():
        if isinstance(event, (StepDone, EvalDone)):
            found[key]["losses"].append([type(event).__name__, event.step, event.loss])
            if share.number == 0:
                _act(group, key, event, job)
        elif isinstance(event, Notice):
            found[key]["notices"].append(event.text)
        elif isinstance(event, RunFailed):
            found[key]["error"] = str(event.error)
        elif isinstance(event, TrainingDone) and share.number == 0:
            found[key]["steps"] = event.steps
            folder = Path(job["out"], key)
            folder.mkdir(parents=True)
            save_adapter(folder, group.adapter(key))
    return found


def _run_short(base: Any, rows: int, where: str, **_: object) -> None:
    """Have the middle of a pass over more rows than these fail as the allocator does."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def hook(_: object, given: Any, output: Any) -> None:
        if given[0].shape[0] > rows and torch.is_grad_enabled() == (where != "evaluating"):
            if where == "backward":
                output.register_hook(fail)
            else:
                fail()

    base.decoder_layers[len(base.decoder_layers) // 2].register_forward_hook(hook)


def _held_bytes(base: Any) -> int:
    """Of the base's numbers that this process holds, as torch has them."""
    packed = [one for layer in quantised_layers(base.model) for one in layer.buffers()]
    numbers = [getattr(one, "to_local", lambda one=one: one)() for one in base.model.parameters()]
    return sum(one.numel() * one.element_size() for one in [*numbers, *packed])


def _request(base: Any, name: str, one: dict[str, Any]) -> Any:
    asked = request(
        base, rows(one["word"], one["rows"]), LoraConfig(**one["lora"]), TrainConfig(**one["train"])
    )
    resume = None
    if folder := one.get("resume"):
        resume = load_adapter(Path(folder), base.layer_shapes, base.head), RunState.load(Path(folder))
    return type(asked)(name, asked.rows, asked.options, resume=resume)


def _act(group: TrainingGroup, key: str, event: StepDone | EvalDone, job: dict[str, Any]) -> None:
    """What is asked of the first process in mid-run."""
    asked = job.get("asked", {})
    if isinstance(event, StepDone) and event.step == asked.get("stop"):
        group.stop(key)
    if isinstance(event, StepDone) and event.step == asked.get("change", {}).get("at"):
        group.change(key, **asked["change"]["values"])
    if event.step == asked.get("save") and group.told(key, event.step):
        folder = Path(job["out"], f"{key}-saved")
        if not folder.exists():
            folder.mkdir(parents=True)
            save_adapter(folder, group.adapter(key))
            state = group.state(key)
            assert state is not None
            state.save(folder)


def main() -> int:
    """Train, and write what came of it if this is the first process."""
    from core.base_model.sharded import load_sharded, shard
    from core.train.base_apart import BaseApart
    from core.train.data_apart import DataApart, backend

    job = json.loads(Path(sys.argv[1]).read_text())
    if meeting := os.environ.get("LORA_WORKBENCH_MEETING"):
        about = {
            "init_method": f"file://{meeting}",
            "rank": int(os.environ["LORA_WORKBENCH_RANK"]),
            "world_size": int(os.environ["LORA_WORKBENCH_WORLD"]),
        }
    else:
        about = {}
    device = torch.device("cpu")
    dist.init_process_group(backend(device), **about)
    try:
        if job.get("base_apart"):
            share = BaseApart(device)

            def in_parts(job: dict[str, Any]) -> Any:
                how = job.get("quantisation", NONE)
                told = {"fingerprint": "f" * 64, "name": "tiny", "template": "", "quantisation": how}
                about = {"device": device, "dtype": torch.float32} | told
                base = shard(_load(job), device) if how == NONE else load_sharded(Path(job["base"]), **about)
                share.accompany(base)
                return base

            found = train(job, share, in_parts)
        else:
            found = train(job, DataApart(device))
    except (WorkbenchError, NotHeld) as error:
        found = {"error": str(error)}
    if dist.get_rank() == 0:
        Path(job["out"], "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
