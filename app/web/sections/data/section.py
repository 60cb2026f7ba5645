"""Data: bring it in, see what was found in it, what is trained on, and change what is wrong."""

from __future__ import annotations

from app.service.workbench import Workbench
from app.web.parts.catalogue import Catalogue, Words
from app.web.parts.markup import day
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.data.data_markup import about_html
from app.web.sections.data.detail import DetailPanel
from app.web.sections.data.import_form import ImportPanel
from storage.tables import Dataset

TAB, TITLE = "data", "Data"
_WORDS = Words(
    label="Data sets",
    columns=("Name", "Version", "Format", "Rows", "Validation", "Left out", "Errors", "Warnings", "Added"),
    nothing="No data yet. Upload a file, or start with the sample conversations.",
    remove="Delete",
    question="Delete this data set with all its versions? Adapters trained on it stay.",
)


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    panel = ImportPanel(shell)
    catalogue = Catalogue(
        shell,
        _WORDS,
        rows=lambda: _rows(workbench),
        number=lambda name: workbench.registry.find(Dataset, name).id,
        remove=workbench.datasets.remove,
        describe=lambda name: about_html(workbench.registry.find(Dataset, name)),
    )
    DetailPanel(shell, catalogue)
    catalogue.follow(
        panel.sample.click(
            told(lambda: workbench.datasets.add_sample().name), None, catalogue.chosen, **WORKING
        )
    )
    chosen = [catalogue.chosen, panel.awaited]
    shell.decide(lambda now, awaited: _choose(workbench, now, awaited), chosen, chosen)


def _choose(workbench: Workbench, chosen: str, awaited: str) -> tuple[str, str]:
    """The data set to look at, and the one that is still to come: when it has, it is the one."""
    names = [row.name for row in workbench.registry.all(Dataset)]
    if awaited in names:
        return awaited, ""
    return (chosen if chosen in names else next(iter(names), "")), awaited


def _rows(workbench: Workbench) -> list[list[str]]:
    return [
        [
            row.name,
            str(row.version),
            row.format,
            f"{row.rows:,}",
            f"{row.validation_rows:,}",
            f"{row.excluded_rows:,}",
            f"{row.faulty_rows:,}",
            f"{row.warnings:,}",
            day(row.created),
        ]
        for row in workbench.registry.all(Dataset)
    ]
