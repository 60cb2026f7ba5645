"""The job that makes a plain LoRA of an adapter of another kind, where that is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep, adapter_steps
from app.shared.adapter_labels import require_factors
from app.shared.bases import base_for
from app.shared.references import name_in, refer, referred
from core.errors import InvalidConfig
from core.events import Progress
from core.options import Config, option
from storage.tables import Adapter


@dataclass(frozen=True)
class ConvertOptions(Config):
    """What is converted."""

    adapter: str = option("", "Adapter", "Of a kind whose ΔW is low-rank, such as MiSS or AdaLoRA.")
    name: str = option("", "Name of the LoRA", "Under which it is kept.")


class ConvertAdapter(JobKind):
    """Arguments: adapter, name."""

    name, label, order = "convert_adapter", "Convert an adapter to LoRA", 65
    help = "Write an adapter of another kind, such as MiSS, as a LoRA that computes the same."
    options = ConvertOptions
    place = "adapters convert"
    keeps = (Adapter,)

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Convert {name_in(arguments['adapter'])} to LoRA"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NameTaken, NotFound, InvalidConfig."""
        row, name = referred(context.registry, Adapter, arguments["adapter"]), str(arguments.get("name", ""))
        require_factors(context.registry, row, "a LoRA")
        if not name:
            raise InvalidConfig("name is empty; the LoRA is kept under it.")
        context.registry.require_free(Adapter, name)
        return {"adapter": refer(row), "name": name}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: adapter, its kind, name, rank and size of the LoRA. Raises InvalidAdapter with the reason
        for a kind that no LoRA stands for.
        """
        from app.jobs.adapters import keep_combination, load_row
        from core.combine.combining import Combination
        from core.lora.kinds import ADAPTER_KINDS

        row = referred(context.registry, Adapter, arguments["adapter"])
        context.report(Progress(f"Reading {row.name}"))
        base = base_for(context.registry, row)
        adapter = load_row(context.registry, row, base)
        kind = ADAPTER_KINDS.get(adapter.kind)
        if kind.plain_lora:
            raise InvalidConfig(f"{row.name} is a LoRA already.")
        lora = adapter.as_lora()
        said = {"adapter": row.name, "kind": kind.label, "rank": lora.rank, "bytes": 4 * lora.parameter_count}
        parents = [{"name": row.name, "digest": row.digest, "weight": 1.0}]
        found, about = Combination(lora, 0.0, {}), {"kind": kind.name}
        name = arguments["name"]
        return keep_combination(context, said, base, found, name, "converted", parents, about, row)

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        return adapter_steps(result)


KIND = ConvertAdapter()
