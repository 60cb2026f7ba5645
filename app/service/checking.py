"""The checklist before a training, of what the registry knows. Knows nothing of Gradio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.shared.bases import shapes_of, tensors_of, wholes_for
from core.base_model.fingerprint import stat_key
from core.data.checks import words_of
from core.errors import QuestionableRun
from core.train.checklist import BAD, Check, Surroundings, checklist, started
from core.train.estimate import Estimate
from core.train.training_options import TrainingOptions
from storage.adapters import AdapterQuery
from storage.registry import Registry
from storage.tables import Base, Dataset, Run

START_CHANGE = "start_change"
"""In a run's details: the most that was added to a layer's output when it was prepared."""
_INSIST = 'To train it all the same: --anyway in a terminal, "Train it anyway" under Train.'


def checks_of(
    registry: Registry, base: Base, data: Dataset, options: TrainingOptions, plan: Estimate, room: int | None
) -> list[Check]:
    """The list for a run that is yet to be queued. Raises InvalidConfig for targets that match nothing."""
    around = Surroundings(
        layer_shapes=shapes_of(base),
        head=base.head,
        tensors=list(tensors_of(registry, base)),
        base_parameters=base.parameters,
        base_name=base.name,
        fingerprint=base.fingerprint,
        untouched=_untouched(base),
        others=registry.adapters.search(AdapterQuery(fingerprint=base.fingerprint), 1)[1],
        train_rows=data.rows - data.excluded_rows - data.faulty_rows - data.validation_rows,
        room=room,
        wholes=wholes_for(base, options),
        context_length=base.context_length or 0,
        row_characters=max(map(row_characters, data.preview), default=0),
    )
    return checklist(around, options, plan)


def row_characters(row: Mapping[str, Any]) -> int:
    """How long a row of a data set's preview is."""
    return sum(len(words_of(one)) for one in row["messages"]) + len(row["text"])


def with_start(checks: list[Check], run: Run) -> list[Check]:
    """The list with what was found when the run was prepared, if it has been."""
    change = run.details.get(START_CHANGE)
    return checks if change is None else started(checks, float(change))


def require_sound(checks: list[Check]) -> None:
    """Raise QuestionableRun, with how to insist, for what is refused unless somebody does."""
    for one in checks:
        if one.state == BAD:
            raise QuestionableRun(f"{one.reason} {_INSIST}")


def _untouched(base: Base) -> bool:
    folder = Path(base.folder)
    try:
        return folder.is_dir() and stat_key(folder) == base.stat_key
    except OSError:
        return False
