"""What LoRA costs, and full fine-tuning beside it: the literature's claims, each held against what was
measured here. Knows nothing of Gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.service.baselines import Baseline, Baselines, is_full
from app.service.jobs import Jobs
from app.shared.references import refer
from core.errors import InvalidConfig
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import FINISHED, Adapter, Base, Job, Run

SOURCE = "arXiv 2106.09685"
COUNT, BYTES, SECONDS, LOSS = "count", "bytes", "seconds", "loss"
_LATENCY = "measure_latency"
_MOMENT_BYTES = 8  # AdamW keeps two float32 numbers for each that is trained


@dataclass(frozen=True)
class Claim:
    """One thing that is said of LoRA, and the figures here; None for what is not known yet."""

    name: str
    said: str
    """What the literature has measured."""
    unit: str
    lora: float | None = None
    full: float | None = None

    @property
    def ratio(self) -> float | None:
        """LoRA's figure as a share of full fine-tuning's."""
        return self.lora / self.full if self.lora is not None and self.full else None

    def record(self) -> dict[str, Any]:
        """As one flat row."""
        return {
            "claim": self.name,
            "literature": self.said,
            "lora": self.lora,
            "full_fine_tuning": self.full,
            "ratio": self.ratio,
            "unit": self.unit,
        }


@dataclass(frozen=True)
class Costs:
    """A run beside full fine-tuning, and its adapter's speed."""

    run: Run
    full: Run | None
    claims: Sequence[Claim]
    latency: Job | None
    """The newest measuring of the adapter's speed, under way or at its end; its result is that of
    app/jobs/kinds/measure_latency.py.
    """


@dataclass(frozen=True)
class Missing:
    """What is under way now, since it was not known."""

    full: Run | None
    latency: Job | None
    left_out: str = ""
    """Why full fine-tuning was not started, in a sentence."""


class CostsOfLora:
    """The costs of the runs of one home folder."""

    def __init__(self, registry: Registry, jobs: Jobs, baselines: Baselines) -> None:
        self._registry, self._jobs, self._baselines = registry, jobs, baselines

    def runs(self, limit: int | None = None) -> list[Run]:
        """Those among the newest that have given an adapter, the newest first."""
        newest = self._registry.all(Run, limit=limit)
        return [run for run in newest if run.adapter_id is not None and not is_full(run)]

    def usual(self) -> Run:
        """The newest of them. Raises NotFound where there is none."""
        if not (found := self.runs()):
            raise NotFound("No run has given an adapter yet; train one, or begin with quickstart.")
        return found[0]

    def begin(self, run_id: int) -> Missing:
        """Train and measure what is missing: full fine-tuning where it fits, and the adapter's speed behind
        it.

        Raises NotFound; InvalidConfig for a run of full fine-tuning, or one without an adapter.
        """
        run = self._lora_run(run_id)
        full, why = self._baselines.begin_full(run)
        adapter = self._registry.get(Adapter, run.adapter_id or 0)
        known = self.latency(adapter)
        writes = str(run.config["train"].get("objective", "sft")) == "sft"
        started = self.measure(adapter.name) if known is None and writes else None
        return Missing(full, started, why)

    def measure(self, adapter: str) -> Job:
        """Measure an adapter's speed anew. Raises NotFound, InvalidConfig for a classifier."""
        row = self._registry.find(Adapter, adapter)
        return self._jobs.start(_LATENCY, {"adapter": refer(row)})

    def latency(self, adapter: Adapter) -> Job | None:
        """The newest measuring of an adapter's speed that has finished or is under way."""
        for job in self._registry.jobs.of(_LATENCY, {"adapter.id": adapter.id}, adapter.created, 5):
            if job.active or job.state == FINISHED:
                return job
        return None

    def of(self, run_id: int) -> Costs:
        """What is known of a run. Raises as begin()."""
        run = self._lora_run(run_id)
        full = self._baselines.full_beside(run)
        base = self._registry.get(Base, run.base_id)
        lines = self._baselines.line(run), self._baselines.line(full) if full else Baseline("", "")
        adapter = self._registry.get(Adapter, run.adapter_id or 0)
        return Costs(run, full, _claims(*lines, base), self.latency(adapter))

    def _lora_run(self, run_id: int) -> Run:
        run = self._registry.get(Run, run_id)
        if is_full(run):
            raise InvalidConfig(
                f"{run.name} is full fine-tuning; choose the run whose adapter is held against it."
            )
        if run.adapter_id is None:
            raise InvalidConfig(
                f"{run.name} has given no adapter, so there is nothing to hold against anything."
            )
        return run


def _claims(lora: Baseline, full: Baseline, base: Base) -> list[Claim]:
    """In the order of the paper; its figures are of GPT-3 175B with LoRA on q and v."""
    return [
        Claim(
            "Trained parameters",
            "10,000 times fewer",
            COUNT,
            lora.parameters,
            full.parameters or base.parameters,
        ),
        Claim(
            "Checkpoint",
            "10,000 times smaller: 35 MB, not 350 GB",
            BYTES,
            lora.file_bytes,
            full.file_bytes or base.size_bytes,
        ),
        Claim(
            "Optimiser's state",
            "none for what is frozen",
            BYTES,
            _moments(lora.parameters),
            _moments(full.parameters or base.parameters),
        ),
        Claim("Peak memory", "a third: 350 GB, not 1.2 TB", BYTES, lora.peak_bytes, full.peak_bytes),
        Claim("Time of a step", "25 % more tokens a second", SECONDS, lora.step_seconds, full.step_seconds),
        Claim("Validation loss", "as good, or better", LOSS, lora.validation_loss, full.validation_loss),
    ]


def _moments(parameters: int | None) -> int | None:
    return None if parameters is None else _MOMENT_BYTES * parameters


def latency_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The result of a measuring as flat rows: one a load and a figure, in milliseconds, with the shares of
    the base's time.
    """
    rows = []
    for load in result["loads"]:
        for figure, words in (("first", "the first token"), ("token", "each further token")):
            times = {way: 1000 * load[way][figure] for way in ("base", "adapter", "merged")}
            rows.append(
                {
                    "rows": load["rows"],
                    "time": words,
                    **{f"{way}_ms": value for way, value in times.items()},
                    **{f"{way}_ratio": times[way] / times["base"] for way in ("adapter", "merged")},
                    "spread": load["base"]["spread"],
                }
            )
    return rows
