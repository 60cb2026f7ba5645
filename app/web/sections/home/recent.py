"""What was made lately, what is kept, and what this machine is; every name is a link to what it names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import psutil

from app.service.workbench import Workbench
from app.web.parts.markup import day, facts, number, size, state_badge
from app.web.parts.routes import link
from storage.tables import Adapter, Base, Dataset, Export, Run

_NEWEST = 6


def recent_html(workbench: Workbench) -> str:
    """All cards."""
    parts = [_adapters(workbench), _runs(workbench), _kept(workbench), _machine(workbench)]
    return f"<div class='overview'>{''.join(parts)}</div>"


def _card(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> str:
    """A table as a card; the cells are HTML."""
    if not rows:
        return f"<div class='card'><h2>{title}</h2><p class='hint'>{nothing}</p></div>"
    heads = "".join(f"<th>{one}</th>" for one in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table class='rows'><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    return f"<div class='card'><h2>{title}</h2>{table}</div>"


def _adapters(workbench: Workbench) -> str:
    rows = [
        (
            link(one.name, "adapters", name=one.name),
            link(one.base_name, "models", name=one.base_name),
            number(one.validation_loss, 3),
            link(workbench.classifiers.try_words(one).split()[0], "playground", adapter=one.name),
        )
        for one in workbench.registry.all(Adapter, limit=_NEWEST)
    ]
    nothing = f"None yet. {link('Train one', 'train')}, or {link('import one', 'adapters')}."
    return _card("Newest adapters", ("Adapter", "Base model", "Validation loss", ""), rows, nothing)


def _runs(workbench: Workbench) -> str:
    rows = [
        (
            link(one.name, "runs", name=one.id or 0),
            state_badge(one.state),
            link(one.dataset_name, "data", name=one.dataset_name),
            day(one.started or one.created),
        )
        for one in workbench.registry.all(Run, limit=_NEWEST)
    ]
    nothing = f"None yet. {link('Start one', 'train')}."
    return _card("Newest runs", ("Run", "State", "Data set", "Started"), rows, nothing)


def _kept(workbench: Workbench) -> str:
    registry = workbench.registry
    counts = [
        ("Base models", "models", len(registry.names(Base))),
        ("Data sets", "data", len(registry.names(Dataset))),
        ("Runs", "runs", len(registry.all(Run))),
        ("Adapters", "adapters", len(registry.names(Adapter))),
        ("Exports", "export", len(registry.all(Export))),
    ]
    shown = "".join(f"<dt>{link(text, to)}</dt><dd>{count:,}</dd>" for text, to, count in counts)
    return f"<div class='card'><h2>Kept here</h2><dl class='facts'>{shown}</dl></div>"


def _machine(workbench: Workbench) -> str:
    status = workbench.engine.status()
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(workbench.settings.home)
    engine = "starts when it is needed" if status is None else ("training" if status["runs"] else "ready")
    return facts(
        [
            ("Device", status["device"] if status else "known when the engine has started"),
            ("Engine", engine),
            ("Base in memory", status["resident"] or "none yet" if status else "none yet"),
            ("Memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
            ("Disk", f"{size(disk.free)} free"),
            ("Home folder", workbench.settings.home),
        ],
        "This machine",
        2,
    )
