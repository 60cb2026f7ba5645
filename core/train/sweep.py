"""A grid of training options: every combination of the values given. Needs no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from core.errors import InvalidConfig
from core.options import unknown_option
from core.train.training_options import TrainingOptions, all_options

MOST_RUNS = 64  # in one sweep
Grid = Mapping[str, Sequence[str]]
"""Values by option name."""


def parse_grid(texts: Iterable[str]) -> dict[str, list[str]]:
    """Read `option=value,value,…`; values that hold commas themselves are separated by `|`.

    Raises InvalidConfig.
    """
    known = list(all_options())
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, equals, listed = (part.strip() for part in text.partition("="))
        values = [value.strip() for value in listed.split("|" if "|" in listed else ",")]
        if not equals or not all(values):
            raise InvalidConfig(
                f"{text!r} is no sweep; write for example rank=4,8,16 (or "
                "target_modules=q_proj|q_proj,v_proj)."
            )
        if name not in known:
            raise InvalidConfig(unknown_option(name, known))
        if name in grid:
            raise InvalidConfig(f"{name} is swept twice; list all its values together.")
        grid[name] = list(dict.fromkeys(values))
    return grid


def combinations(options: TrainingOptions, grid: Grid) -> list[tuple[str, TrainingOptions]]:
    """Every combination as a label (rank=4 seed=1), which has the values as they were written, and its
    options.

    Raises InvalidConfig for an empty grid, for too many runs, or for the first value that no run could have.
    """
    if not grid:
        raise InvalidConfig("A sweep needs at least one option with its values, for example rank=4,8,16.")
    count = math.prod(len(values) for values in grid.values())
    if count > MOST_RUNS:
        raise InvalidConfig(f"The sweep has {count} combinations; at most {MOST_RUNS} are trained at once.")
    known = all_options()
    parsed = [[(text, known[name].parse(text)) for text in texts] for name, texts in grid.items()]
    found = []
    for values in itertools.product(*parsed):
        label = " ".join(f"{name}={text}" for name, (text, _) in zip(grid, values, strict=True))
        chosen = {name: value for name, (_, value) in zip(grid, values, strict=True)}
        found.append((label, options.changed(chosen)))
    return found
