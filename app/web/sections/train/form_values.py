"""What the fields of the form say: the options of one run, or of each run of a sweep."""

from __future__ import annotations

from collections.abc import Mapping

from core.train.sweep import combinations, parse_grid
from core.train.training_options import TrainingOptions, without_unchosen


def parsed(values: Mapping[str, object]) -> TrainingOptions:
    """What the fields say, of the chosen kinds alone. Raises InvalidConfig."""
    return TrainingOptions.parse(without_unchosen(values))


def wanted(values: Mapping[str, object], sweep: str) -> list[TrainingOptions]:
    """The options of the run that the form describes, or of each run of its sweep. Raises InvalidConfig."""
    options = parsed(values)
    if not sweep.strip():
        return [options]
    return [one for _, one in combinations(options, grid_of(sweep))]


def grid_of(sweep: str) -> dict[str, list[str]]:
    """The grid that the lines of the sweep field describe. Raises InvalidConfig."""
    return parse_grid(line for line in sweep.splitlines() if line.strip())
