"""The validation loss of adapters on the rows that the run of one of them kept back."""

from __future__ import annotations

from collections.abc import Sequence

from app.engine.preparing import prepare
from app.shared.bases import source_of
from app.shared.run_rows import held_for, run_row
from app.shared.settings import Settings
from core.base_model.load import ResidentBase
from core.engine import Engine
from core.errors import InvalidConfig
from core.events import Progress
from core.lora.adapter import AdapterWeights
from core.reporting import Report
from core.train.batches import RunData
from core.train.evaluation import validation_losses as judge
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Dataset, Run


def validation_losses(
    settings: Settings,
    registry: Registry,
    row: Adapter,
    base: Base,
    adapters: Sequence[AdapterWeights],
    report: Report,
) -> list[float]:
    """Of each of `adapters`, on the validation rows of the run that made `row`, or its data set's as it is
    now.

    Raises InvalidConfig if it is not known what it was trained on.
    """
    run = _run_like(registry, row, base)
    engine = Engine()
    resident: ResidentBase = engine.load_base(source_of(registry, base, held_for(run)))
    options = TrainingOptions.from_dict(run.config)
    preparing = prepare(registry, engine, run, options, settings.cache, lambda text: report(Progress(text)))
    while True:
        try:
            next(preparing)
        except StopIteration as done:
            request = done.value
            break
    data = RunData(request.rows, options.train, may_pack=resident.way.quick)
    return judge(resident, data, adapters, options.train, options.objective, report)


def losses_of_parents(
    settings: Settings,
    registry: Registry,
    base: Base,
    parents: Sequence[tuple[Adapter, AdapterWeights]],
    made: AdapterWeights,
    report: Report,
) -> list[list[float] | None]:
    """For each parent its own validation loss and that of what was `made` of them all, on the rows that its
    own run kept back; None where it is not known what it was trained on.
    """
    return [
        validation_losses(settings, registry, row, base, [weights, made], report)
        if _is_known(registry, row, base)
        else None
        for row, weights in parents
    ]


def _is_known(registry: Registry, row: Adapter, base: Base) -> bool:
    try:
        _run_like(registry, row, base)
    except InvalidConfig:
        return False
    return True


def _run_like(registry: Registry, row: Adapter, base: Base) -> Run:
    """A run with the data and the options that the adapter was trained with; it is not stored."""
    found = _trained_by(registry, row)
    if found is not None:
        return Run(**found.model_dump() | {"id": None, "base_id": base.id})
    try:
        data = registry.find(Dataset, row.dataset_name)
    except NotFound:
        raise InvalidConfig(
            f"{row.name} has no data set here, so its validation loss cannot be measured; leave that out."
        ) from None
    config = {"lora": {}} | {part: row.config.get(part, {}) for part in ("train", "objective")}
    return run_row(base, data, config)


def _trained_by(registry: Registry, row: Adapter) -> Run | None:
    """The run that made it, or made what it was made of."""
    if row.run_id is not None:
        try:
            return registry.get(Run, row.run_id)
        except NotFound:
            return None
    digests = [parent["digest"] for parent in row.parents]
    parents = [one for one in registry.all(Adapter) if one.digest in digests]
    return next((run for one in parents if (run := _trained_by(registry, one)) is not None), None)
