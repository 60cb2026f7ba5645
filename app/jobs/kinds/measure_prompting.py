"""The job that measures the plain base on a run's validation rows, behind examples in its prompt and none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.jobs.kinds import Arguments, JobContext, JobKind
from app.shared.bases import source_of
from app.shared.run_data import data_of
from app.shared.run_rows import held_for
from core.errors import InvalidConfig, WrongBase
from storage.tables import Base, Run

if TYPE_CHECKING:
    from core.base_model.load import ResidentBase

_MOST_SHOTS = 64


class MeasurePrompting(JobKind):
    """Arguments: run (its number), shots (how many examples stand in the prompt)."""

    name, label, order = "measure_prompting", "Measure the plain base", 90
    help = "Measure the plain base on a run's validation rows, with examples in its prompt and without."
    place = "Runs, Compare with baselines, or baselines"

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Measure the plain base beside run {arguments['run']}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound, InvalidConfig."""
        run, shots = context.registry.get(Run, int(arguments["run"])), int(arguments.get("shots", 4))
        if not 1 <= shots <= _MOST_SHOTS:
            raise InvalidConfig(f"{shots} examples cannot be given; choose 1 to {_MOST_SHOTS}.")
        context.registry.get(Base, run.base_id)
        return {"run": run.id, "shots": shots}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: run, shots, and for "base" and "few-shot" what was measured, or why it cannot be."""
        from dataclasses import asdict

        from core.base_model.load import load_base
        from core.errors import InvalidData, InvalidInput, InvalidModel
        from core.events import Progress

        registry, shots = context.registry, int(arguments["shots"])
        run = registry.get(Run, int(arguments["run"]))
        base = registry.get(Base, run.base_id)
        if base.fingerprint != run.base_fingerprint:
            raise WrongBase(f"{base.name} is no longer the model that the run is for.")
        source = source_of(registry, base, held_for(run))
        context.report(Progress(f"Loading {base.name}"))
        resident = load_base(
            source.folder,
            fingerprint=source.fingerprint,
            name=source.name,
            template=source.template,
            quantisation=source.quantisation,
        )
        found: Arguments = {"run": run.id, "shots": shots}
        for name, count in (("base", 0), ("few-shot", shots)):
            try:
                found[name] = asdict(_measured(context, run, resident, count))
            except (InvalidData, InvalidInput, InvalidConfig, InvalidModel) as error:
                found[name] = {"refused": str(error)}
        return found


KIND = MeasurePrompting()


def _measured(context: JobContext, run: Run, base: ResidentBase, shots: int) -> Any:
    """core.generate.few_shot.Prompted of the validation rows, behind examples from the training rows."""
    import random

    import numpy as np

    from core.errors import InvalidData
    from core.generate.few_shot import prompted_labels, prompted_loss
    from core.train.objectives import OBJECTIVES
    from core.train.training_options import TrainingOptions

    options: Any = TrainingOptions.from_dict(run.config)
    rows, version, _ = data_of(context.registry, run)
    usable = version.usable(rows)
    judged = [rows[int(at)] for at in np.flatnonzero(usable & version.validation)]
    learnt = np.flatnonzero(usable & ~version.validation).tolist()
    if not judged:
        raise InvalidData("The data set keeps no rows back for validation, so nothing can be measured.")
    chosen = random.Random(options.train.seed).sample(learnt, min(shots, len(learnt)))
    examples = [rows[at] for at in chosen]
    objective = OBJECTIVES.get(options.train.objective)
    base.require_writing()
    if objective.classifies:
        return prompted_labels(base, examples, judged, _labels(rows, usable, options), context.report)
    if objective.name != "sft":
        raise InvalidConfig(f"{objective.label} has no loss that a prompt could be judged by.")
    longest = options.train.max_length if options.train.over_length == "truncate" else base.context_length
    longest = min(longest, base.context_length)
    return prompted_loss(base, examples, judged, longest, context.report, version.chat)


def _labels(rows: Any, usable: Any, options: Any) -> tuple[str, ...]:
    """Of rows with one label each. Raises InvalidConfig for others."""
    from core.data.labelled_rows import labels_in
    from core.data.labels import SINGLE

    if options.objective.problem_type != SINGLE:
        raise InvalidConfig("Only one label for each text can be asked for in a prompt.")
    own = options.objective
    return labels_in(rows.all_stored(), usable, own.problem_type, own.label_separator)[0].names
