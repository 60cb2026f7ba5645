"""What the form says of a training's options, as it is kept and sent: those of a preset or an earlier run,
what was changed of them, and the values of a sweep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from core.train.sweep import combinations
from core.train.training_options import TrainingOptions, all_options, without_unchosen


@dataclass(frozen=True)
class FormValues:
    """The options in the form. What is not named has its default."""

    label: str = ""
    """Whose options are given: a preset's name or a run's; empty for the defaults."""
    given: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, list[str]] = field(default_factory=dict)
    """Values by option name, as they were written."""

    @classmethod
    def read(cls, text: str) -> Self:
        """What `write` gave, also in an earlier version: options that there are no more are left out."""
        known, said = all_options(), json.loads(text or "{}")
        parts = {
            part: {name: value for name, value in said.get(part, {}).items() if name in known}
            for part in ("given", "changed", "sweep")
        }
        sweep = {name: [str(one) for one in values] for name, values in parts["sweep"].items() if values}
        return cls(str(said.get("label", "")), parts["given"], parts["changed"], sweep)

    def write(self) -> str:
        """As the page holds it."""
        return json.dumps(asdict(self))

    @property
    def values(self) -> dict[str, Any]:
        """Options by name."""
        return {**self.given, **self.changed}

    def parsed(self) -> TrainingOptions:
        """Of the chosen kinds alone. Raises InvalidConfig."""
        return parsed(self.values)

    def wanted(self) -> list[TrainingOptions]:
        """The options of the run that the form describes, or of each run of its sweep.

        Raises InvalidConfig.
        """
        options = self.parsed()
        return [one for _, one in combinations(options, self.sweep)] if self.sweep else [options]


def parsed(values: Mapping[str, object]) -> TrainingOptions:
    """Options of a form, those of kinds that are not chosen left out. Raises InvalidConfig."""
    return TrainingOptions.parse(without_unchosen(values))
