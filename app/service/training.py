"""Training: from options to queued runs, and what they would take. Knows nothing of Gradio."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.service.checking import checks_of, require_sound, row_characters, with_start
from app.service.datasets import BaseCheck
from app.service.usage import Usage
from app.shared.bases import config_of, experts_of, require_can, shapes_of, tensors_of, wholes_for
from app.shared.below import adapter_below, by_digest
from app.shared.engine_client import EngineClient
from app.shared.errors import EngineUnavailable
from app.shared.join_address import require_key
from app.shared.run_data import chat_of
from app.shared.run_rows import cards_of, held_for, run_row, weight_bytes_of
from app.shared.user_settings import PreferenceStore
from core.base_model.way import GENERAL_NAME
from core.errors import InvalidConfig, InvalidData
from core.lora.targets import Targeted, usual_targets
from core.train.base_shape import BaseShape
from core.train.cards_here import CardsHere, require_count
from core.train.checklist import Check
from core.train.config import TrainConfig
from core.train.estimate import DataShape, Estimate, estimate
from core.train.step_count import smaller_plans
from core.train.sweep import Grid, combinations
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Dataset, Run

Choice = tuple[str, dict[str, Any]]
"""A change of options: in words, and the options."""


@dataclass
class _Seen:
    """What earlier runs have shown."""

    tokens_per_second: float | None = None
    row_tokens: float | None = None
    """Of a sequence, on average."""
    sequences: int | None = None
    """That the rows to train on become."""


def _cards_told(status: Mapping[str, Any]) -> CardsHere | None:
    """The cards of this machine, as the engine tells of them."""
    told = status.get("cards")
    return CardsHere(**told) if told else None


def _card_bytes(here: CardsHere | None, train: TrainConfig) -> list[float]:
    """What each card has on which such a run would train, or could; none if nobody is there to say it.

    Raises InvalidConfig where there are fewer.
    """
    if here is None:
        return []
    if train.processes == 1:
        return [float(one) for one in here.totals]
    if train.devices == 1:
        return []
    require_count(here.names, train.devices)
    return here.of_each(train.devices)


class Training:
    """Planning, measuring and queueing the runs of one home folder."""

    def __init__(
        self,
        registry: Registry,
        engine: EngineClient,
        usage: Usage,
        preferences: PreferenceStore,
        checked: Callable[[Dataset, Base, int], BaseCheck | None],
    ) -> None:
        """checked: what a check of a data set with a base at a length has shown, see Datasets.checked()."""
        self._registry, self._engine, self._usage, self._checked = registry, engine, usage, checked
        self._preferences = preferences

    def start(
        self,
        base: str,
        dataset: str,
        options: TrainingOptions,
        name: str = "",
        *,
        together: bool = False,
        anyway: bool = False,
    ) -> Run:
        """Queue a training run and have the engine take it. With `together` it may train at once with others
        that allow it.

        Raises InvalidConfig for target_modules that match nothing, QuestionableRun for what the checklist
        refuses unless it is to be trained `anyway`, NotFound, NameTaken.
        """
        return self.start_all(base, dataset, [("", options)], name, together=together, anyway=anyway)[0]

    def sweep(
        self,
        base: str,
        dataset: str,
        options: TrainingOptions,
        grid: Grid,
        name: str = "",
        *,
        anyway: bool = False,
    ) -> list[Run]:
        """Queue a run for every combination of the grid's values, to train at once where their shapes allow
        it.

        Raises as start(); all runs are queued or none.
        """
        return self.start_all(base, dataset, combinations(options, grid), name, anyway=anyway)

    def start_all(
        self,
        base: str,
        dataset: str,
        wanted: Sequence[tuple[str, TrainingOptions]],
        name: str = "",
        *,
        together: bool = False,
        like: str = "",
        anyway: bool = False,
    ) -> list[Run]:
        """As sweep(), of combinations that are worked out already, each with its label. together: as start()
        has it; several train at once anyhow. like: what they are called after where no name is given.
        """
        self._usage.require_room()
        model, data = self._registry.find(Base, base), self._registry.find(Dataset, dataset)
        self._require_sound(data)
        sweep = secrets.token_hex(8) if len(wanted) > 1 else ""
        prefix = name or self._unused_prefix(
            like or data.name.removesuffix(" (sample)"), [label for label, _ in wanted]
        )
        runs = []
        for label, options in wanted:
            require_can(model, options)
            if options.train.machines > 1:
                require_key(self._preferences.values().join_key)
            plan = self._estimate(model, data, options)  # raises for target_modules that match nothing
            if not anyway:
                require_sound(self._checks(model, data, options, plan))
            kept = by_digest(self._registry, model, options)
            run = run_row(model, data, kept.to_dict(), f"{prefix} {label}".strip())
            run.sweep, run.together = sweep, together
            run.chat = chat_of(self._registry, run).to_dict()
            runs.append(run)
        self._registry.queue.add(runs, number_if_taken=not name)
        for run, (_, options) in zip(runs, wanted, strict=True):
            if experts := experts_of(self._registry, model, options.lora):
                self._registry.measurements.add_note(run.id or 0, experts)
        try:
            self._engine.wake()
        except EngineUnavailable as error:
            self._registry.runs.fail_queued(str(error))
            raise
        return runs

    def checklist(self, base: str, dataset: str, options: TrainingOptions) -> list[Check]:
        """What should be looked at before such a run, each point with its state and the reason.

        Raises InvalidConfig, NotFound.
        """
        model, data = self._registry.find(Base, base), self._registry.find(Dataset, dataset)
        return self._checks(model, data, options, self._estimate(model, data, options))

    def checklist_of(self, run_id: int) -> list[Check]:
        """That of a run, with what was found when it was prepared; none where its base, its data or its kind
        are not here any more.

        Raises NotFound.
        """
        run = self._registry.get(Run, run_id)
        try:
            options = TrainingOptions.from_dict(run.config)
            return with_start(self.checklist(run.base_name, run.dataset_name, options), run)
        except (NotFound, InvalidConfig, InvalidData):
            return []

    def _checks(self, base: Base, data: Dataset, options: TrainingOptions, plan: Estimate) -> list[Check]:
        return checks_of(self._registry, base, data, options, plan, self.room(options.train))

    def room(self, train: TrainConfig) -> int | None:
        """Bytes of memory that such a run could have on each of its cards; None while no engine is there to
        say it.
        """
        status = self._engine.status() or {}
        here, room = _cards_told(status), status.get("memory_bytes")
        return room if here is None or room is None else here.room_of_each(train.devices, room)

    def beside(self, run: Run, wanted: Sequence[tuple[str, TrainingOptions]]) -> list[Run]:
        """Queue runs on the base and the data of another, called after it and what is said of each; several
        train at once where their shapes allow it.

        Raises InvalidConfig, NotFound; all are queued or none.
        """
        return self.start_all(run.base_name, run.dataset_name, wanted, like=run.name, anyway=True)

    def measure(
        self, base: str, dataset: str, wanted: Sequence[TrainingOptions]
    ) -> tuple[dict[str, Any], list[Choice]]:
        """What runs with these options would take at once, measured in a few seconds, and what to change if
        it is too much.

        Raises InvalidConfig, InvalidData, NotFound, EngineUnavailable.
        """
        *_, (found, offered) = self.measuring(base, dataset, wanted)
        return found, offered

    def measuring(
        self, base: str, dataset: str, wanted: Sequence[TrainingOptions], name: str = ""
    ) -> Iterator[tuple[dict[str, Any], list[Choice]]]:
        """The same bit by bit: how far it is, as `{"text", "share"}` and without changes, until the result.

        `end_measuring(name)` ends it, and so does closing the iterator. Raises MeasuringEnded as well.
        """
        self._require_sound(self._registry.find(Dataset, dataset))
        for options in wanted:
            require_can(self._registry.find(Base, base), options)
        experts = experts_of(self._registry, self._registry.find(Base, base), wanted[0].lora)
        for found in self._engine.measure(base, dataset, [one.to_dict() for one in wanted], name):
            if "progress" in found:
                yield found["progress"], []
        found["notices"] = [*found["notices"], *([experts] if experts else [])]
        if found["fits"] and not found["squeezed"]:
            yield found, []
        else:
            plan = self.estimate(base, dataset, wanted[0])
            yield found, smaller_plans(wanted[0].train, plan.hold, plan.cards)

    def end_measuring(self, name: str) -> None:
        """End what is being measured under this name. Raises EngineUnavailable."""
        self._engine.end_measuring(name)

    @staticmethod
    def _require_sound(data: Dataset) -> None:
        if data.faulty_rows:
            many = data.faulty_rows > 1
            raise InvalidData(
                f"{data.faulty_rows:,} row{'s' if many else ''} of {data.name} "
                f"{'have' if many else 'has'} errors. "
                "Mend them or leave them out first: on the page under Data, Report; in a terminal with "
                "data exclude --errors."
            )

    def _unused_prefix(self, wanted: str, labels: Sequence[str]) -> str:
        """`wanted`, with a number where a sweep of that name has been: behind a label it would read as part
        of a value.
        """
        taken = self._registry.names(Adapter) | {run.name for run in self._registry.runs.active()}
        prefix, number = wanted, 1
        while any(f"{prefix} {label}" in taken for label in labels if label):
            number += 1
            prefix = f"{wanted}-{number}"
        return prefix

    def targets(self, base: str, options: TrainingOptions) -> dict[str, Targeted]:
        """Which layers of a base each usual choice of target modules hits, by what it is called, and how many
        parameters that is with these options. Raises NotFound.
        """
        model = self._registry.find(Base, base)
        return usual_targets(shapes_of(model), model.head, options.lora, options.kind)

    def estimate(self, base: str, dataset: str, options: TrainingOptions) -> Estimate:
        """What a training would need. Raises InvalidConfig, NotFound."""
        data = self._registry.find(Dataset, dataset)
        self._require_sound(data)
        model = self._registry.find(Base, base)
        require_can(model, options)
        experts = experts_of(self._registry, model, options.lora)
        return replace(self._estimate(model, data, options), experts=experts)

    def _estimate(self, base: Base, data: Dataset, options: TrainingOptions) -> Estimate:
        adapter_below(self._registry, base, options)  # raises for one that is not here or not this base's
        shape = BaseShape(
            shapes_of(base),
            base.head,
            base.parameters,
            base.layers,
            base.hidden_size,
            base.vocab_size,
            wholes_for(base, options),
            config_of(base) if options.lora.parts else {},
            tensors_of(self._registry, base),
            base.way != GENERAL_NAME,
        )
        lengths = [row_characters(row) for row in data.preview]
        usable = data.rows - data.excluded_rows - data.faulty_rows - data.validation_rows
        mean = sum(lengths) / max(1, len(lengths))
        seen = self._seen(base, data, options.train)
        if (check := self._checked(data, base, options.train.max_length)) and not seen.row_tokens:
            seen.sequences = check.report.get("train_sequences")
            seen.row_tokens = check.report["mean_length"]
        rows = DataShape(seen.sequences or usable, mean, data.validation_rows, seen.row_tokens)
        status = self._engine.status() or {}
        return estimate(
            shape,
            rows,
            options,
            bytes_per_weight=status.get("weight_bytes") or self._weight_bytes(),
            tokens_per_second=seen.tokens_per_second,
            card_bytes=_card_bytes(_cards_told(status), options.train),
        )

    def _weight_bytes(self) -> int:
        """Of the number format in which the last runs here have computed; before any, what cards take."""
        return next(filter(None, map(weight_bytes_of, self._registry.all(Run, limit=20))), 2)

    def _seen(self, base: Base, data: Dataset, train: TrainConfig) -> _Seen:
        """What the last runs on this base that got anywhere have shown, their slow first steps counted. Of
        another quantisation they tell nothing, and on other cards nothing of the speed.
        """
        found = _Seen()
        for run in self._registry.all(Run, limit=20):
            if run.base_fingerprint != base.fingerprint or held_for(run) != train.quantisation:
                continue
            point = self._registry.measurements.last_point(run.id or 0)
            if point is None or not (point.tokens and point.seconds and point.epoch):
                continue
            if cards_of(run) == (train.devices, train.machines, train.sharding):
                found.tokens_per_second = found.tokens_per_second or point.tokens / point.seconds
            rows = run.details.get("train_sequences") or run.details.get("train_rows")
            if run.dataset_digest == data.digest and rows and not found.row_tokens:
                found.row_tokens, found.sequences = point.tokens / point.epoch / rows, rows
            if found.row_tokens and found.tokens_per_second:
                break
        return found
