"""A base model that is to be made resident: where it lies, what it must be, and whether it still is.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.base_model.difference import difference
from core.base_model.fingerprint import Manifest, companions_hash, file_digest, manifest, stat_key
from core.base_model.quantisation import NONE
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
    config: str = ""
    """SHA-256 of config.json when it was added; empty where nobody recorded it. Not every field that changes
    what is computed is in a fingerprint.
    """
    quantisation: str = NONE
    """How its linear layers are to be held in memory. The fingerprint is that of the files, however."""
    parts: int = 1
    """Over how many processes its layers are to be laid out, which have met before."""


@dataclass(frozen=True)
class ResidentKey:
    """All that decides what a resident base computes and answers. Weights alone do not: another template,
    tokenizer, configuration or end token beside equal weights is another base.
    """

    weights: str
    """The fingerprint."""
    config: str
    """SHA-256 of config.json: with the weights, what is computed."""
    companions: str
    """SHA-256 over the files that decide what a text becomes and where an answer ends."""
    folder: Path
    name: str
    template: str
    quantisation: str
    parts: int

    def computes_as(self, other: ResidentKey | None) -> bool:
        """Whether the same model in memory serves both."""
        same = other is not None and self.held == other.held
        return same and self.has_weights_of(other)

    @property
    def held(self) -> tuple[str, int]:
        """How it lies in memory."""
        return self.quantisation, self.parts

    def has_weights_of(self, other: ResidentKey | None) -> bool:
        """Whether both are the same model, however it is held in memory."""
        return other is not None and (self.weights, self.config) == (other.weights, other.config)


def resident_key(source: BaseSource) -> ResidentKey:
    """The key of `source` as its files are now."""
    return ResidentKey(
        source.fingerprint,
        file_digest(source.folder / "config.json"),
        companions_hash(source.folder),
        source.folder,
        source.name,
        source.template,
        source.quantisation,
        source.parts,
    )


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
    if source.config and file_digest(source.folder / "config.json") != source.config:
        raise WrongBase(
            f"The weights of {source.name} are unchanged, but config.json in {source.folder} is not as it "
            "was when it was added, and may have something else computed. Put it back; if the change is "
            "wanted, accept it with models verify --accept."
        )
