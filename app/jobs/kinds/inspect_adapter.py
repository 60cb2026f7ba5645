"""The job that looks inside an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind
from app.shared.adapter_labels import require_factors
from app.shared.bases import base_for, folder_of
from app.shared.identity import require_fit
from app.shared.references import name_in, refer, referred
from core.events import Progress
from storage.tables import Adapter


class InspectAdapter(JobKind):
    """Arguments: adapter, other (may be empty)."""

    name, label, order = "inspect_adapter", "Look inside an adapter", 40
    help = "Measure what an adapter changes in each layer, and how far two share their directions."
    place = "Adapters, or adapters inspect"

    def title(self, arguments: Mapping[str, Any]) -> str:
        name, other = name_in(arguments["adapter"]), arguments["other"]
        return f"Compare {name} with {name_in(other)}" if other else f"Look inside {name}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound."""
        given = {"adapter": arguments["adapter"], "other": arguments.get("other", "")}
        rows = {key: referred(context.registry, Adapter, one) for key, one in given.items() if one}
        for row in rows.values():
            require_factors(context.registry, row, "a look inside")
        return {key: refer(rows[key]) if key in rows else "" for key in given}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """The anatomy of an adapter; with `other`, how far the two work in the same directions.

        Result: one entry for each layer.
        """
        from app.jobs.adapters import load_row
        from core.base_model.skeleton import skeleton
        from core.lora.anatomy import anatomy, compare_subspaces
        from core.merge.merge import weight_norms

        registry, report = context.registry, context.report
        row = referred(registry, Adapter, arguments["adapter"])
        base = base_for(registry, row)
        adapter = load_row(registry, row, base)
        report(Progress("Measuring the base's layers"))
        folder = folder_of(base)
        modules = anatomy(adapter, weight_norms(folder, adapter, skeleton(folder).transposed, report))
        result: Arguments = {
            "adapter": row.name,
            "digest": row.digest,
            "modules": [asdict(one) | {"relative": one.relative} for one in modules],
            "sentence": usage_sentence([one.rank_held for one in modules], [one.rank for one in modules]),
        }
        if arguments.get("other"):
            other = referred(registry, Adapter, arguments["other"])
            require_fit(registry, other, base)
            report(Progress("Comparing the directions"))
            found = compare_subspaces(adapter, load_row(registry, other, base))
            result |= {"other": other.name, "similarity": {path: phi.tolist() for path, phi in found.items()}}
        return result


KIND = InspectAdapter()


def usage_sentence(held: Sequence[int], ranks: Sequence[int]) -> str:
    """How much of its rank an adapter uses."""
    used = sum(held) / len(held)
    most = f"{max(held)} in the layer that needs most"
    return (
        f"It uses about rank {used:.1f} of {max(ranks)}: so many directions hold 99 % of what it "
        f"changes, {most}."
    )
