"""All that a training is given, as one object: from the form or the command line into the run's row, and from
there into the engine. Needs no torch.

Beside the options that all trainings have, an adapter kind and an objective may have some of their own. Only
those of the chosen ones count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from core.base_model.quantisation import NONE
from core.errors import InvalidConfig
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.options import Config, NoOptions, Option, unknown_option
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES, Objective

PARTS = ("lora", "train", "kind", "objective")
"""As rows and presets keep them apart."""
SUBJECTS = (
    "Adapter",
    "Objective",
    "Optimiser and schedule",
    "Batches and memory",
    "Evaluation and checkpoints",
    "Samples",
    "When it stops",
    "Others",
)
"""Headings of a form, in order."""


@dataclass(frozen=True)
class TrainingOptions:
    """What adapter is trained, and how."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    kind: Config = field(default_factory=NoOptions)
    """Own options of the adapter kind `lora.kind`; its defaults where none are given."""
    objective: Config = field(default_factory=NoOptions)
    """Own options of the objective `train.objective`; its defaults where none are given."""

    def __post_init__(self) -> None:
        for part, config in _chosen_configs(self.lora.kind, self.train.objective).items():
            given = getattr(self, part)
            if isinstance(given, NoOptions) and config is not NoOptions:
                object.__setattr__(self, part, config())
            elif not isinstance(given, config):
                raise InvalidConfig(f"{part} takes {config.__name__}, not {type(given).__name__}.")
        objective = OBJECTIVES.get(self.train.objective)
        objective.check(self.train)
        if self.lora.on_top_of and objective.classifies:
            raise InvalidConfig("on_top_of: a classifier's head has no place on top of another adapter.")
        if self.lora.on_top_of and self.train.weight_decay:
            raise InvalidConfig(
                "on_top_of: weight decay would shrink the adapter below as well; set it to 0."
            )
        if ADAPTER_KINDS.get(self.lora.kind).whole and self.train.quantisation != NONE:
            raise InvalidConfig(
                f"kind={self.lora.kind} trains the base's own weights, which "
                f"quantisation={self.train.quantisation} holds in few bits. Choose quantisation=none, or "
                "another kind."
            )

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> TrainingOptions:
        """Build from one flat mapping of form, command-line or preset values.

        Raises InvalidConfig: for a typo with the nearest option, for an option of a kind that is not chosen.
        """
        return _sorted(values, lambda config, own: config.parse(own))

    def changed(self, values: Mapping[str, Any]) -> TrainingOptions:
        """The same with some values changed, which are parsed already. A kind or objective that is newly
        chosen has its defaults.

        Raises InvalidConfig.
        """
        merged = {**self.flat(), **values}
        kept = _names_of(merged)
        return _sorted(
            {name: value for name, value in merged.items() if name in kept or name in values},
            lambda config, own: config(**own),
        )

    @classmethod
    def from_dict(cls, stored: Mapping[str, Mapping[str, Any]]) -> TrainingOptions:
        """Build from what to_dict() gave. Rows of earlier versions name neither kind nor objective, and mean
        the defaults.

        Raises InvalidConfig for a kind or an option that there is no more.
        """
        lora, train = LoraConfig.from_dict(stored["lora"]), TrainConfig.from_dict(stored["train"])
        own = {
            part: config.from_dict(stored.get(part, {}))
            for part, config in _chosen_configs(lora.kind, train.objective).items()
        }
        return cls(lora, train, **own)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """By part, ready for JSON."""
        return {part: getattr(self, part).to_dict() for part in PARTS}

    def flat(self) -> dict[str, Any]:
        """Every option by its name."""
        return flat_values(self.to_dict())


def flat_values(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options by name, of what is kept by part."""
    return {name: value for part in PARTS for name, value in parts.get(part, {}).items()}


def all_options() -> dict[str, Option]:
    """Every training option there is by name: those of all trainings, then the own ones of each kind and
    objective.

    Raises InvalidConfig if two have the same name.
    """
    found = {option.name: option for option in (*LoraConfig.options(), *TrainConfig.options())}
    for _, what, head in heads():
        for option in head.options.options():
            if option.name in found:
                raise InvalidConfig(
                    f"The {what} {head.name} has an option {option.name}, and so has something else; "
                    "rename the plug-in's."
                )
            found[option.name] = option
    return found


def by_subject() -> dict[str, list[Option]]:
    """Every training option once, under its subject in the order of a form. Own ones of a kind or an
    objective are under that of what chooses them, and what has no known subject is under the last.
    """
    choosers = {option.name: option.subject for option in (*LoraConfig.options(), *TrainConfig.options())}
    own = {name: choosers[chooser] for chooser, _, head in heads() for name in _option_names(head.options)}
    found: dict[str, list[Option]] = {subject: [] for subject in SUBJECTS}
    for name, option in all_options().items():
        subject = option.subject or own.get(name, "")
        found[subject if subject in found else SUBJECTS[-1]].append(option)
    return {subject: options for subject, options in found.items() if options}


def without_unchosen(values: Mapping[str, object]) -> dict[str, object]:
    """Leave out the own options of kinds and objectives that are not chosen, which a form holds as well.

    Raises InvalidConfig.
    """
    chosen, every = _names_of(values), all_options()
    return {name: value for name, value in values.items() if name in chosen or name not in every}


def heads() -> Iterator[tuple[str, str, AdapterKind | Objective]]:
    """Each with the option that chooses it, and what it is in words."""
    yield from (("kind", "adapter kind", head) for head in ADAPTER_KINDS.all().values())
    yield from (("objective", "objective", head) for head in OBJECTIVES.all().values())


def _chosen_configs(kind: str, objective: str) -> dict[str, type[Config]]:
    """What holds the own options of this kind and this objective. Raises InvalidConfig."""
    return {"kind": ADAPTER_KINDS.get(kind).options, "objective": OBJECTIVES.get(objective).options}


def _configs(values: Mapping[str, object]) -> dict[str, type[Config]]:
    """What holds each part where these values choose."""
    chosen = {"kind": LoraConfig.kind, "objective": TrainConfig.objective}
    own = _chosen_configs(*(str(values.get(name, default)).strip() for name, default in chosen.items()))
    return {"lora": LoraConfig, "train": TrainConfig, **own}


def _names_of(values: Mapping[str, object]) -> list[str]:
    """The options that there are where these values choose."""
    return [name for config in _configs(values).values() for name in _option_names(config)]


def _sorted(
    values: Mapping[str, object], make: Callable[[type[Config], dict[str, Any]], Config]
) -> TrainingOptions:
    """Have `make` build each part from those of the values that are its own."""
    _require_known(values)
    parts: dict[str, Any] = {}
    for part, config in _configs(values).items():
        own = {name: values[name] for name in _option_names(config) if name in values}
        parts[part] = make(config, own)
    return TrainingOptions(**parts)


def _require_known(values: Mapping[str, object]) -> None:
    known, every = _names_of(values), all_options()
    for name in values:
        if name in known:
            continue
        if name not in every:
            raise InvalidConfig(unknown_option(name, known))
        chooser, what, head = next(one for one in heads() if name in _option_names(one[2].options))
        raise InvalidConfig(
            f"{name} is an option of the {what} {head.name}, which is not chosen. Set {chooser}={head.name}, "
            f"or leave {name} out."
        )


def _option_names(config: type[Config]) -> list[str]:
    return [spec.name for spec in fields(config)]
