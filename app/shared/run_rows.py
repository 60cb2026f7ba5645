"""The row of a run that is yet to be stored, or never is."""

from __future__ import annotations

from typing import Any

from core.base_model.quantisation import NONE
from core.train.sharding import AUTO
from storage.tables import Base, Dataset, Run


def run_row(base: Base, data: Dataset, config: dict[str, Any], name: str = "") -> Run:
    """A run on this base and these data as they are now; the caller may set what else it needs."""
    return Run(
        name=name,
        base_id=base.id or 0,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        dataset_id=data.id or 0,
        dataset_name=data.name,
        dataset_digest=data.digest,
        dataset_version=data.version,
        config=config,
    )


def devices_of(run: Run) -> tuple[int, int]:
    """How many cards of each machine train it together, and how many machines; rows of earlier versions do
    not say.
    """
    train = run.config.get("train", {})
    return int(train.get("devices", 1)), int(train.get("machines", 1))


def cards_of(run: Run) -> tuple[int, int, str]:
    """The same, and how several cards are to hold the base of a run."""
    return *devices_of(run), str(run.config.get("train", {}).get("sharding", AUTO))


def weight_bytes_of(run: Run) -> int:
    """Bytes of a weight in the number format in which a run computes; 0 until its base has been loaded."""
    return {"bfloat16": 2, "float32": 4}.get(str(run.details.get("dtype")), 0)


def held_for(run: Run) -> str:
    """How the base of a run is held in memory while it trains; rows of earlier versions do not say."""
    return str(run.config.get("train", {}).get("quantisation", NONE))
