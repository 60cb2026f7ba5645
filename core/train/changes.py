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
SPREAD = ("devices", "machines")  # where it is computed: what is learnt is the same, up to rounding


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
        self._announced: list[TrainConfig] = []  # what will hold, of changes that are yet to be made
        for change in changes:
            self.change(change.step, change.values)

    def at(self, index: int) -> TrainConfig:
        """What holds for step `index`, counted from 0."""
        return next(config for step, config in reversed(self._held) if step <= index or step < 0)

    @property
    def last(self) -> TrainConfig:
        """What holds in the end, as things stand."""
        return self._announced[-1] if self._announced else self._held[-1][1]

    def change(self, step: int, values: Mapping[str, object]) -> Change:
        """Change some values for step `step` and those after it. Raises InvalidConfig."""
        parsed = _parsed(values, now := self._held[-1][1])
        self._held.append((step, replace(now, **parsed)))
        self._announced = self._announced[1:]
        return Change(step, parsed)

    def announce(self, step: int, values: Mapping[str, object]) -> Change:
        """As change(), which is to be called with the same later, before step `step`."""
        parsed = _parsed(values, now := self.last)
        self._announced.append(replace(now, **parsed))
        return Change(step, parsed)


def _parsed(values: Mapping[str, object], now: TrainConfig) -> dict[str, Any]:
    """What is to change of what holds now."""
    parsed = parse_change(values)
    if "epochs" in parsed and now.max_steps and "max_steps" not in parsed:
        # whoever plans by epochs from now on does not mean the old number of steps
        return {**parsed, "max_steps": 0}
    return parsed


def parse_change(values: Mapping[str, object]) -> dict[str, Any]:
    """Values of options that may change while a run is under way. Raises InvalidConfig."""
    if not values:
        raise InvalidConfig(f"Nothing to change; give one of {', '.join(CHANGEABLE)}.")
    return _parsed_of(CHANGEABLE, values, "while a run is under way")


def parse_spread(values: Mapping[str, object]) -> dict[str, Any]:
    """Values of options that may change when a run goes on. Raises InvalidConfig."""
    return _parsed_of(SPREAD, values, "when a run goes on")


def _parsed_of(names: Sequence[str], values: Mapping[str, object], when: str) -> dict[str, Any]:
    options = {option.name: option for option in TrainConfig.options()}
    for name in values:
        if name not in names:
            raise InvalidConfig(f"{name} cannot change {when}; only {', '.join(names)} can.")
    return {name: options[name].parse(value) for name, value in values.items()}
