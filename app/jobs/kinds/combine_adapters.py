"""The job that combines adapters of one base into a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep, adapter_steps
from app.shared.adapter_labels import require_factors, require_writing
from app.shared.bases import base_for
from app.shared.identity import require_fit
from app.shared.references import refer, referred
from core.combine.config import CombineConfig, require_weights
from core.errors import InvalidConfig
from core.events import Progress
from storage.tables import Adapter


class CombineAdapters(JobKind):
    """Arguments: parts (each an adapter and a weight), config, name (empty: only show what would become of
    them), evaluate (measure the validation losses of the parents beside the result's).
    """

    name, label, order = "combine_adapters", "Combine adapters", 70
    help = "Make a new adapter of several of one base, on ΔW."
    place = "Adapters, or adapters combine"
    keeps = (Adapter,)

    def title(self, arguments: Mapping[str, Any]) -> str:
        names = ", ".join(one["name"] for one in arguments["parts"])
        return f"{'Combine' if arguments['name'] else 'Try'} {names}"[:120]

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NameTaken, NotFound, InvalidConfig, and WrongBase if they are of several bases."""
        config, parts = CombineConfig.parse(arguments["config"]), arguments["parts"]
        rows = [referred(context.registry, Adapter, one) for one in parts]
        if len(rows) < 2:
            raise InvalidConfig("Give at least two adapters to combine, each with a weight.")
        require_weights([one["weight"] for one in parts])
        if not any(one["weight"] for one in parts):
            raise InvalidConfig("All weights are 0, so nothing would be left; give one that is not.")
        base = base_for(context.registry, rows[0])
        for row in rows:
            require_fit(context.registry, row, base)
            require_writing(context.registry, row, "a combination")
            require_factors(context.registry, row, "a combination")
        name = arguments.get("name", "")
        if name:
            context.registry.require_free(Adapter, name)
        listed = [{**refer(row), "weight": one["weight"]} for row, one in zip(rows, parts, strict=True)]
        evaluate = bool(arguments.get("evaluate", False))
        return {"parts": listed, "config": config.to_dict(), "name": name, "evaluate": evaluate}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: norms, cosines, sign conflicts and the energy lost; it is kept if a name is given."""
        from app.jobs.adapters import keep_combination, load_row
        from app.jobs.evaluating import losses_of_parents
        from core.combine.combining import Part, combine, compare_parents

        registry, report = context.registry, context.report
        config = CombineConfig.parse(arguments["config"])
        parts_given = arguments["parts"]
        rows = [(referred(registry, Adapter, one), float(one["weight"])) for one in parts_given]
        if len({row.id for row, _ in rows}) < len(rows):
            raise InvalidConfig("An adapter is named twice; name each once, with the weight it gets in all.")
        base = base_for(registry, rows[0][0])
        warned = [line for row, _ in rows for line in require_fit(registry, row, base)]
        parts = [Part(row.name, load_row(registry, row, base), weight) for row, weight in rows]
        report(Progress("Comparing the parents"))
        parents = compare_parents(parts)
        found = combine(parts, config, report)
        weighed = [(row, part.adapter) for (row, _), part in zip(rows, parts, strict=True)]
        losses = (
            losses_of_parents(context.settings, registry, base, weighed, found.adapter, report)
            if arguments.get("evaluate")
            else []
        )
        family = [{"name": row.name, "digest": row.digest, "weight": weight} for row, weight in rows]
        said = {
            "parents": [row.name for row, _ in rows],
            "weights": [weight for _, weight in rows],
            "norms": parents.norms,
            "cosines": parents.cosines,
            "sign_conflicts": parents.sign_conflicts,
            "energy_lost": found.energy_lost,
            "rank": found.adapter.highest_rank,
            "bytes": 4 * found.adapter.parameter_count,
            "losses": losses,
            "warnings": warned,
        }
        name, like = arguments.get("name"), rows[0][0]
        return keep_combination(context, said, base, found, name, "combined", family, config.to_dict(), like)

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        return adapter_steps(result)


KIND = CombineAdapters()
