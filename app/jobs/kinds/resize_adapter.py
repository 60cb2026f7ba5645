"""The job that cuts an adapter to a lower rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep, adapter_steps
from app.shared.adapter_labels import require_factors, require_writing
from app.shared.bases import base_for
from app.shared.references import name_in, refer, referred
from core.errors import InvalidConfig
from core.events import Progress
from storage.tables import Adapter


class ResizeAdapter(JobKind):
    """Arguments: adapter, rank, name (empty: only show what would be lost), evaluate (measure the validation
    loss before and after).
    """

    name, label, order = "resize_adapter", "Resize an adapter", 60
    help = "Cut an adapter to a lower rank, as well as that can be done."
    place = "Adapters, or adapters resize"
    keeps = (Adapter,)

    def title(self, arguments: Mapping[str, Any]) -> str:
        verb = "Resize" if arguments["name"] else "Try"
        return f"{verb} {name_in(arguments['adapter'])} at rank {arguments['rank']}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NameTaken, NotFound, InvalidConfig."""
        row, rank = referred(context.registry, Adapter, arguments["adapter"]), int(arguments["rank"])
        require_writing(context.registry, row, "an adapter of lower rank")
        require_factors(context.registry, row, "a lower rank")
        if not 1 <= rank < row.rank:
            raise InvalidConfig(
                f"{row.name} has rank {row.rank}; resize it to a rank from 1 to {row.rank - 1}."
            )
        name = arguments.get("name", "")
        if name:
            context.registry.require_free(Adapter, name)
        evaluate = bool(arguments.get("evaluate", False))
        return {"adapter": refer(row), "rank": rank, "name": name, "evaluate": evaluate}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: the energy it loses and the change of its validation loss; it is kept if a name is
        given.
        """
        from app.jobs.adapters import keep_combination, load_row
        from app.jobs.evaluating import validation_losses
        from core.combine.combining import resize

        settings, registry, report = context.settings, context.registry, context.report
        row = referred(registry, Adapter, arguments["adapter"])
        base = base_for(registry, row)
        rank = int(arguments["rank"])
        adapter = load_row(registry, row, base)
        report(Progress("Decomposing"))
        found = resize(adapter, rank)
        losses = None
        if arguments.get("evaluate"):
            losses = validation_losses(settings, registry, row, base, [adapter, found.adapter], report)
        parents = [{"name": row.name, "digest": row.digest, "weight": 1.0}]
        said = {
            "adapter": row.name,
            "rank": rank,
            "energy_lost": found.energy_lost,
            "losses": losses,
            "bytes": 4 * found.adapter.parameter_count,
        }
        name = arguments.get("name")
        return keep_combination(context, said, base, found, name, "resized", parents, {"rank": rank}, row)

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        return adapter_steps(result)


KIND = ResizeAdapter()
