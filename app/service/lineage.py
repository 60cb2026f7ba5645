"""Where an adapter comes from and what became of it, as nodes and edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.shared.bases import closest_base
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Dataset, Run


@dataclass(frozen=True)
class Node:
    """One thing in the graph."""

    kind: str
    """base, data, run, adapter, export."""
    name: str
    note: str = ""
    key: str = ""
    """What it is found by: a name, or a run's or an export's number. Empty where it is gone."""


@dataclass
class Lineage:
    """An adapter in the middle, what it was made of before it, what was made of it behind it."""

    adapter: Node
    before: list[list[Node]] = field(default_factory=list)
    """Columns, the oldest first."""
    after: list[Node] = field(default_factory=list)


def lineage(registry: Registry, row: Adapter) -> Lineage:
    """The graph around one adapter."""
    base = closest_base(registry, row)
    found = Lineage(Node("adapter", row.name, f"{row.rank_in_words}, {row.source}", row.name))
    sources = [
        Node("base", base.name, row.base_fingerprint[:12], base.name)
        if base
        else Node("base", row.base_name, "not here")
    ]
    run = _run(registry, row)
    if run is not None:
        sources.append(_data(registry, run.dataset_name, f"version {run.dataset_version}"))
    elif row.dataset_name and not row.parents:
        sources.append(_data(registry, row.dataset_name))
    found.before.append(sources)
    middle = [Node("run", f"run {run.id}", run.state, str(run.id))] if run is not None else []
    middle += [_parent(registry, one, several=len(row.parents) > 1) for one in row.parents]
    if middle:
        found.before.append(middle)
    merged = [one for one in registry.all(Base) if one.merged.get("adapter_digest") == row.digest]
    found.after += [
        Node("adapter", one.name, one.source, one.name) for one in registry.adapters.children_of(row.digest)
    ]
    found.after += [Node("base", one.name, "merged", one.name) for one in merged]
    found.after += [
        Node("export", one.format, f"{one.verdict}, {Path(one.folder).name}", str(one.id))
        for one in registry.exports.of(row.digest)
    ]
    return found


def _data(registry: Registry, name: str, note: str = "") -> Node:
    return Node("data", name, note, name if name in registry.names(Dataset) else "")


def _parent(registry: Registry, parent: Mapping[str, Any], *, several: bool) -> Node:
    """By the name that it has now, if it is still here."""
    found = registry.adapters.with_digest(parent["digest"])
    weight = f"× {parent['weight']:g}" if several else ""
    return Node("adapter", found.name if found else str(parent["name"]), weight, found.name if found else "")


def _run(registry: Registry, row: Adapter) -> Run | None:
    if row.run_id is None:
        return None
    try:
        return registry.get(Run, row.run_id)
    except NotFound:
        return None
