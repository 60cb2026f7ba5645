"""The whole journey in one go: starter model, sample data, a short training, base beside adapter, checked
export.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from app.service.workbench import Workbench
from app.shared.errors import JobFailed
from core.base_model.starter import NAME as STARTER_NAME
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.tables import FINISHED, Adapter, Base, Job, Run

PROMPT = "How do I cook pasta?"
# A small set of short rows wants many small steps: 62 rows in micro-batches of 4 make 15 steps an epoch.
# One at this rate teaches the manner of speaking as well as two at half of it.
QUICK_OPTIONS: dict[str, object] = {
    "rank": 8,
    "alpha": 16,
    "learning_rate": 2e-3,
    "epochs": 1,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 256,
}


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart shows at its end."""

    base: str
    adapter: str
    first_loss: float
    last_loss: float
    prompt: str
    base_answer: str
    adapter_answer: str
    export_folder: str
    check_passed: bool
    max_logit_difference: float
    check: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Watchers:
    """Who is told what while it goes on."""

    say: Callable[[str], None]
    job: Callable[[Job], None]
    run: Callable[[Run], None]


def run_quickstart(workbench: Workbench, watch: Watchers) -> QuickstartResult:
    """Do the journey. Raises JobFailed or any user error with the reason it stopped."""
    start = time.monotonic()
    base = _starter(workbench, watch)
    watch.say("Importing the sample conversations")
    dataset = workbench.datasets.add_sample()
    watch.say(f"Training an adapter on {dataset.rows} conversations")
    options = TrainingOptions.parse(QUICK_OPTIONS)
    run = workbench.runs.wait(workbench.training.start(base.name, dataset.name, options).id or 0, watch.run)
    if run.state != FINISHED or run.adapter_id is None:
        raise JobFailed(f"The training ended as {run.state}: {run.reason}")
    adapter = _adapter_name(workbench, run)
    watch.say("Asking the base and the adapter, side by side")
    answers = _ask(workbench, base.name, adapter)
    watch.say("Merging the adapter into the base and checking the result")
    export = workbench.jobs.wait(workbench.exports.start(adapter), watch.job)
    losses = [
        point.loss for point in workbench.registry.measurements.points(run.id or 0) if point.loss is not None
    ]
    return QuickstartResult(
        base=base.name,
        adapter=adapter,
        first_loss=losses[0],
        last_loss=losses[-1],
        prompt=PROMPT,
        base_answer=answers[0],
        adapter_answer=answers[1],
        export_folder=export["folder"],
        check_passed=export["passed"],
        max_logit_difference=export["check"]["max_logit_difference"],
        check=export["sentence"],
        seconds=round(time.monotonic() - start, 1),
    )


def _starter(workbench: Workbench, watch: Watchers) -> Base:
    """The starter model, added if it is not there yet."""
    there = next((base for base in workbench.registry.all(Base) if base.source == "starter"), None)
    if there is not None:
        return there
    watch.say(f"Fetching the starter model {STARTER_NAME}")
    result = workbench.jobs.wait(workbench.models.add("starter"), watch.job)
    return workbench.registry.find(Base, result["name"])


def _adapter_name(workbench: Workbench, run: Run) -> str:
    return workbench.registry.get(Adapter, run.adapter_id or 0).name


def _ask(workbench: Workbench, base: str, adapter: str) -> list[str]:
    """One greedy answer each of the plain base and the adapter."""
    answers = ["", ""]
    messages = [{"role": "user", "content": PROMPT}]
    config = GenerationConfig(max_tokens=60, temperature=0.0)
    for token in workbench.chats.answer(base, [None, adapter], [messages, messages], config):
        answers[token.row] += token.text
    return answers
