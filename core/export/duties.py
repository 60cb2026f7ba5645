"""What an export format is given, and what it gives back. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.base_model.skeleton import Skeleton
    from core.export.cards import Provenance
    from core.export.config import ExportConfig
    from core.gguf.check import GgufCheck
    from core.lora.adapter import AdapterWeights
    from core.merge.verify import MergeCheck
    from core.options import Config

PASSED, FAILED, NOT_CHECKABLE = "passed", "failed", "not checkable"

Facts = dict[str, Any]
"""What a writer has to tell: counts, bytes, the rounding loss."""


@dataclass(frozen=True)
class Exporting:
    """What is exported."""

    base_folder: Path
    skeleton: Skeleton
    adapter: AdapterWeights
    about: Provenance
    config: ExportConfig
    own: Config
    """The options of the format alone."""


@dataclass(frozen=True)
class Exported:
    """What was exported, and what it should be."""

    folder: Path
    base_folder: Path
    skeleton: Skeleton
    adapter: AdapterWeights
    config: ExportConfig
    own: Config
    template: str
    """The known chat template chosen for a base that has none of its own."""


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    verdict: str
    """PASSED, FAILED or NOT_CHECKABLE."""
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**self.figures, "verdict": self.verdict, "sentence": self.sentence}


def finding(check: MergeCheck | GgufCheck) -> Finding:
    """The result of a check with all its figures."""
    return Finding(PASSED if check.passed else FAILED, check.sentence(), asdict(check))


def read_back(different: Sequence[str], why: str) -> Finding:
    """What can be said where answers were not computed, for the reason `why`, but every tensor was read.

    different: the names of those that are not what was meant.
    """
    if different:
        count = len(different)
        sentence = f"FAILED: {different[0]} is not what was written ({count} such tensors)."
        return Finding(FAILED, sentence)
    sentence = f"Its answers were not checkable: {why}. Every tensor was read back and is what it should be."
    return Finding(NOT_CHECKABLE, sentence)
