"""The baselines beside a run: full fine-tuning, the plain base, and examples in its prompt. Knows nothing of
Gradio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.service.jobs import Jobs
from app.service.metrics import last_metrics
from app.service.runs import options_of
from app.service.training import Training
from core.base_model.quantisation import NONE
from core.errors import InvalidConfig
from core.lora.config import ALL_LINEAR
from core.lora.kinds import ADAPTER_KINDS
from core.train.training_options import TrainingOptions, all_options, without_unchosen
from storage.registry import Registry
from storage.tables import FAILED, FINISHED, Adapter, Job, Run

SHOTS = 4
RANKS = (4, 8, 16, 64)
FULL = "full"
_MEASURING = "measure_prompting"
_RATE_SHARE = 0.1  # of LoRA's learning rate that suits full fine-tuning
_OF_FACTORS = ("rank", "alpha", "dropout", "use_rslora", "rank_pattern", "alpha_pattern", "loraplus_lr_ratio")
_OF_CHOICE = ("target_modules", "target_parameters", "layers_to_transform", "enable_lora")
_BESIDE_FACTORS = ("modules_to_save", "bias", "on_top_of")  # which all weights hold anyhow, or start without
_OF_PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Baseline:
    """One line of the table. What is not known, or has no place in this line, is None."""

    name: str
    state: str
    run: Run | None = None
    parameters: int | None = None
    """That are trained."""
    file_bytes: int | None = None
    peak_bytes: int | None = None
    """Of memory while it was trained, the base counted."""
    step_seconds: float | None = None
    validation_loss: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the objective names, on the validation rows, by its label."""
    note: str = ""

    def record(self) -> dict[str, Any]:
        """As one flat row."""
        return {
            "name": self.name,
            "state": self.state,
            "run": self.run.id if self.run else None,
            "trainable_parameters": self.parameters,
            "file_bytes": self.file_bytes,
            "peak_memory_bytes": self.peak_bytes,
            "seconds_a_step": self.step_seconds,
            "validation_loss": self.validation_loss,
            **self.scores,
            "note": self.note,
        }


@dataclass(frozen=True)
class Begun:
    """What is under way now for the table of a run."""

    full: Run | None
    """Full fine-tuning, if it was not there already."""
    measuring: Job | None
    """The plain base and the prompts, if they were not measured already."""
    left_out: str = ""
    """Why full fine-tuning was not started, in a sentence."""


class Baselines:
    """The baselines beside the runs of one home folder."""

    def __init__(self, registry: Registry, training: Training, jobs: Jobs) -> None:
        self._registry, self._training, self._jobs = registry, training, jobs

    # What is begun.

    def begin(self, run_id: int, shots: int = SHOTS, *, full: bool = True) -> Begun:
        """Start what is missing in the table of a run: full fine-tuning where it fits, and the measuring of
        the plain base and of prompts with so many examples.

        Raises NotFound, InvalidConfig.
        """
        run = self._registry.get(Run, run_id)
        arguments = {"run": run_id, "shots": shots}
        measuring = None
        if self._measured(run_id, shots) is None:
            measuring = self._jobs.start(_MEASURING, arguments)
        begun, why = self.begin_full(run) if full else (None, "")
        return Begun(begun, measuring, why)

    def begin_full(self, run: Run) -> tuple[Run | None, str]:
        """Queue full fine-tuning beside a run, unless it is there already; or why it was not started."""
        if is_full(run) or self.full_beside(run) is not None:
            return None, ""
        options = full_options(run)
        if why := self._too_large(run, options):
            return None, why
        return self._training.beside(run, [(FULL, options)])[0], ""

    def enough(self, run_id: int) -> list[Run]:
        """Is LoRA enough here? The run again with each of RANKS, all trained at once, and full fine-tuning
        behind them where it fits.

        Raises NotFound; InvalidConfig where the run's kind has no rank.
        """
        run = self._registry.get(Run, run_id)
        if is_full(run):
            raise InvalidConfig(
                f"{run.name} is full fine-tuning, which has no rank; ask this of a run that trains LoRA."
            )
        wanted = [(f"rank={rank}", ranked_options(run, rank)) for rank in RANKS]
        runs, options = self._training.beside(run, wanted), full_options(run)
        beside = self.full_beside(run)
        if beside is None and not self._too_large(run, options):
            beside = self._training.beside(run, [(FULL, options)])[0]
        return [*runs, *([beside] if beside is not None else [])]

    def _too_large(self, run: Run, options: TrainingOptions) -> str:
        """Why full fine-tuning does not fit, with figures; empty where it does, or nobody can say yet."""
        plan = self._training.estimate(run.base_name, run.dataset_name, options)
        room = self._training.room(options.train)
        if room is None or plan.memory_bytes <= room:
            return ""
        return (
            f"Full fine-tuning of {plan.trainable_parameters:,} parameters takes about "
            f"{plan.memory_bytes / 2**30:.1f} GiB with gradients and moments, and {room / 2**30:.1f} GiB are "
            "there; it was not started."
        )

    # The table.

    def table(self, run_id: int, shots: int = SHOTS) -> list[Baseline]:
        """The run, full fine-tuning, the plain base, and examples in its prompt. Raises NotFound."""
        run = self._registry.get(Run, run_id)
        beside = None if is_full(run) else self.full_beside(run) or self._full_beside(run, failed=True)
        lines = [self.line(one) for one in (run, beside) if one is not None]
        if beside is None and not is_full(run):
            lines.append(Baseline("Full fine-tuning", "not started"))
        measured = self._measured(run_id, shots)
        names = {"base": "Plain base", "few-shot": f"{shots} examples in the prompt"}
        return [*lines, *(_of_prompting(words, measured, key) for key, words in names.items())]

    def line(self, run: Run) -> Baseline:
        """What is known of a run, as a line of the table."""
        run_id, measured = run.id or 0, self._registry.measurements
        last, judged = measured.last_point(run_id), measured.last_evaluation(run_id)
        adapter = self._registry.get(Adapter, run.adapter_id) if run.adapter_id is not None else None
        scores = {one["label"]: one["validation"] for one in last_metrics(self._registry, run)}
        return Baseline(
            name=f"{_kind_words(run)}: {run.name}",
            state=run.state,
            run=run,
            parameters=run.details.get("trainable_parameters"),
            file_bytes=adapter.size_bytes if adapter else None,
            peak_bytes=measured.peak_memory(run_id),
            step_seconds=last.seconds / last.step if last and last.seconds and last.step else None,
            validation_loss=judged.validation_loss if judged else None,
            scores={label: value for label, value in scores.items() if value is not None},
            note=run.reason,
        )

    def full_beside(self, run: Run) -> Run | None:
        """The newest run of full fine-tuning on the same base, data and objective that has not failed."""
        return self._full_beside(run, failed=False)

    def _full_beside(self, run: Run, *, failed: bool) -> Run | None:
        for one in self._registry.runs.on(run.base_fingerprint, run.dataset_digest):
            if is_full(one) and _objective(one) == _objective(run) and (one.state == FAILED) is failed:
                return one
        return None

    def _measured(self, run_id: int, shots: int) -> Job | None:
        """The newest measuring of a run with so many examples that has finished or is under way."""
        for job in self._registry.jobs.of_kind(_MEASURING):
            about = job.arguments["run"], job.arguments["shots"]
            if about == (run_id, shots) and (job.active or job.state == FINISHED):
                return job
        return None


def full_options(run: Run) -> TrainingOptions:
    """Full fine-tuning as a run was trained: its data, schedule and steps, all weights, and a tenth of its
    learning rate.
    """
    left = (*_OF_FACTORS, *_OF_CHOICE, *_BESIDE_FACTORS)
    values = {name: value for name, value in options_of(run).items() if name not in left}
    rate = float(values["learning_rate"])
    own = {"kind": FULL, "target_modules": ALL_LINEAR, "quantisation": NONE}
    scaled = rate if is_full(run) else rate * _RATE_SHARE
    return TrainingOptions.parse(without_unchosen({**values, **own, "learning_rate": scaled}))


def ranked_options(run: Run, rank: int) -> TrainingOptions:
    """The options of a run with another rank on all layers, and as much alpha for each rank as it has."""
    values = {name: value for name, value in options_of(run).items() if name not in _OF_PATTERNS}
    known = all_options()
    alpha = float(values.get("alpha", known["alpha"].default)) / int(
        values.get("rank", known["rank"].default)
    )
    return TrainingOptions.parse({**values, "rank": rank, "alpha": alpha * rank})


def _of_prompting(name: str, job: Job | None, key: str) -> Baseline:
    if job is None:
        return Baseline(name, "not measured")
    found = job.result.get(key, {})
    if not found:
        return Baseline(name, job.state, note=job.message)
    if "refused" in found:
        return Baseline(name, "cannot be measured", note=found["refused"])
    labels = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}
    return Baseline(
        name,
        "measured",
        parameters=0,
        file_bytes=0,
        validation_loss=found["loss"],
        scores={labels[one]: value for one, value in found["metrics"].items()},
        note=_prompting_note(found),
    )


def _prompting_note(found: Mapping[str, Any]) -> str:
    said = [f"{found['rows']:,} validation rows"]
    if found["prompt_tokens"]:
        said.append(f"each prompt {found['prompt_tokens']:,.0f} tokens longer")
    if found["shortened"]:
        said.append(f"{found['shortened']:,} had room for fewer examples")
    if found["unmatched"]:
        said.append(f"{found['unmatched']:,} answers were no label, and count as wrong")
    return ", ".join(said)


def is_full(run: Run) -> bool:
    """Whether a run is full fine-tuning."""
    return run.config.get("lora", {}).get("kind") == FULL


def _objective(run: Run) -> str:
    return str(run.config.get("train", {}).get("objective", "sft"))


def _kind_words(run: Run) -> str:
    lora = run.config.get("lora", {})
    kind = ADAPTER_KINDS.all().get(lora.get("kind", "lora"))
    label = kind.label if kind else str(lora.get("kind"))
    return label if kind is None or kind.whole else f"{label}, rank {lora.get('rank')}"
