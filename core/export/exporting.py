"""What leaves the house: a merged model or an adapter as a folder that other software loads, complete or not
at all. How each format is written is its own file's affair, see core/export/formats.
"""

from __future__ import annotations

from pathlib import Path

from core.export.cards import model_card
from core.export.duties import Exporting, Facts
from core.files.publish import published_folder
from core.reporting import Report


def export(what: Exporting, target: Path, report: Report) -> Facts:
    """Publish the folder `target` in the wanted format, complete or not at all.

    Raises InvalidInput if `target` is occupied, OutOfSpace, InvalidAdapter, InvalidModel.
    """
    with published_folder(target) as staging:
        return write_export(what, staging, report)


def write_export(what: Exporting, folder: Path, report: Report) -> Facts:
    """Write the wanted format into the empty folder `folder`. Raises OutOfSpace, InvalidAdapter,
    InvalidModel.
    """
    kind = what.config.kind
    facts = {**kind.write(what, folder, report), "warnings": kind.warnings(what)}
    (folder / "README.md").write_text(model_card(what.about, what.config, facts), encoding="utf-8")
    return facts
