"""A base model that is to be made resident: where it lies, what it must be, and whether it still is.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.base_model.difference import difference
from core.base_model.fingerprint import Manifest, manifest, stat_key
from core.errors import InvalidModel, WrongBase


@dataclass(frozen=True)
class BaseSource:
    """A base model to make resident: where it lies and what it must be."""

    name: str
    folder: Path
    fingerprint: str
    stat_key: str
    template: str = ""
    """The known chat template chosen for a base that has none of its own."""
    recorded: Callable[[], Manifest | None] = lambda: None
    """Gives what its fingerprint was taken over, to say what has changed; called only then."""


def check_unchanged(source: BaseSource, afresh: bool = False) -> None:
    """Raise WrongBase, saying what differs, if the files of `source` are no longer those its fingerprint was
    taken from.

    Files that nobody has touched since are not read again, unless `afresh` asks for it.
    """
    if not source.folder.is_dir():
        raise InvalidModel(f"The files of {source.name} are gone from {source.folder}; add the model again.")
    if not afresh and stat_key(source.folder) == source.stat_key:
        return
    found = manifest(source.folder)
    if found.fingerprint != source.fingerprint:
        known = source.recorded()
        what = f" {difference(known, found).sentence}" if known else ""
        raise WrongBase(
            f"The files of {source.name} in {source.folder} have changed since it was added: its "
            f"adapters no longer fit.{what} "
            "Restore them, or add the folder again as another model."
        )
