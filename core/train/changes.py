"""A configuration that is changed while a run is under way, and gives the same run again when that is
repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import InvalidConfig
from core.train.config import TrainConfig

CHANGEABLE = ("learning_rate", "epochs", "max_steps")


@dataclass(frozen=True)
class Change:
    """New values that count from the step after `step` steps are done."""

    step: int
    values: Mapping[str, Any]


class ChangingConfig:
    """What holds for each step."""

    def __init__(self, config: TrainConfig, changes: Sequence[Change] = ()) -> None:
        """Raises InvalidConfig for values that no run could have."""
        self._held = [(-1, config)]  # (steps done, what holds from there on)
        for change in changes:
            self.change(change.step, change.values)

    def at(self, index: int) -> TrainConfig:
        """What holds for step `index`, counted from 0."""
        return next(config for step, config in reversed(self._held) if step <= index or step < 0)

    @property
    def last(self) -> TrainConfig:
        """What holds in the end, as things stand."""
        return self._held[-1][1]

    def change(self, step: int, values: Mapping[str, object]) -> Change:
        """Change some values for step `step` and those after it. Raises InvalidConfig."""
        parsed = parse_change(values)
        now = self.last
        if "epochs" in parsed and now.max_steps and "max_steps" not in parsed:
            parsed = {
                **parsed,
                "max_steps": 0,
            }  # whoever plans by epochs from now on does not mean the old number of steps
        self._held.append((step, replace(now, **parsed)))
        return Change(step, parsed)


def parse_change(values: Mapping[str, object]) -> dict[str, Any]:
    """Values of options that may change while a run is under way. Raises InvalidConfig."""
    options = {option.name: option for option in TrainConfig.options()}
    if not values:
        raise InvalidConfig(f"Nothing to change; give one of {', '.join(CHANGEABLE)}.")
    for name in values:
        if name not in CHANGEABLE:
            raise InvalidConfig(
                f"{name} cannot change while a run is under way; only {', '.join(CHANGEABLE)} can."
            )
    return {name: options[name].parse(value) for name, value in values.items()}
