"""Export formats: what an adapter leaves the house as. Each is one file here; see core/seam.py.

The head that this file describes needs no torch, so the page and the command line can list the formats. What
writes and checks is imported where it is used; the check runs in a process that nothing has written in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InvalidConfig, InvalidInput
from core.options import Config, NoOptions
from core.reporting import Report
from core.seam import Seam

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding

AUTO = "auto"
FLOAT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Written:
    """An export as other software is told of it."""

    folder: Path
    weights: str
    """The name of the file of weights in it, of the first where there are several."""
    name: str
    """The adapter's, as every file system and server takes it."""
    rank: int
    base: str
    """Where the base is found: its hub id, or its folder."""
    labels: int = 0
    """How many labels it tells; 0 if it writes text."""


class ExportFormat:
    """The head of an export format, and its three duties: write, check and describe."""

    name: str
    label: str
    help: str
    order: int = 100
    options: type[Config] = NoOptions
    """Options of this format alone, beside ExportConfig's."""
    merges: bool
    """Whether it holds W + ΔW; otherwise it holds the adapter alone."""
    takes_classifiers: bool = False
    """Whether it can hold an adapter that classifies, with its head."""
    is_base: bool = False
    """Whether what is written can be added as a base model, to be trained and merged again."""
    dtypes: tuple[str, ...] = (AUTO, "float32")
    """The number formats in which it can hold weights. auto: as the base's, or its own usual one."""
    no_other_dtype: str = "{name} takes {dtypes}, not {dtype}."
    """What is said to another one: why it cannot be."""
    ending: str
    """Of the files that hold the weights."""

    def dtype_for(self, dtype: str, own: Config) -> str:
        """The number format that is meant where `dtype` is chosen with these options of its own."""
        return dtype

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """Write into the empty folder `staging`, which is published or thrown away as a whole.

        Raises OutOfSpace, InvalidAdapter, InvalidModel.
        """
        raise NotImplementedError

    def warnings(self, what: Exporting) -> list[str]:
        """What will go wrong with it where it is used, in sentences for people and for its card."""
        return []

    def check(self, what: Exported, report: Report) -> Finding:
        """Read what lies in the folder again and compare it with what it should be.

        Raises InvalidInput, InvalidAdapter, InvalidModel.
        """
        raise NotImplementedError

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """How other software uses what is written: what it is called, and what to type."""
        return []

    def describe(self, base: str, adapter: str) -> str:
        """What the folder holds, in a sentence for its card. Both names are plain text."""
        raise NotImplementedError

    def require_for(self, adapter: str, classifies: bool, whole: bool = False) -> None:
        """Raise InvalidConfig for an adapter that classifies, or has whole weights of its own, where it can
        hold none such.
        """
        if whole and not self.merges:
            possible = ", ".join(one.name for one in EXPORT_FORMATS.all().values() if one.merges)
            raise InvalidConfig(
                f"{adapter} is full fine-tuning: whole weights, and no adapter that {self.name} could hold; "
                f"choose {possible}."
            )
        if classifies and not self.takes_classifiers:
            possible = ", ".join(one.name for one in EXPORT_FORMATS.all().values() if one.takes_classifiers)
            raise InvalidConfig(
                f"{adapter} tells labels by a head of its own, which {self.name} cannot hold; choose "
                f"{possible}."
            )

    def require_dtype(self, dtype: str) -> None:
        """Raise InvalidConfig, with the reason, for a number format that it cannot hold."""
        if dtype not in self.dtypes:
            possible = ", ".join(one for one in self.dtypes if one != AUTO)
            raise InvalidConfig(self.no_other_dtype.format(name=self.name, dtype=dtype, dtypes=possible))

    def only_file(self, folder: Path) -> Path:
        """The one file of weights in an exported folder. Raises InvalidInput."""
        found = sorted(folder.glob(f"*{self.ending}"))
        if len(found) != 1:
            raise InvalidInput(
                f"{folder} holds {len(found)} files that end in {self.ending} where one was expected."
            )
        return found[0]


EXPORT_FORMATS: Seam[ExportFormat] = Seam("core.export.formats", ExportFormat, "export format")
