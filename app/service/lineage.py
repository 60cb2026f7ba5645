"""Where an adapter comes from and what became of it, as nodes and edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from app.shared.bases import closest_base
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Run


@dataclass(frozen=True)
class Node:
    """One thing in the graph."""

    kind: str
    """base, data, run, adapter, export."""
    name: str
    note: str = ""


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
    found = Lineage(Node("adapter", row.name, f"rank {row.rank}, {row.source}"))
    sources = [
        Node("base", base.name if base else row.base_name, row.base_fingerprint[:12] if base else "not here")
    ]
    run = _run(registry, row)
    if run is not None:
        sources.append(Node("data", run.dataset_name, f"version {run.dataset_version}"))
    elif row.dataset_name and not row.parents:
        sources.append(Node("data", row.dataset_name))
    found.before.append(sources)
    middle = [Node("run", f"run {run.id}", run.state)] if run is not None else []
    middle += [
        Node("adapter", str(one["name"]), f"× {one['weight']:g}" if len(row.parents) > 1 else "")
        for one in row.parents
    ]
    if middle:
        found.before.append(middle)
    merged = [one for one in registry.all(Base) if one.merged.get("adapter_digest") == row.digest]
    found.after += [
        Node("adapter", one.name, one.source) for one in registry.adapters.children_of(row.digest)
    ]
    found.after += [Node("base", one.name, "merged") for one in merged]
    exports = registry.exports.of(row.digest)
    found.after += [Node("export", one.format, f"{one.verdict}, {Path(one.folder).name}") for one in exports]
    return found


def _run(registry: Registry, row: Adapter) -> Run | None:
    if row.run_id is None:
        return None
    try:
        return registry.get(Run, row.run_id)
    except NotFound:
        return None
